"""`frame(max=16777216)`: message boundaries on a stream.

Arguments: `max`, the longest message in bytes.
Endpoints: both.  Wire: "u32be/1": u32 big-endian length, then so many bytes; a message may be empty.  Above
it each item is one message; a program with a stream socket sends one with each piece that is read of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bertha_socket.chunnels._native import native_probe
from bertha_socket.chunnels._types import (
    NATIVE_PRIORITY,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Interface,
    Parameter,
    Pipe,
    between,
    octets,
    wires,
)

WIRE: Final = "u32be/1"
_HEADER: Final = struct.Struct(">I")
_MAX: Final = 16 * 1024 * 1024


class FramePipe(Pipe):
    """Lengths before messages."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._max = int(args.get("max", _MAX))
        self._got = bytearray()

    def down(self, item: Any) -> Iterable[bytes]:
        """Length and message."""
        data = octets(item, "frame")
        if len(data) > self._max:
            raise ChunnelError(f"frame: a message of {len(data)} bytes, more than {self._max}; raise max")
        return (_HEADER.pack(len(data)) + data,)

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """The messages that are whole."""
        self._got += item
        messages = []
        at = 0
        while len(self._got) - at >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._got, at)
            if length > self._max:
                raise ChunnelError(f"frame: a message of {length} bytes came, more than {self._max}")
            end = at + _HEADER.size + length
            if len(self._got) < end:
                break
            messages.append(bytes(self._got[at + _HEADER.size : end]))
            at = end
        del self._got[:at]
        return messages, ()

    def up_end(self) -> Iterable[bytes]:
        """Whole messages only."""
        if self._got:
            raise ChunnelError("frame: the connection ended in the midst of a message")
        return ()


TYPE = ChunnelType(
    name="frame",
    summary="message boundaries on a stream",
    parameters=(Parameter("max", "int", "the longest message, bytes", _MAX, between(1, (1 << 32) - 1)),),
    upper=Interface.MESSAGES,
    layer=30,
    wire="u32be/1: u32be length and the message",
    implementations=(
        Implementation(
            "native",
            "frame",
            wires(WIRE),
            priority=NATIVE_PRIORITY,
            carrier="native",
            native_datagrams=True,
            probe=native_probe("frame"),
            builtin=True,
        ),
        Implementation("python", "frame", wires(WIRE), make=FramePipe, builtin=True),
    ),
)
