"""One TCP connection between two agents, in the loop: bytes in and out of a state machine, with a deadline.

The machine (negotiation/machine.py) knows the protocol; this knows the socket.  Nothing here waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Final, Protocol

from bertha_socket.agent.loop import READ, WRITE, Loop

_CHUNK: Final = 16384


class Machine(Protocol):
    """A conversation without its I/O (negotiation.machine)."""

    def receive(self, data: bytes) -> None:
        """What has come (b"": the end).  Whatever is wrong with it, the machine makes an event of it."""

    def outgoing(self) -> bytes:
        """What is to be sent now, once."""

    @property
    def finished(self) -> bool:
        """Nothing more will be read."""


class Talk:
    """A connection under way.

    `heard()` is called whenever the machine has received something.  `done(error)` is called once, when the
    conversation has ended; without an error, when the machine says so.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        machine: Machine,
        until: float,
        heard: Callable[[], None],
        done: Callable[[OSError | None], None],
    ) -> None:
        """Takes the socket over."""
        self._loop = loop
        self._sock = sock
        self.machine = machine
        self.until = until
        self._heard = heard
        self._done = done
        self._failure: OSError | None = None
        self._out = bytearray()
        self._connecting = False
        self._watched = 0
        self.closed = False
        sock.setblocking(False)

    def connect(self, address: tuple[str, int]) -> None:
        """Begins; the outcome comes by `done`, never before this returns."""
        self._connecting = True
        number = self._sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS, errno.EINTR):
            # As if it had come later: callers have not yet noted that this is under way.
            self._failure = OSError(number, os.strerror(number))
            self.until = 0.0
            return
        self._watch(WRITE)

    def accepted(self) -> None:
        """Begins on a connection that is there."""
        self._watch(READ)

    @property
    def connected(self) -> bool:
        """Whether the other host has accepted."""
        return not self._connecting

    def flush(self) -> None:
        """Sends what the machine has to say; to be called when it was told something from outside."""
        if self.closed or self._connecting:
            return
        self._out += self.machine.outgoing()
        while self._out:
            try:
                sent = self._sock.send(self._out, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._finish(error)
                return
            del self._out[:sent]
        if not self._out and self.machine.finished:
            self._finish(None)
            return
        self._watch(READ | WRITE if self._out else READ)

    def look(self) -> None:
        """Whether the other host has accepted by now."""
        if self._connecting and not self.closed and self._failure is None:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            if poll.poll(0):
                self._ready()

    def expire(self) -> None:
        """Its time is up."""
        self._finish(self._failure or OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def close(self) -> None:
        """Ends it without a word to `done`."""
        if not self.closed:
            self.closed = True
            if self._watched:
                self._loop.unwatch(self._sock)
            self._sock.close()

    def _finish(self, error: OSError | None) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self.close()
            self._done(error)

    def _watch(self, events: int) -> None:
        if self._watched != events:
            self._loop.watch(self._sock, self._ready, events)
            self._watched = events

    def _ready(self) -> None:
        if self.closed:
            return
        if self._connecting:
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._finish(OSError(number, os.strerror(number)))
                return
            try:
                self._sock.getpeername()
            except OSError:
                return  # woken too early
            self._connecting = False
            self.flush()
            return
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            self.flush()
            return
        except OSError as error:
            self._finish(error)
            return
        self.machine.receive(data)
        self._heard()
        self.flush()
        if not data:
            self._finish(None)  # nothing more will come
