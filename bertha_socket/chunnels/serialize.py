"""`serialize(codec=None)`: the application sends and receives objects instead of bytes.

Arguments: `codec`, "msgpack", "json", or one that the application has registered (`register_codec`).  Not
given: the one that the other end names, if it is here, else msgpack.
Endpoints: both.  Wires: "msgpack/1" (values one after the other), "json/1" (UTF-8, a value a line), and
"NAME/1" for a registered one (u32 big-endian length, then so many bytes).  Values delimit themselves, so it
needs no `frame` below.  Programs with ordinary sockets cannot use it: they send bytes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgpack

from bertha_socket.chunnels._types import (
    ChunnelArgumentError,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Interface,
    Parameter,
    Pipe,
)

#: Bytes of one value, at most.
VALUE_MAX: Final = 16 * 1024 * 1024
#: How many codecs of its own an application may have: with msgpack and JSON they are as many wires as an
#: offer has room for (negotiation.offer.WIRES_MAX).
CODECS_MAX: Final = 6
_HEADER: Final = struct.Struct(">I")
#: It is a part of the wire's name (negotiation._codec.check_wire).
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")


class Codec(NamedTuple):
    """An application's own way from objects to bytes, and back."""

    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


_codecs: dict[str, Codec] = {}


def register_codec(name: str, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]) -> None:
    """Makes `serialize(codec=name)` possible in this process, and for who connects to one that names it.

    `dumps` makes an object's bytes, `loads` the object again; a value has 16 MiB at the most, and what either
    raises ends the connection.  To be called before `listen` or `connect`, which settle what is offered.  One
    of the same name is replaced.  Raises ChunnelArgumentError (an OSError): no name, or a seventh codec.
    """
    if not _NAME.fullmatch(name) or name in ("msgpack", "json"):
        raise ChunnelArgumentError(f"serialize: {name!r} is no name for a codec of your own")
    if name not in _codecs and len(_codecs) >= CODECS_MAX:
        raise ChunnelArgumentError(f"serialize: {CODECS_MAX} codecs are registered; no room for {name}")
    _codecs[name] = Codec(dumps, loads)


def _wires(args: Mapping[str, Any]) -> tuple[str, ...]:
    """Raises ChunnelArgumentError: a codec that is not here, before somebody agrees on it."""
    codec = args.get("codec")
    if codec is None:  # the other end may name one
        return ("msgpack/1", "json/1", *(f"{name}/1" for name in list(_codecs)))
    if codec not in ("msgpack", "json", *_codecs):
        raise ChunnelArgumentError(_missing(codec))
    return (f"{codec}/1",)


def _missing(codec: str) -> str:
    return f"serialize: no codec {codec!r} here; bertha_socket.register_codec() it first"


def _codec_problem(value: Any) -> str | None:
    return None if _NAME.fullmatch(str(value)) else "msgpack, json, or the name of a registered codec"


class _Msgpack(Pipe):
    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._unpacker = msgpack.Unpacker(max_buffer_size=VALUE_MAX, strict_map_key=False)
        self._fed = 0

    def down(self, item: Any) -> Iterable[bytes]:
        """The value's bytes."""
        try:
            data: bytes = msgpack.packb(item)
        except (TypeError, ValueError, OverflowError) as error:
            raise ChunnelError(f"serialize: this object cannot be sent as msgpack ({error})") from None
        return (data,)

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[bytes]]:
        """The values that are whole."""
        values = []
        try:
            for at in range(0, len(item), VALUE_MAX // 2):
                part = item[at : at + VALUE_MAX // 2]
                self._unpacker.feed(part)
                self._fed += len(part)
                values += list(self._unpacker)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
            raise ChunnelError(f"serialize: what came is no msgpack ({error})") from None
        return values, ()

    def up_end(self) -> Iterable[Any]:
        """Whole values only."""
        if self._unpacker.tell() != self._fed:
            raise ChunnelError("serialize: the connection ended in the midst of a value")
        return ()


class _Json(Pipe):
    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._got = bytearray()

    def down(self, item: Any) -> Iterable[bytes]:
        """A line."""
        try:
            return (json.dumps(item, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n",)
        except (TypeError, ValueError, RecursionError) as error:
            raise ChunnelError(f"serialize: this object cannot be sent as JSON ({error})") from None

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[bytes]]:
        """The values of whole lines."""
        start = len(self._got)
        self._got += item
        values = []
        at = 0
        while (end := self._got.find(b"\n", max(at, start))) >= 0:
            try:
                values.append(json.loads(bytes(self._got[at:end]), parse_constant=_no_constant))
            except (ValueError, RecursionError) as error:
                raise ChunnelError(f"serialize: what came is no JSON ({error})") from None
            at = end + 1
        del self._got[:at]
        if len(self._got) > VALUE_MAX:
            raise ChunnelError(f"serialize: a value of more than {VALUE_MAX} bytes came")
        return values, ()

    def up_end(self) -> Iterable[Any]:
        """Whole values only."""
        if self._got:
            raise ChunnelError("serialize: the connection ended in the midst of a value")
        return ()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Own(Pipe):
    """A codec that the application brought, each value with its length."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        name = wire.partition("/")[0]
        if name not in _codecs:
            raise ChunnelArgumentError(_missing(name))
        self._codec = _codecs[name]
        self._got = bytearray()

    def down(self, item: Any) -> Iterable[bytes]:
        """Length and value."""
        try:
            data = self._codec.dumps(item)
        except Exception as error:  # the application's own code, whatever it raises
            raise ChunnelError(f"serialize: the codec cannot send this object ({error!r})") from error
        if len(data) > VALUE_MAX:
            raise ChunnelError(f"serialize: a value of {len(data)} bytes, more than {VALUE_MAX}")
        return (_HEADER.pack(len(data)) + data,)

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[bytes]]:
        """The values that are whole."""
        self._got += item
        values = []
        at = 0
        while len(self._got) - at >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._got, at)
            if length > VALUE_MAX:
                raise ChunnelError(f"serialize: a value of {length} bytes came, more than {VALUE_MAX}")
            end = at + _HEADER.size + length
            if len(self._got) < end:
                break
            try:
                values.append(self._codec.loads(bytes(self._got[at + _HEADER.size : end])))
            except Exception as error:  # what came may be anything, and so may what the codec raises
                raise ChunnelError(f"serialize: what came is nothing to the codec ({error!r})") from error
            at = end
        del self._got[:at]
        return values, ()

    def up_end(self) -> Iterable[Any]:
        """Whole values only."""
        if self._got:
            raise ChunnelError("serialize: the connection ended in the midst of a value")
        return ()


def _make(args: Mapping[str, Any], wire: str, side: str, context: Context) -> Pipe:
    kinds: dict[str, type[Pipe]] = {"msgpack/1": _Msgpack, "json/1": _Json}
    return kinds.get(wire, _Own)(args, wire, side, context)


TYPE = ChunnelType(
    name="serialize",
    summary="objects instead of bytes",
    parameters=(
        Parameter("codec", "str", "msgpack, json, or a registered one", None, _codec_problem, agree="equal"),
    ),
    upper=Interface.OBJECTS,
    layer=10,
    wire="msgpack/1, json/1: values one after the other; NAME/1: u32be length and the value",
    implementations=(
        Implementation("python", "serialize", _wires, where="application", make=_make, builtin=True),
    ),
)
