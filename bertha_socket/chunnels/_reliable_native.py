"""`reliable` in C (native/chunnels/reliable.c), as a pipe: what it does is what reliable.py describes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bertha_socket.chunnels._types import ChunnelError, Context, Pipe, octets, pieces

try:
    from bertha_socket._native import ffi, lib

    _open: Final = lib.reliable_pipe_open
except (ImportError, AttributeError):  # built without it, or before there was one
    ffi = lib = None


class Held:
    """struct reliable_held: what the connections that share it hold of what has come."""

    def __init__(self, early_max: int = 1 << 62) -> None:
        #: Came out of order; what would make it more than early_max is as if it were lost.
        self.early = 0
        #: Of messages that are not whole.
        self.begun = 0
        self.early_max = early_max


def held_by_all(early_max: int) -> Any:
    """One for connections of either implementation."""
    if lib is None:
        return Held(early_max)
    made = ffi.new("struct reliable_held *")
    made.early_max = early_max
    return made


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
        most = int(args.get("message_max", 0))
        held = context.held if context.held is not None else ffi.NULL
        number = secrets.randbits(32)
        made = lib.reliable_pipe_open(side == "server", mtu, give_up, number, first, most, held)
        if made == ffi.NULL:
            raise ChunnelError("reliable: no memory")
        # What is shared stays for as long as it is needed.
        self._pipe = ffi.gc(made, lambda pipe, held=held: lib.reliable_pipe_close(pipe))
        self._piece = int(args.get("piece", 0))
        self._flags = 0
        self._deadline: float | None = None

    def start(self) -> Iterable[bytes]:
        """The client's hello."""
        return self._gave(lib.reliable_pipe_start(self._pipe, self.context.clock()))[1]

    def down(self, item: Any) -> Iterable[bytes]:
        """Datagrams for one message."""
        data = octets(item, "reliable")
        return [out for piece in pieces(data, self._piece) for out in self._said(piece)]

    def _said(self, data: bytes) -> Iterable[bytes]:
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

    def close(self) -> None:
        """Nothing of what has come is held any more."""
        lib.reliable_pipe_drop(self._pipe)
        self._deadline = None

    @property
    def begun_at(self) -> float:  # type: ignore[override]
        """When the message began that is not whole yet; inf: there is none."""
        found: float = lib.reliable_pipe_begun_at(self._pipe)
        return found

    @property
    def answered(self) -> bool:  # type: ignore[override]
        """Whether the other end has ever acknowledged anything."""
        return bool(lib.reliable_pipe_answered(self._pipe))

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
