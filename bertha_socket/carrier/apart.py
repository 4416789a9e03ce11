"""Connections with chunnels that are not ours run in a process of their own, forked from the carrier.

A chunnel that raises, blocks, leaks or crashes so takes down its own connection, and nothing else.  The
carrier keeps the sockets open meanwhile, so that it can reset a connection whose process has died.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import resource
import signal
import struct
import time
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

from bertha_socket.carrier.connection import Connection, reset
from bertha_socket.carrier.loop import READ, Loop, Timer
from bertha_socket.carrier.plans import log_text
from bertha_socket.carrier.session import Session, State
from bertha_socket.carrier.shim import Status

log: Final = logging.getLogger(__name__)

#: Seconds that a chunnel may take for one piece.
BLOCKED_SECONDS: Final = 10.0
#: Bytes of address space beyond what the carrier has.
MEMORY: Final = 512 * 1024 * 1024
_LOOK_SECONDS: Final = 1.0
_SINCE: Final = struct.Struct("=dI")


def log_counts(session: Session) -> None:
    """What the connection's chunnels have counted."""
    counts = session.context.counts
    if counts:
        line = " ".join(f"{name}={number}" for name, number in sorted(counts.items()))
        log.info("%s %s: ended, %s", session.side, session.context.peer, line)


class _Child:
    """A connection's process, as the carrier sees it."""

    def __init__(self, pid: int, connection: Connection, status: Status, page: mmap.mmap) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.connection = connection
        self.status = status
        self.page = page
        self.why = ""

    def blocked(self, now: float) -> bool:
        since, _ = _SINCE.unpack_from(self.page)
        return bool(since) and now - since > BLOCKED_SECONDS


class Apart:
    """The processes of one carrier's connections."""

    def __init__(self, loop: Loop, ended: Callable[[], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._children: set[_Child] = set()
        self._timer = Timer(self._look)

    @property
    def busy(self) -> bool:
        """Whether there are any."""
        return bool(self._children)

    def start(self, connection: Connection, status: Status) -> None:
        """Gives the connection to a new process."""
        connection.detach()
        page = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the child
        try:
            pid = os.fork()
        except OSError as error:
            why = f"no process for its chunnels: {error.strerror}"
            self._fail(connection, status, page, why, State.REFUSED)
            return
        if pid == 0:
            _child(connection, status, page)
        child = _Child(pid, connection, status, page)
        self._children.add(child)
        self._loop.watch(child.pidfd, READ, lambda _: self._gone(child))
        if self._timer.at is None:
            self._loop.set(self._timer, time.monotonic() + _LOOK_SECONDS)

    def _look(self, now: float) -> None:
        for child in self._children:
            if child.blocked(now) and not child.why:
                child.why = f"a chunnel made no progress for {BLOCKED_SECONDS:.0f} s; its process was ended"
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        if self._children:
            self._loop.set(self._timer, now + _LOOK_SECONDS)

    def _gone(self, child: _Child) -> None:
        self._loop.watch(child.pidfd, None, lambda _: None)
        _, code = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        self._children.discard(child)
        connection = child.connection
        if code == 0:
            connection.tcp.close()
            connection.pair.close()
            child.page.close()
        else:
            why = child.why
            if not why:
                how = (
                    f"signal {os.WTERMSIG(code)}"
                    if os.WIFSIGNALED(code)
                    else f"status {os.WEXITSTATUS(code)}"
                )
                why = f"the process of its chunnels died ({how})"
            self._fail(connection, child.status, child.page, why, State.RAISED)
        self._ended()

    def _fail(self, connection: Connection, status: Status, page: mmap.mmap, why: str, state: State) -> None:
        session = connection.session
        log.error("%s %s: %s", session.side, session.context.peer, why)
        _, was = _SINCE.unpack_from(page)
        ran = log_text(session.recipe.plan) if session.recipe is not None and was == State.READY else ""
        status.write(state, ran, why)
        reset(connection.tcp)
        connection.tcp.close()
        connection.pair.close()
        page.close()


def _child(old: Connection, status: Status, page: mmap.mmap) -> NoReturn:
    """Runs one connection to its end, in the new process.  Never returns."""
    code = 70
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        keep = {0, 1, 2, old.tcp.fileno(), old.pair.fileno(), status.fd}
        _close_others(keep)
        _limit_memory()
        _become_owner(status.fd)
        _SINCE.pack_into(page, 0, 0.0, 0)
        loop = Loop()
        session = old.session
        over: list[Connection] = []

        def busy(at_work: bool) -> None:
            _SINCE.pack_into(page, 0, time.monotonic() if at_work else 0.0, session.state)

        def settled() -> None:
            if session.counted is not None:
                status.change(session.counted.changes())

        connection = Connection(loop, old.tcp, old.pair, session, over.append, busy, settled=settled)
        connection.take_over(old)
        connection.run(session.go_on)
        while not over:
            loop.turn()
        log_counts(session)
        code = 0
    except BaseException:  # nothing of this may run on in the carrier's place
        with contextlib.suppress(BaseException):
            log.error("%s", traceback.format_exc())
    finally:
        os._exit(code)


def _close_others(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _become_owner(status_fd: int) -> None:
    """From root to the user whose program made the status memory: chunnels may touch files."""
    owner = os.fstat(status_fd)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
