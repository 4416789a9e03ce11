"""`reliable` in C (native/chunnels/reliable.c), as a pipe: what it does is what reliable.py describes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bertha_socket.chunnels._types import ChunnelError, Context, Pipe, octets

try:
    from bertha_socket._native import ffi, lib

    _open: Final = lib.reliable_pipe_open
except (ImportError, AttributeError):  # built without it, or before there was one
    ffi = lib = None

#: Bytes of output for which memory is kept from one call to the next.
_KEPT: Final = 16384
_FULL, _ENDED, _LINGERS, _FLAGS = 1, 2, 4, 7
_UPS, _DOWNS = 8, 32
_NONE: Final[tuple[tuple[bytes, ...], tuple[bytes, ...]]] = ((), ())
Moved = tuple[Iterable[bytes], Iterable[bytes]]


def usable() -> str | None:
    """None: it is built; else why not."""
    return "the extension is built without it" if lib is None else None


class NativeReliablePipe(Pipe):
    """One end."""

    def __init__(
        self, args: Mapping[str, Any], wire: str, side: str, context: Context, first: int = 1
    ) -> None:
        """`first`: the first number in both directions, for tests of what happens where numbers go around."""
        super().__init__(args, wire, side, context)
        why = usable()
        if why is not None:
            raise ChunnelError(f"reliable: {why}")
        mtu, give_up = int(args.get("mtu", 1200)), float(args.get("give_up", 30.0))
        made = lib.reliable_pipe_open(side == "server", mtu, give_up, secrets.randbits(32), first)
        if made == ffi.NULL:
            raise ChunnelError("reliable: no memory")
        self._pipe = ffi.gc(made, lib.reliable_pipe_close)
        self._flags = 0
        self._deadline: float | None = None

    def start(self) -> Iterable[bytes]:
        """The client's hello."""
        return self._gave(lib.reliable_pipe_start(self._pipe, self.context.clock()))[1]

    def down(self, item: Any) -> Iterable[bytes]:
        """Datagrams for one message."""
        data = octets(item, "reliable")
        return self._gave(lib.reliable_pipe_down(self._pipe, data, len(data), self.context.clock()))[1]

    def down_end(self) -> Iterable[bytes]:
        """The end, which has a number as data has."""
        return self._gave(lib.reliable_pipe_down_end(self._pipe, self.context.clock()))[1]

    def up(self, item: Any) -> Moved:
        """Messages, and acknowledgements."""
        data = item if isinstance(item, bytes) else bytes(item)
        return self._gave(lib.reliable_pipe_up(self._pipe, data, len(data), self.context.clock()))

    def up_end(self) -> Iterable[bytes]:
        """After the other end's end only."""
        if not self.ended_up:
            raise ChunnelError("reliable: the connection was cut off")
        return ()

    def deadline(self) -> float | None:
        """The retransmission timer, a delayed acknowledgement, or the rest after the end."""
        return self._deadline

    def tick(self, now: float) -> Moved:
        """What time brings."""
        return self._gave(lib.reliable_pipe_tick(self._pipe, now))

    def _gave(self, said: int) -> Moved:
        """What a call has given (native/cffi/reliable_pipe.h).  Raises ChunnelError."""
        pipe = self._pipe
        if said < 0:
            self._deadline = None
            why = ffi.string(lib.reliable_pipe_why(pipe)).decode() if said == -1 else ""
            raise ChunnelError(why or "reliable: one connection was used by two threads at once")
        deadline = pipe.deadline
        self._deadline = None if deadline == math.inf else deadline
        flags = said & _FLAGS
        if flags != self._flags:
            self._flags = flags
            self.full_down = flags & _FULL != 0
            self.ended_up = flags & _ENDED != 0
            self.lingers_down = flags & _LINGERS != 0
        ups, downs = said >> _UPS & 0xFFFFFF, said >> _DOWNS
        count = ups + downs
        if not count:
            return _NONE
        size = pipe.size
        whole: bytes = ffi.buffer(pipe.bytes, size)[:] if size else b""
        if count == 1:
            return ((whole,), ()) if ups else ((), (whole,))
        items = []
        at = 0
        for n in ffi.unpack(pipe.sizes, count):
            items.append(whole[at : at + n])
            at += n
        if size > _KEPT:
            lib.reliable_pipe_taken(pipe)
        return items[:ups], items[ups:]
