"""The thread that looks after the datagram endpoints of `bertha_socket.new`.

Acknowledgements and retransmissions need somebody who is awake when the application is not (decision 0009).
One thread does it for all endpoints of a process, while there are any; the application's threads go in under
the same lock, so that what they send leaves at once.  A socket beneath which code may run that is not ours
has a thread of its own: what such a chunnel blocks is then no other socket's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time

from bertha_socket._endpoint_connection import EndpointError
from bertha_socket.carrier.loop import READ, Loop, Timer

__all__ = ["SharedLoop"]

log = logging.getLogger(__name__)


class SharedLoop(Loop):
    """A loop with a thread of its own.  All that it calls, and all that is said to it, is under `lock`."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self._users = 0
        self._sleeps_until = float("-inf")
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="bertha-datagrams", daemon=True)
        self.watch(self._wake, READ, self._woken)

    @classmethod
    def join(cls, *, alone: bool = False) -> SharedLoop:
        """This process's, or (`alone`) a new one that nobody else joins; `leave` it once what it was for is
        over.  Raises EndpointError: gevent is here."""
        global _shared
        if not hasattr(select, "epoll"):
            raise EndpointError("endpoints of datagrams need select.epoll, which gevent's patches take away")
        with _making:
            if _shared is not None and not alone:
                _shared._users += 1
                return _shared
            made = cls()
            made._users = 1
            if not alone:
                _shared = made
            made._thread.start()
            return made

    def leave(self) -> None:
        """One user less; the last one ends the thread.  May be called by the thread itself."""
        global _shared
        with _making:
            self._users -= 1
            if self._users == 0 and _shared is self:
                _shared = None
        if self._users == 0:
            self.wake()

    def wake(self) -> None:
        """Lets the thread look again."""
        with contextlib.suppress(OSError):  # it has ended
            os.eventfd_write(self._wake, 1)

    def set(self, timer: Timer, at: float | None) -> None:
        """As Loop's; from any thread that has the lock."""
        super().set(timer, at)
        if at is not None and at < self._sleeps_until:
            self.wake()

    def _woken(self, events: int) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_read(self._wake)

    def _run(self) -> None:
        while self._users:
            with self.lock:
                wait = self._patience(None)
                self._sleeps_until = float("inf") if wait < 0 else time.monotonic() + wait
            ready = self._epoll.poll(wait)
            with self.lock:
                self._sleeps_until = float("-inf")
                try:
                    self._call(ready)
                except Exception:  # of one endpoint's; the others go on
                    log.exception("a datagram endpoint failed")
        with self.lock:
            self.close()
            wake, self._wake = self._wake, -1
            os.close(wake)


_making = threading.Lock()
_shared: SharedLoop | None = None


def _forget() -> None:
    """In a forked child there is no such thread, and its parent's sockets are its parent's."""
    global _shared, _making
    _making = threading.Lock()
    _shared = None


os.register_at_fork(after_in_child=_forget)
