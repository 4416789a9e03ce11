"""The program's end of a carried connection: a socketpair, or rings with one beneath (native/core/hop.h)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from bertha_socket.carrier.loop import READ, WRITE, Loop

#: Bytes per read.
CHUNK: Final = 64 * 1024
_IOV_MAX: Final = 64
#: What the socketpair beneath rings may tell, once each.  Not of room: each bell that is taken off is some.
_EDGES: Final = READ | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET

Call = Callable[[int], None]


class End(Protocol):
    """What a connection asks of it.  Sizes and errors are those of a socket that does not block."""

    def recv(self) -> bytes:
        """Some of what the program has sent; nothing: its end.  Raises OSError."""

    def send(self, queue: deque[Any]) -> int:
        """How many of the queue's bytes the program will have.  Raises OSError."""

    def end(self) -> None:
        """Nothing more will be sent to the program."""

    def watch(self, loop: Loop, events: int | None, call: Call) -> None:
        """As `Loop.watch`."""

    def close(self, in_order: bool) -> None:
        """`in_order`: the program was told of the end.  Where a child had it, and has ended: only lets go."""

    def descriptors(self) -> set[int]:
        """What a process that takes it over needs."""

    def pack(self) -> None:
        """Before a fork: it goes to the child, and this process only waits for that to end."""

    def unpack(self) -> None:
        """In the child.  Raises OSError."""

    def given(self) -> None:
        """In the parent, once there is a child."""

    def abandon(self) -> None:
        """The child that had it has died, or there was none."""


class Pair:
    """By the socketpair alone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._watched: tuple[Loop, Call] | None = None

    def recv(self) -> bytes:
        return self._sock.recv(CHUNK)

    def send(self, queue: deque[Any]) -> int:
        return self._sock.sendmsg(some(queue), (), socket.MSG_NOSIGNAL)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def watch(self, loop: Loop, events: int | None, call: Call) -> None:
        self._watched = (loop, call)
        loop.watch(self._sock.fileno(), events, call)

    def _unwatch(self) -> None:
        if self._watched is not None:
            loop, call = self._watched
            loop.watch(self._sock.fileno(), None, call)
            self._watched = None

    def close(self, in_order: bool) -> None:
        self._unwatch()
        self._sock.close()

    def descriptors(self) -> set[int]:
        return {self._sock.fileno()}

    def pack(self) -> None:
        self._unwatch()

    def unpack(self) -> None:
        pass

    def given(self) -> None:
        pass

    def abandon(self) -> None:
        _cut(self._sock)


class Core:
    """The shim's core in this process."""

    def __init__(self) -> None:
        from bertha_socket._rings import ffi, lib

        self.ffi, self.lib = ffi, lib
        self.usable = bool(lib.hop_init())
        self.buffer = ffi.new("char[]", CHUNK)
        #: The links that are mapped.
        self.links: set[Any] = set()


@functools.cache
def core() -> Core:
    return Core()


class Link:
    """One of a program's links, mapped; until neither the program nor a connection of its needs it."""

    def __init__(self, fd: int, index: int) -> None:
        """Takes the descriptor over.  Raises OSError: it is no link, or there is no room."""
        self.link = None
        try:
            self.core = core()
        except ImportError:
            os.close(fd)
            raise _error(errno.ENOSYS) from None
        if not self.core.usable:
            os.close(fd)
            raise _error(errno.ENOMEM)
        self.link = self.core.lib.hop_adopt(fd, index, True) or None
        if self.link is None:
            raise _error(errno.EINVAL)
        self.core.links.add(self.link)

    def drop_others(self) -> None:
        """In a child that has one connection of this one."""
        for link in self.core.links - {self.link}:
            self.core.lib.link_drop(link)
        self.core.links.intersection_update({self.link})

    def __del__(self) -> None:
        # Not one of those that a child does without.
        if self.link is not None and self.link in self.core.links:
            self.core.links.discard(self.link)
            self.core.lib.link_drop(self.link)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Rings:
    """Over a slot's rings.  `bell` tells that the program has done something, the socketpair of ends."""

    def __init__(self, link: Link, slot: int, sock: socket.socket, bell: int) -> None:
        """Takes both descriptors over when it succeeds.  Raises OSError: there is no such slot."""
        self._link: Link | None = link
        self._lib, self._ffi = link.core.lib, link.core.ffi
        self._slot = slot
        self._sock = sock
        self._fd = sock.fileno()
        self._conn = self._lib.hop_open(link.link, slot, self._fd) or None
        if self._conn is None:
            raise _error(errno.EINVAL)
        sock.setblocking(False)
        self._bell = bell
        self._use = self._lib.hop_use(link.link, slot)
        self._buffer = link.core.buffer
        self._packed: Any = None
        self._loop: Loop | None = None
        self._call: Call | None = None
        self._wish = 0
        self._deaf = True  # not even a hang-up is to be told
        self._hung_up = False

    def recv(self) -> bytes:
        n = self._lib.hop_recv(self._conn, self._fd, self._buffer, CHUNK)
        if n < 0:
            raise _error(self._ffi.errno)
        if n == 0:
            return b""
        return self._ffi.unpack(self._buffer, n)  # type: ignore[no-any-return]

    def send(self, queue: deque[Any]) -> int:
        sent = 0
        for item in some(queue):
            size = len(item)
            if size == 0:
                continue
            n = self._lib.hop_send(self._conn, self._fd, self._ffi.from_buffer(item), size)
            if n < 0:
                if sent:
                    break  # the next call tells
                raise _error(self._ffi.errno)
            sent += n
            if n < size:
                break
        return sent

    def end(self) -> None:
        self._lib.hop_end(self._conn, self._fd)

    def watch(self, loop: Loop, events: int | None, call: Call) -> None:
        if self._loop is None:
            self._loop = loop
            loop.watch(self._fd, _EDGES, self._told)
            with contextlib.suppress(OSError):  # what cannot be watched is no bell of a shim's
                loop.watch(self._bell, READ | select.EPOLLET, self._rung)
        self._call, self._wish, self._deaf = call, events or 0, events is None
        if self._ready():
            loop.soon(self._look)

    def _ready(self) -> int:
        """What is to be told now; if nothing is, the bell tells.  The program is told what was done."""
        ready: int = self._lib.hop_wait(self._conn, self._fd, self._wish)
        if ready & self._lib.HOP_LEFT:
            ready &= ~self._lib.HOP_LEFT
            if self._loop is not None:
                self._loop.watch(self._fd, _EDGES | WRITE, self._told)
        return ready if not self._hung_up or self._deaf else ready | select.EPOLLHUP

    def _told(self, events: int) -> None:
        if self._conn is not None:
            self._lib.hop_event(self._conn, self._fd, events)
            self._hung_up |= bool(events & (select.EPOLLHUP | select.EPOLLERR))
            self._look()

    def _rung(self, _events: int) -> None:
        self._look()

    def _look(self) -> None:
        if self._conn is None or self._call is None:
            return
        ready = self._ready()
        if ready:
            self._call(ready)

    def _unwatch(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.watch(self._fd, None, self._told)
            loop.watch(self._bell, None, self._rung)

    def close(self, in_order: bool) -> None:
        self._unwatch()
        conn, self._conn = self._conn, None
        if conn is not None:
            self._lib.hop_close(conn, self._fd, in_order)
        self._let_go()

    def _let_go(self) -> None:
        self._link = self._call = None
        self._sock.close()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def descriptors(self) -> set[int]:
        return {self._fd, self._bell}

    def pack(self) -> None:
        self._unwatch()
        conn, self._conn = self._conn, None
        self._packed = self._ffi.new("char[]", self._lib.hop_packed_size())
        self._lib.hop_pack(conn, self._fd, self._packed)

    def unpack(self) -> None:
        assert self._link is not None
        self._link.drop_others()
        if self._lib.hop_alone():
            self._conn = self._lib.hop_unpack(self._packed, self._fd) or None
        if self._conn is None:
            raise _error(errno.ENOMEM)

    def given(self) -> None:
        os.close(self._bell)
        self._bell = -1

    def abandon(self) -> None:
        assert self._link is not None
        self._lib.hop_abandon(self._link.link, self._slot, self._use)
        _cut(self._sock)
        self._let_go()


def _cut(sock: socket.socket) -> None:
    """Closes it for whoever else may have it: what the child that had it has forked."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def some(queue: deque[Any]) -> list[Any]:
    """As many items as a call takes."""
    return [queue[i] for i in range(min(len(queue), _IOV_MAX))]
