"""What a chunnel is made of: its type, its implementations, and (in Python) the state of one connection.

A *chunnel type* says what it does, which arguments it takes and what it is connected to above and below.  Its
*implementations* say how that can be done here.  An implementation in Python makes a *pipe* for each
connection: an object without I/O that is given what comes from above and from below, and gives back what goes
on.  So the same pipe runs in a carrier, in an application, and in a test.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from bertha_socket.dag import Chunnel

#: The wire of what puts nothing of its own on the wire.
NO_WIRE: Final = "none"
NATIVE_PRIORITY: Final = 100
PYTHON_PRIORITY: Final = 10
ENDPOINTS: Final = ("both", "client", "server", "either", "none")
#: Where a type goes in a union of two DAGs of which neither says: 0 at the application, 100 at the network.
DEFAULT_LAYER: Final = 40


class Interface(Enum):
    """What goes in and out on one side of a chunnel."""

    STREAM = "stream"  # bytes, in pieces that mean nothing
    MESSAGES = "messages"  # each item is one message, and stays one
    OBJECTS = "objects"  # values of the program's language
    DATAGRAMS = "datagrams"  # messages that may be lost, doubled and reordered


def placed(problem: str, column: int | None) -> str:
    """A problem with its place in a DAG's text, as bertha_socket.dag.DagError has it."""
    return problem if column is None else f"column {column}: {problem}"


class ChunnelError(OSError):
    """A connection that cannot go on: what came from the other end is wrong, or was cut off.

    `parting` is still sent down, so that the other end learns why (a TLS alert).
    """

    def __init__(self, problem: str, parting: bytes = b"") -> None:
        super().__init__(errno.EPROTO, problem)
        self.parting = parting


class ChunnelArgumentError(OSError):
    """A chunnel with arguments that its type does not take; one line with the remedy, and with the column if
    the DAG comes from a text."""

    def __init__(self, problem: str, column: int | None = None) -> None:
        super().__init__(errno.EINVAL, placed(problem, column))
        self.problem, self.column = problem, column


class UnknownChunnel(KeyError, OSError):
    """There is no such chunnel type here."""

    def __init__(self, name: str, remedy: str, column: int | None = None) -> None:
        problem = f"there is no chunnel type {name!r} here; {remedy}"
        OSError.__init__(self, errno.EINVAL, placed(problem, column))
        self.problem, self.column = problem, column

    def __str__(self) -> str:
        return self.strerror or ""


class _Required:
    def __repr__(self) -> str:
        return "required"


#: The default of an argument that must be given.
REQUIRED: Final = _Required()

#: The kinds of arguments.  "any" is for what the check alone can judge.
KINDS: Final = ("int", "float", "bool", "str", "dag", "expression", "list", "any")


@dataclass(frozen=True)
class Parameter:
    """An argument that a chunnel type takes."""

    name: str
    #: One of KINDS.
    kind: str
    summary: str = ""
    default: Any = REQUIRED
    #: None when the value is good, else what it should be ("a level from 1 to 19").
    check: Callable[[Any], str | None] | None = None
    #: How two ends agree on it: "server" (its value holds), "equal" (both must give the same), "own" (it is
    #: about one host, such as a file; it is not sent to the other end).
    agree: str = "server"

    def problem(self, value: Any) -> str | None:
        """What the value should have been; None: it is good."""
        if value is None and self.default is None:
            return None
        if not _KIND_CHECKS[self.kind](value):
            return _KIND_NAMES[self.kind]
        if self.kind == "expression":
            wrong = _expression_problem(value)
            if wrong is not None:
                return wrong
        return self.check(value) if self.check is not None else None


def _is_dag(value: Any) -> bool:
    from bertha_socket.dag import Dag

    return isinstance(value, Dag)


def _is_expression(value: Any) -> bool:
    from bertha_socket.expressions import Expression

    return isinstance(value, (Expression, str))


def _expression_problem(value: Any) -> str | None:
    from bertha_socket.expressions import parse_expression

    try:
        parse_expression(str(value))
    except OSError as error:
        return f"an expression ({error.strerror})"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


_KIND_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": _is_number,
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "dag": _is_dag,
    "expression": _is_expression,
    "list": lambda v: isinstance(v, (list, tuple)),
    "any": lambda v: True,
}
_KIND_NAMES: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dag": "a DAG",
    "expression": "an expression",
    "list": "a list",
    "any": "a value",
}


def between(low: float, high: float) -> Callable[[Any], str | None]:
    """A check for numbers."""
    return lambda value: None if low <= value <= high else f"from {low} to {high}"


def one_of(*choices: str) -> Callable[[Any], str | None]:
    """A check for texts."""
    return lambda value: None if value in choices else "one of " + ", ".join(choices)


@dataclass
class Context:
    """What a pipe is told about its connection, beyond its arguments."""

    side: str = "client"
    #: PEM texts for `encrypt`: "certificate", "key", "ca".
    material: Mapping[str, str] | None = None
    #: "address:port" of the other end and of this one; "" where it is not known.
    peer: str = ""
    local: str = ""
    #: What a pipe counts, by name; the carrier shows it.
    counts: dict[str, int] = field(default_factory=dict)
    #: Monotonic seconds; pipes take the time from here, so that a test can make it pass.
    clock: Callable[[], float] = time.monotonic
    #: Bytes of the longest message that the program can be given, where that is known.
    message_max: int | None = None
    #: What all connections of one socket hold of what has come (`_reliable_native.Held`); None: nothing.
    held: Any = None
    #: Makes the pipes of a sub-DAG (`branch`).
    subpipes: Callable[[Any], Sequence[Pipe]] | None = None


class Pipe:
    """One connection's state of one chunnel.  Authors derive from it and override what they need.

    Nothing here may block or do I/O.  Items are bytes, or objects where the interface is OBJECTS.  Any
    exception ends the connection (with its text as the reason), and no other.
    """

    #: False while nothing can go down yet, as in a handshake: what is given meanwhile is kept by the pipe.
    ready: bool = True
    #: True while the pipe wants no more from above (below), because it holds enough.
    full_down: bool = False
    full_up: bool = False
    #: True after `down_end` (`up_end`) while more is to come, of `tick` or `up`: the end waits for it.
    lingers_down: bool = False
    lingers_up: bool = False
    #: True once the other end's end has come in its own way (not by the network's end).
    ended_up: bool = False
    #: When (the context's clock) an item began to come of which the rest is still to come; inf: none has.
    begun_at: float = math.inf
    #: Whether the other end has ever shown that it gets what is sent to it; None: this pipe cannot know.
    answered: bool | None = None

    def __init__(
        self,
        args: Mapping[str, Any] | None = None,
        wire: str = NO_WIRE,
        side: str = "client",
        context: Context | None = None,
    ) -> None:
        self.args: Mapping[str, Any] = args or {}
        self.wire = wire
        self.side = side
        self.context = context if context is not None else Context(side)

    def start(self) -> Iterable[Any]:
        """What is sent down before anything else."""
        return ()

    def down(self, item: Any) -> Iterable[Any]:
        """From the program towards the network: what goes on for one item."""
        return (item,)

    def down_end(self) -> Iterable[Any]:
        """The program sends no more: what is still to go down."""
        return ()

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        """From the network towards the program: what goes up for one item, and what is answered down."""
        return (item,), ()

    def up_end(self) -> Iterable[Any]:
        """The network's end: what is still to go up.  Raises ChunnelError if something was cut off."""
        return ()

    def deadline(self) -> float | None:
        """When `tick` is to be called (time.monotonic() seconds); None: never."""
        return None

    def tick(self, now: float) -> tuple[Iterable[Any], Iterable[Any]]:
        """The deadline is there: what goes up, and what goes down."""
        return (), ()

    def close(self) -> None:
        """The connection has ended, however."""


def pieces(data: bytes, most: int) -> list[bytes]:
    """The same bytes in pieces of at most so many; 0: in one, as an empty one always is."""
    if not 0 < most < len(data):
        return [data]
    return [data[at : at + most] for at in range(0, len(data), most)]


def octets(item: Any, chunnel: str) -> bytes:
    """An item's bytes.  Raises ChunnelError: it has none, and `bytes(5)` would be five zeros."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, (bytearray, memoryview)):
        return bytes(item)
    kind = type(item).__name__
    raise ChunnelError(f"{chunnel}: takes bytes and was given {kind}; put serialize() above it")


Make = Callable[[Mapping[str, Any], str, str, Context], Pipe]
Wires = Callable[[Mapping[str, Any]], Sequence[str]]


def _usable() -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to run a chunnel type."""

    name: str
    type: str
    #: The wires that it speaks with such arguments, best first.
    wires: Wires
    #: "application" or "host".
    where: str = "host"
    endpoints: str = "both"
    #: Higher first.
    priority: int = PYTHON_PRIORITY
    #: "native" or "python".
    carrier: str = "python"
    #: The native carrier of datagrams has it as well, under the same name (native/carrier/dgram_chain.c).
    native_datagrams: bool = False
    #: None: usable here; else why not.
    probe: Callable[[], str | None] = _usable
    #: Makes the pipe of one connection; None: it is native.
    make: Make | None = None
    #: Part of this package, so that it needs no process of its own.
    builtin: bool = False

    def carries(self, proto: str) -> bool:
        """Whether its carrier has it for "tcp" (connections), "udp" (datagrams)."""
        return proto != "udp" or self.carrier != "native" or self.native_datagrams


@dataclass
class ChunnelType:
    """One communication function."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    upper: Interface = Interface.STREAM
    lower: Interface = Interface.STREAM
    endpoints: str = "both"
    implementations: tuple[Implementation, ...] = ()
    layer: int = DEFAULT_LAYER
    #: It takes whatever is below it, and gives the same above.
    transparent: bool = False
    #: It runs the DAGs among its arguments: their chunnels are negotiated with it, and `make` gets what is
    #: planned for them as the argument "inner" (PlannedChunnel or None, in their order).
    sub_dags: bool = False
    #: False: only where this end's own DAG names it; the other end cannot ask for it.
    dictated: bool = True
    #: What goes over the wire, for the documentation.
    wire: str = "nothing"
    #: Looks at all arguments together: None, or what is wrong.
    check: Callable[[Mapping[str, Any]], str | None] | None = None

    def bind(self, chunnel: Chunnel) -> dict[str, Any]:
        """The arguments of a chunnel by name, with defaults.  Raises ChunnelArgumentError."""
        try:
            return self.bound(self._named(chunnel))
        except ChunnelArgumentError as error:
            if chunnel.column is None or error.column is not None:
                raise
            raise ChunnelArgumentError(error.strerror or "", chunnel.column) from None

    def _named(self, chunnel: Chunnel) -> dict[str, Any]:
        names = [p.name for p in self.parameters]
        if len(chunnel.args) > len(names):
            takes = f"takes at most {len(names)} ({', '.join(names)})" if names else "takes none"
            self._fail(f"{len(chunnel.args)} arguments, but it {takes}")
        given: dict[str, Any] = dict(zip(names, chunnel.args, strict=False))
        for name, value in chunnel.kwargs:
            if name not in names:
                self._fail(f"no argument {name!r}; it takes {', '.join(names) or 'none'}")
            if name in given:
                self._fail(f"argument {name!r} is given twice")
            given[name] = value
        return given

    def bound(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, checked, with defaults.  Raises ChunnelArgumentError."""
        found: dict[str, Any] = {}
        for p in self.parameters:
            if p.name not in given:
                if p.default is REQUIRED:
                    self._fail(f"argument {p.name!r} ({p.summary or _KIND_NAMES[p.kind]}) is missing")
                found[p.name] = p.default
                continue
            value = given[p.name]
            problem = p.problem(value)
            if problem is not None:
                self._fail(f"{p.name} is {_shown(value)}, and should be {problem}")
            found[p.name] = value
        unknown = [n for n in given if n not in found]
        if unknown:
            self._fail(f"no argument {unknown[0]!r}")
        problem = self.check(found) if self.check is not None else None
        if problem is not None:
            self._fail(problem)
        return found

    def implementation(
        self, name: str | None, wire: str, args: Mapping[str, Any] | None = None, carrier: str = "python"
    ) -> Implementation | None:
        """Who can run it, with such arguments, over that wire: the one with that name, else the best."""
        able = [i for i in self.implementations if i.carrier == carrier and self._speaks(i, wire, args or {})]
        able.sort(key=lambda i: (i.name != name, -i.priority))
        return able[0] if able else None

    def _speaks(self, implementation: Implementation, wire: str, args: Mapping[str, Any]) -> bool:
        try:
            wires = tuple(implementation.wires({**self._defaults(), **args}))
        except Exception:  # somebody else's code; it wants arguments that are not there
            return True
        return wire in (wires or (NO_WIRE,))

    def _defaults(self) -> dict[str, Any]:
        return {p.name: p.default for p in self.parameters if p.default is not REQUIRED}

    def _fail(self, problem: str) -> NoReturn:
        raise ChunnelArgumentError(f"{self.name}: {problem}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def wires(*names: str) -> Wires:
    """The same wires whatever the arguments."""
    return lambda args: names
