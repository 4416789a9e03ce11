"""`branch(by, choices)`: each message takes one of several sub-DAGs, as an expression on it says.

Arguments: `by`, an expression whose value is the number of the choice (true is 1; beyond the last: the last);
`choices`, a list of at most 16 DAGs.  Their chunnels are negotiated each like any other, among the
implementations in Python; where nothing was negotiated, the first wire of each is taken.
Endpoints: both.  Wire: where no chunnel of a choice puts anything on the wire (`count`, `limit`, `mirror`)
"none": the receiver computes the choice from what it got.  Otherwise "branch/1": records of u8 choice, u32
big-endian length, and so many bytes of what comes out at the bottom of that choice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bertha_socket.chunnels._types import (
    NO_WIRE,
    ChunnelArgumentError,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Interface,
    Parameter,
    Pipe,
    UnknownChunnel,
    octets,
)
from bertha_socket.chunnels.pipeline import Moved, Pipeline

WIRE: Final = "branch/1"
CHOICES_MAX: Final = 16
RECORD_MAX: Final = 32 * 1024 * 1024
_HEADER: Final = struct.Struct(">BI")


def _sub_dags(args: Mapping[str, Any]) -> list[Any]:
    from bertha_socket.dag import wrap

    return [wrap(choice) for choice in args["choices"]]


def _best_wire(chunnel: Any) -> str:
    from bertha_socket.chunnels._registry import get

    kind = get(chunnel.type)
    bound = kind.bind(chunnel)
    found = [w for i in kind.implementations if i.carrier == "python" for w in i.wires(bound)]
    return found[0] if found else NO_WIRE


def _wires(args: Mapping[str, Any]) -> tuple[str, ...]:
    if "choices" not in args:
        return (NO_WIRE, WIRE)
    try:
        plain = all(_best_wire(c) == NO_WIRE for dag in _sub_dags(args) for c in dag.chunnels)
    except OSError:
        return ()
    return (NO_WIRE,) if plain else (WIRE,)


def _choices_problem(value: Any) -> str | None:
    from bertha_socket.dag import Chunnel, Dag

    if not 1 <= len(value) <= CHOICES_MAX or not all(isinstance(v, (Chunnel, Dag)) for v in value):
        return f"a list of 1 to {CHOICES_MAX} DAGs"
    return None


def _together(args: Mapping[str, Any]) -> str | None:
    """What is wrong within the choices."""
    from bertha_socket.chunnels._interfaces import misfit
    from bertha_socket.chunnels._registry import get, type_of

    for number, dag in enumerate(_sub_dags(args)):
        try:
            for chunnel in dag.chunnels:
                type_of(chunnel).bind(chunnel)
        except (ChunnelArgumentError, UnknownChunnel) as error:
            raise ChunnelArgumentError(f"branch: choice {number}: {error.problem}", error.column) from None
        why = misfit([get(c.type) for c in dag.chunnels], bottom=Interface.MESSAGES)
        if why is not None:
            return f"choice {number}: {why}"
    return None


def _pipes(args: Mapping[str, Any], wire: str, side: str, context: Context) -> list[list[Pipe]]:
    """The pipes of each choice, as planned ("inner", by position) or, without a plan, as they come."""
    from bertha_socket.negotiation._inner import wanted

    inner = args.get("inner")
    dags = _sub_dags(args)
    if inner is not None and len(inner) != sum(len(d.chunnels) for d in dags):
        raise ChunnelArgumentError("branch: its choices are not what is planned for them; negotiate again")
    planned = iter(inner or ())
    found: list[list[Pipe]] = []
    for dag in dags:
        pipes = []
        for chunnel in dag.chunnels:
            one = next(planned, None)
            if (inner is not None and one is None) or not wanted(chunnel):
                continue
            if one is None or one.implementation(side) is not None:
                pipes.append(_pipe(chunnel, one, side, context))
            if one is not None and wire == NO_WIRE != one.wire:
                raise ChunnelArgumentError(f"branch: {chunnel.type} has wire {one.wire}, and branch has none")
        found.append(pipes)
    return found


def _pipe(chunnel: Any, planned: Any, side: str, context: Context) -> Pipe:
    from bertha_socket.chunnels._registry import get

    kind = get(chunnel.type)
    wire = _best_wire(chunnel) if planned is None else planned.wire
    if planned is None:
        bound = dict(kind.bind(chunnel))
    else:
        bound = dict(kind.bound(planned.kwargs))
        if kind.sub_dags:
            bound["inner"] = planned.inner
    name = None if planned is None else planned.implementation(side)
    found = kind.implementation(name, wire, bound)
    if found is None or found.make is None:
        raise ChunnelArgumentError(f"branch: {chunnel.type} has no implementation in Python here")
    return found.make(bound, wire, side, context)


class BranchPipe(Pipe):
    """A pipeline for each choice."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._by = _evaluator(args["by"])
        self._choices = [Pipeline(pipes) for pipes in _pipes(args, wire, side, context)]
        self._tagged = wire != NO_WIRE
        self._got = bytearray()
        self._over_down = self._over_up = False

    def _choice(self, item: Any) -> int:
        return max(0, min(int(self._by(item)), len(self._choices) - 1))

    def _look(self) -> None:
        self.full_down = any(p.full_down for p in self._choices)
        self.full_up = any(p.full_up for p in self._choices)
        self.lingers_down = self._over_down and not all(p.down_done for p in self._choices)
        self.lingers_up = self._over_up and not all(p.up_done for p in self._choices)

    def _tag(self, number: int, items: Iterable[Any]) -> list[Any]:
        if not self._tagged:
            return list(items)
        return [_HEADER.pack(number, len(i)) + i for i in (octets(item, "branch") for item in items)]

    def _all(self, moved: Iterable[tuple[int, Moved]]) -> tuple[list[Any], list[Any]]:
        ups: list[Any] = []
        downs: list[Any] = []
        for number, one in moved:
            ups += one.up
            downs += self._tag(number, one.down)
        self._look()
        return ups, downs

    def start(self) -> Iterable[Any]:
        """What the choices start with."""
        return self._all((n, p.start()) for n, p in enumerate(self._choices))[1]

    def down(self, item: Any) -> Iterable[Any]:
        """Through its choice."""
        number = self._choice(item)
        return self._all([(number, self._choices[number].down(item))])[1]

    def down_end(self) -> Iterable[Any]:
        """The end of every choice."""
        self._over_down = True
        return self._all((n, p.down_end()) for n, p in enumerate(self._choices))[1]

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        """Through the choice that it came by."""
        if not self._tagged:
            number = self._choice(item)
            return self._all([(number, self._choices[number].up(item))])
        self._got += item
        moved: list[tuple[int, Moved]] = []
        at = 0
        while len(self._got) - at >= _HEADER.size:
            number, length = _HEADER.unpack_from(self._got, at)
            if number >= len(self._choices) or length > RECORD_MAX:
                raise ChunnelError(f"branch: a record of {length} bytes for choice {number} came")
            end = at + _HEADER.size + length
            if len(self._got) < end:
                break
            moved.append((number, self._choices[number].up(bytes(self._got[at + _HEADER.size : end]))))
            at = end
        del self._got[:at]
        return self._all(moved)

    def up_end(self) -> Iterable[Any]:
        """The end of every choice."""
        if self._got:
            raise ChunnelError("branch: the connection ended in the midst of a record")
        self._over_up = True
        return self._all((n, p.up_end()) for n, p in enumerate(self._choices))[0]

    def deadline(self) -> float | None:
        """The choices' first."""
        return min((d for p in self._choices if (d := p.deadline()) is not None), default=None)

    def tick(self, now: float) -> tuple[Iterable[Any], Iterable[Any]]:
        """For the choices."""
        return self._all((n, p.tick(now)) for n, p in enumerate(self._choices))

    def close(self) -> None:
        """Of every choice."""
        for pipeline in self._choices:
            pipeline.close()


def _evaluator(by: Any) -> Any:
    """A function from a message to a number."""
    from bertha_socket import expressions

    expression = expressions.parse_expression(str(by))

    def value(message: Any) -> int:
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise ChunnelError("branch: its expression is about bytes; put it below serialize()")
        try:
            return expression.evaluate(bytes(message))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ChunnelError(f"branch: {expression} has no value for a message ({error})") from None

    return value


TYPE = ChunnelType(
    name="branch",
    summary="each message takes one of several sub-DAGs",
    parameters=(
        Parameter("by", "expression", "which choice, by the message", agree="equal"),
        Parameter("choices", "list", "the sub-DAGs", check=_choices_problem, agree="equal"),
    ),
    layer=20,
    transparent=True,
    sub_dags=True,
    wire="none, or branch/1: u8 choice, u32be length and what the choice sends",
    check=_together,
    implementations=(Implementation("python", "branch", _wires, make=BranchPipe, builtin=True),),
)
