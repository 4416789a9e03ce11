"""One TCP connection between two agents, in the loop: bytes in and out of a state machine, with a deadline.

The machine (negotiation/machine.py) knows the protocol; this knows the socket.  Nothing here waits, also
where a shim has the socket, too, and has taken O_NONBLOCK off it; but connect() knows no other way, so that
sockets for other users' questions are the agent's own (kept.py).  When a conversation has ended with an
answer, the connection can be had again for the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
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

    @property
    def clean(self) -> bool:
        """It has ended with an answer, and nothing else has come: another one may follow."""


class Talk:
    """A connection, with one conversation at a time."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        """Takes the socket over."""
        self._loop = loop
        self._sock = sock
        self._machine: Machine | None = None
        self.until = 0.0
        self._heard: Callable[[], None] = lambda: None
        self._done: Callable[[OSError | None], None] = lambda error: None
        self._woken: Callable[[], None] | None = None
        self._lost: Callable[[], None] = lambda: None
        self._failure: OSError | None = None
        self._out = bytearray()
        self._connecting = False
        self._watched = 0
        self.closed = False
        #: Seconds until the other host had accepted.
        self.took = 0.0
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            # A second question must not wait for the acknowledgement of the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(
        self,
        machine: Machine,
        until: float,
        heard: Callable[[], None],
        done: Callable[[OSError | None], None],
    ) -> None:
        """The next conversation, which must be over at `until` (monotonic seconds).

        `heard()` is called whenever the machine has received something.  `done(error)` is called once, when
        the conversation has ended; without an error, when the machine says so.  The connection is closed by
        then unless the machine is `clean`: then whoever is called begins another one, calls `rest`, or
        closes it.
        """
        self._machine, self.until, self._heard, self._done = machine, until, heard, done

    def connect(self, address: tuple[str, int]) -> None:
        """Connects first; the outcome comes by `done`, never before this returns."""
        self._connecting = True
        self.took = time.monotonic()
        self._sock.setblocking(False)  # there is no flag for that; it may be our own user's, too
        number = self._sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS, errno.EINTR):
            # As if it had come later: callers have not yet noted that this is under way.
            self._failure = OSError(number, os.strerror(number))
            self.until = 0.0
            return
        self._watch(WRITE)

    def rest(self, woken: Callable[[], None] | None = None, lost: Callable[[], None] = lambda: None) -> None:
        """Waits without a conversation.

        `woken()`: something has come, or the end, and the next conversation is to begin.  Without it the
        other end has nothing to say: the connection is then closed, and `lost()` called.
        """
        self._machine, self._woken, self._lost = None, woken, lost
        self._watch(READ)

    @property
    def connected(self) -> bool:
        """Whether the other host has accepted."""
        return not self._connecting

    def flush(self) -> None:
        """Sends what the machine has to say; on a connection that is there, `begin` needs this too."""
        machine = self._machine
        if self.closed or self._connecting or machine is None:
            return
        self._out += machine.outgoing()
        while self._out:
            try:
                sent = self._sock.send(self._out, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._finish(error)
                return
            del self._out[:sent]
        if not self._out and machine.finished:
            self._finish(None)
            return
        self._watch(READ | WRITE if self._out else READ)

    def look(self) -> None:
        """Whether the other host has accepted, or answered, by now."""
        if not self.closed and self._failure is None:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT if self._connecting else select.POLLIN)
            if poll.poll(0):
                self._ready()

    def expire(self) -> None:
        """The conversation's time is up."""
        self._finish(self._failure or OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def close(self) -> None:
        """Ends it without a word to `done` or `lost`."""
        if not self.closed:
            self.closed = True
            if self._watched:
                self._loop.unwatch(self._sock)
            with contextlib.suppress(OSError):  # others may have the socket too
                self._sock.shutdown(socket.SHUT_WR)
            self._sock.close()

    def _finish(self, error: OSError | None) -> None:
        if not self.closed:
            if error is not None or self._machine is None or not self._machine.clean:
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
            self._has_connected()
            return
        if self._machine is None and self._woken is not None:
            self._woken()
        machine = self._machine
        if machine is None:
            if not self.closed:
                self.close()
                self._lost()
            return
        try:
            data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            self.flush()
            return
        except OSError as error:
            self._finish(error)
            return
        machine.receive(data)
        self._heard()
        self.flush()
        if not data:
            self._finish(None)  # nothing more will come

    def _has_connected(self) -> None:
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._finish(OSError(number, os.strerror(number)))
            return
        try:
            self._sock.getpeername()
        except OSError:
            return  # woken too early
        self._connecting = False
        self.took = time.monotonic() - self.took
        self.flush()
