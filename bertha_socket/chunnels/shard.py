"""`shard(choices, by)`: each message goes to one of several places, which an expression on it picks.

Arguments: `choices`, a list of at most 256 places: ADDRESS:PORT, where an endpoint listens (with chunnels of
its own, if it likes); `by`, an expression; its value, modulo the number of choices, is the number of the
choice (paper, listings 3 and 4).  In Python, `shard()` of this module takes a function for `by` too, and
connections among the choices: those stay in their process, and only their names go into the DAG.
Endpoints: server, where the application's own fallback is (`Listener.serve`).  Wire: "none".

It is the uppermost chunnel of a listening application: what rises is (number of the choice, message), and
what is sent is either that or a message.  Only the server's own DAG can ask for it, since it decides where
the server connects to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
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
    octets,
    wires,
)

CHOICES_MAX: Final = 256
#: Before the name of something of this process.
_HERE: Final = "here:"
_things: dict[str, Any] = {}
_numbers = itertools.count(1)


def shard(choices: Any, by: Any) -> Any:
    """A chunnel `shard`.  `choices`: addresses, as (host, port) or "host:port", and connections of this
    process; `by`: an expression, its text, or a function from a message to a number.

    Functions and connections are kept until the process ends.  Raises OSError: an argument makes no sense.
    """
    from bertha_socket.dag import Chunnel
    from bertha_socket.dag import chunnel as maker
    from bertha_socket.expressions import Expression, parse_expression

    if callable(by):
        by = _named(by)
    elif not isinstance(by, Expression):
        by = parse_expression(str(by))
    made: Chunnel = maker("shard")(choices=[_text_of(c) for c in choices], by=by)
    TYPE.bind(made)
    return made


def _text_of(choice: Any) -> str:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, tuple) and len(choice) >= 2:
        host, port = choice[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return _named(choice)


def _named(thing: Any) -> str:
    for name, known in _things.items():
        if known is thing:
            return name
    name = f"{_HERE}{next(_numbers)}"
    _things[name] = thing
    return name


def place_of(choice: str) -> Any:
    """What a choice's text stands for: (host, port), or a connection of this process.

    Raises ChunnelArgumentError: it is another process's.
    """
    if choice.startswith(_HERE):
        if choice not in _things:
            raise ChunnelArgumentError(f"shard: {choice} is not of this process")
        return _things[choice]
    host, _, port = choice.rpartition(":")
    return host.strip("[]"), int(port)


class ShardPipe(Pipe):
    """Says for each message which choice it is for."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._by = _function(args["by"])
        self._count = len(args["choices"])

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        """The choice's number and the message."""
        message = octets(item, "shard")
        try:
            number = int(self._by(message))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ChunnelError(f"shard: there is no choice for a message ({error})") from None
        return [(number % self._count, message)], ()

    def down(self, item: Any) -> Iterable[Any]:
        """The message, whichever choice it is from."""
        return (octets(item[1] if isinstance(item, tuple) and len(item) == 2 else item, "shard"),)


def _function(by: Any) -> Callable[[bytes], int]:
    from bertha_socket.expressions import parse_expression

    text = str(by)
    if text.startswith(_HERE):
        function: Callable[[bytes], int] = place_of(text)
        return function
    return parse_expression(text).evaluate


def _by_problem(value: Any) -> str | None:
    from bertha_socket.expressions import Expression

    named = isinstance(value, str) and value.startswith(_HERE)
    return None if named or isinstance(value, Expression) else "an expression, such as hash(payload[10:14])"


def _choices_problem(value: Any) -> str | None:
    good = 1 <= len(value) <= CHOICES_MAX and all(_is_choice(v) for v in value)
    return None if good else f"a list of 1 to {CHOICES_MAX} texts ADDRESS:PORT"


def _is_choice(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    return value.startswith(_HERE) or (bool(host) and 0 < number < 65536)


TYPE = ChunnelType(
    name="shard",
    summary="each message goes to one of several places",
    parameters=(
        Parameter("choices", "list", "where to: ADDRESS:PORT", check=_choices_problem),
        Parameter("by", "any", "which of them, by the message", check=_by_problem),
    ),
    upper=Interface.OBJECTS,
    lower=Interface.MESSAGES,
    endpoints="server",
    layer=15,
    dictated=False,
    implementations=(
        Implementation(
            "python",
            "shard",
            wires(NO_WIRE),
            where="application",
            endpoints="server",
            make=ShardPipe,
            builtin=True,
        ),
    ),
)
