"""msgpack of strangers, within limits: any bytes give a checked value or one NegotiationError.

Everything that the other end can make long or deep has a limit here or where the field is read.  Fields that
are not known are ignored, so that a later version may add some; a field that is known must be well-formed.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgpack

from bertha_socket.dag import Dag, Value, parse
from bertha_socket.expressions import Expression, parse_expression

#: A name (a chunnel type, an implementation, an argument) and its length in characters.
NAME_MAX: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
#: A wire, as in "zstd/1".
WIRE_MAX: Final = 64
_WIRE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*")
#: Arguments: of one chunnel, characters of one text, lists within lists, values altogether.
ARGS_MAX: Final = 32
TEXT_MAX: Final = 4096
DEPTH_MAX: Final = 16
VALUES_MAX: Final = 1024
#: Elements of one msgpack array or map; what is read allows fewer.
_ITEMS_MAX: Final = 1024

_EXT_DAG: Final = 1
_EXT_EXPRESSION: Final = 2
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1

Args = tuple[tuple[str, Value], ...]
T = TypeVar("T")


class NegotiationError(OSError):
    """What the other end sent, or what was to be sent, is no negotiation; one line with place and remedy."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EPROTO, problem)


def fail(problem: str) -> NoReturn:
    """Raises NegotiationError."""
    raise NegotiationError(problem)


def printable(text: str, limit: int) -> str:
    """One line of at most `limit` bytes (UTF-8) without control characters: it goes to logs and terminals."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    data = line.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "..."


# -- bytes ------------------------------------------------------------------------------------------------


def pack(value: object) -> bytes:
    """The one encoding of a value: maps in the order given, so that equal things have equal bytes."""
    try:
        return bytes(msgpack.packb(value, default=_extension, use_bin_type=True))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise NegotiationError(f"cannot be sent: {printable(str(error), 200)}") from None


def unpack(data: bytes, limit: int, what: str) -> Fields:
    """The map that `data` is, and nothing behind it.  Raises NegotiationError."""
    if len(data) > limit:
        fail(f"{what}: {len(data)} bytes, more than {limit}")
    try:
        found = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_ext,
            max_str_len=min(len(data), limit),
            max_bin_len=min(len(data), limit),
            max_ext_len=TEXT_MAX * 4,
            max_array_len=_ITEMS_MAX,
            max_map_len=_ITEMS_MAX,
        )
    except NegotiationError as error:
        raise NegotiationError(f"{what}: {error.strerror}") from None
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        problem = printable(str(error), 120) or type(error).__name__
        raise NegotiationError(f"{what}: not msgpack as it should be ({problem})") from None
    if not isinstance(found, dict):
        fail(f"{what}: not a map")
    return Fields(found, what)


def _unique(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            fail("a field's name is not text")
        if key in found:
            fail(f"field '{printable(key, NAME_MAX)}' twice")
        found[key] = value
    return found


def _extension(value: object) -> msgpack.ExtType:
    if isinstance(value, Dag):
        return msgpack.ExtType(_EXT_DAG, str(value).encode("utf-8"))
    if isinstance(value, Expression):
        return msgpack.ExtType(_EXT_EXPRESSION, str(value).encode("utf-8"))
    raise TypeError(f"{type(value).__name__} is not an argument")


def _ext(code: int, data: bytes) -> Value:
    if code not in (_EXT_DAG, _EXT_EXPRESSION):
        fail(f"a value of unknown kind {code}")
    text = data.decode("utf-8")
    if len(text) > TEXT_MAX:
        fail(f"a DAG or expression of {len(text)} characters, more than {TEXT_MAX}")
    try:
        return parse(text) if code == _EXT_DAG else parse_expression(text)
    except OSError as error:
        raise NegotiationError(f"a DAG or expression that is none: {error.strerror}") from None


# -- values -----------------------------------------------------------------------------------------------


def freeze(value: object, what: str) -> Value:
    """An argument as offers and plans hold it: lists have become tuples.  Raises NegotiationError."""
    return _freeze(value, what, 0, [VALUES_MAX])


def _freeze(value: object, what: str, depth: int, left: list[int]) -> Value:
    left[0] -= 1
    if left[0] < 0:
        fail(f"{what}: more than {VALUES_MAX} values")
    if value is None or isinstance(value, (bool, Dag, Expression)):
        return value
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            fail(f"{what}: a number beyond 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            fail(f"{what}: {value} is not a number that can be agreed on")
        return float(value)
    if isinstance(value, str):
        if len(value) > TEXT_MAX:
            fail(f"{what}: a text of {len(value)} characters, more than {TEXT_MAX}")
        return str(value)
    if isinstance(value, (list, tuple)):
        if depth >= DEPTH_MAX:
            fail(f"{what}: lists nested more than {DEPTH_MAX} deep")
        return tuple(_freeze(v, what, depth + 1, left) for v in value)
    fail(f"{what}: {type(value).__name__} is not an argument")


def freeze_args(args: Mapping[str, object], what: str) -> Args:
    """Arguments by name, sorted.  Raises NegotiationError."""
    if len(args) > ARGS_MAX:
        fail(f"{what}: {len(args)} arguments, more than {ARGS_MAX}")
    left = [VALUES_MAX]
    return tuple(
        (check_name(n, what), _freeze(args[n], f"{what}: argument {printable(n, NAME_MAX)}", 0, left))
        for n in sorted(args)
    )


def same(one: Value, other: Value) -> bool:
    """Whether two arguments are the same: 1, 1.0 and True are three."""
    return pack(one) == pack(other)


def check_name(name: object, what: str) -> str:
    """The name, if it is one."""
    if not isinstance(name, str) or len(name) > NAME_MAX or not _NAME.fullmatch(name):
        fail(f"{what}: {printable(repr(name), 80)} is not a name")
    return name


def check_wire(wire: object, what: str) -> str:
    """The wire's name, if it is one."""
    if not isinstance(wire, str) or len(wire) > WIRE_MAX or not _WIRE.fullmatch(wire):
        fail(f"{what}: {printable(repr(wire), 80)} is not a wire")
    return wire


# -- fields -----------------------------------------------------------------------------------------------


class Fields:
    """A map that a stranger sent, read field by field; what is missing or wrong raises NegotiationError."""

    __slots__ = ("_found", "what")

    def __init__(self, found: Mapping[str, Any], what: str) -> None:
        self._found = found
        self.what = what

    def _get(self, name: str) -> object:
        if name not in self._found:
            fail(f"{self.what}: no '{name}'")
        return self._found[name]

    def has(self, name: str) -> bool:
        """Whether the field is there at all."""
        return name in self._found

    def none(self, name: str) -> bool:
        """Whether the field is nil."""
        return self._get(name) is None

    def _bad(self, name: str, wanted: str) -> NoReturn:
        fail(f"{self.what}: '{name}' is not {wanted}")

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._bad(name, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            self._bad(name, "true or false")
        return value

    def text(self, name: str, limit: int) -> str:
        """A text of at most `limit` bytes, made printable."""
        value = self._get(name)
        if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > limit:
            self._bad(name, f"a text of at most {limit} bytes")
        return printable(value, limit)

    def raw(self, name: str, low: int, high: int) -> bytes:
        """From `low` to `high` bytes."""
        value = self._get(name)
        if not isinstance(value, bytes) or not low <= len(value) <= high:
            self._bad(name, f"{low} to {high} bytes" if low != high else f"{low} bytes")
        return value

    def name(self, name: str) -> str:
        """A name."""
        return check_name(self._get(name), f"{self.what}: '{name}'")

    def name_or_none(self, name: str) -> str | None:
        """A name, or nil."""
        return None if self._get(name) is None else self.name(name)

    def wire(self, name: str) -> str:
        """The name of a wire."""
        return check_wire(self._get(name), f"{self.what}: '{name}'")

    def one_of(self, name: str, choices: Mapping[str, T]) -> T:
        """What a text stands for."""
        value = self._get(name)
        if not isinstance(value, str) or value not in choices:
            self._bad(name, f"one of {', '.join(c for c in choices if c) or 'nothing'}")
        return choices[value]

    def args(self, name: str) -> Args:
        """Arguments by name."""
        value = self._get(name)
        if not isinstance(value, dict):
            self._bad(name, "a map")
        return freeze_args(value, self.what)

    def list(self, name: str, limit: int, each: Callable[[object, str], T]) -> tuple[T, ...]:
        """A list of at most `limit`, each read by `each(item, what)`."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) > limit:
            self._bad(name, f"a list of at most {limit}")
        return tuple(each(item, f"{self.what}: {name}[{i}]") for i, item in enumerate(value))

    def map(self, name: str) -> Fields:
        """A map."""
        return as_fields(self._get(name), f"{self.what}: {name}")


def as_fields(value: object, what: str) -> Fields:
    """A map within a message."""
    if not isinstance(value, dict):
        fail(f"{what}: not a map")
    return Fields(value, what)
