"""Processes forked from the carrier, for code that is not ours: bounded, watched, and ended when they hang.

What raises, blocks, leaks or crashes in one so takes down that process, and nothing else.  Each has a process
group of its own, which ends with it: what it has forked has its sockets, too.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import mmap
import os
import resource
import signal
import struct
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from bertha_socket._native import ffi
from bertha_socket.carrier.loop import READ, Loop, Timer

log: Final = logging.getLogger(__name__)

#: Seconds that a chunnel may take for one piece.
BLOCKED_SECONDS: Final = 10.0
#: Bytes of address space beyond what the carrier has.
MEMORY: Final = 512 * 1024 * 1024
_LOOK_SECONDS: Final = 1.0
_SINCE: Final = struct.Struct("=dI")
#: The status of a process whose work is done: nobody else's code ends by it.
_DONE: Final = 113


class User(NamedTuple):
    """Whose program it is, by the word of the agent, which has asked the kernel."""

    uid: int
    gid: int


class Progress:
    """A word in memory that the carrier and one of its processes share: since when it is at work."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def say(self, at_work: bool, note: int = 0) -> None:
        """In the process.  `note`: a number of its own, for whoever is told of its end."""
        _SINCE.pack_into(self._page, 0, time.monotonic() if at_work else 0.0, note)

    @property
    def note(self) -> int:
        """What it has noted last."""
        _, note = _SINCE.unpack_from(self._page)
        return int(note)

    @property
    def since(self) -> Any:
        """Where it stands since when the process is at work (a double), as C sees it."""
        return ffi.from_buffer(self._page)

    def blocked(self, now: float) -> bool:
        """Whether it has been at one piece for too long."""
        since, _ = _SINCE.unpack_from(self._page)
        return bool(since) and now - since > BLOCKED_SECONDS

    def close(self) -> None:
        """Nobody looks any more."""
        self._page.close()


def blocked_text() -> str:
    """What is said of one that was ended because it blocked."""
    return f"a chunnel made no progress for {BLOCKED_SECONDS:.0f} s; its process was ended"


class _Process:
    def __init__(self, pid: int, progress: Progress, gone: Callable[[str, int], None]) -> None:
        """Raises OSError: it cannot be watched, and has been ended."""
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self.progress = progress
        self.gone = gone
        self.why = ""


class Processes:
    """Those of one carrier."""

    def __init__(self, loop: Loop, ended: Callable[[], None]) -> None:
        """`ended`: called when one has."""
        self._loop = loop
        self._ended = ended
        self._running: set[_Process] = set()
        self._timer = Timer(self._look)

    @property
    def busy(self) -> bool:
        """Whether there are any."""
        return bool(self._running)

    def start(
        self,
        run: Callable[[Progress], None],
        keep: set[int],
        user: User,
        gone: Callable[[str, int], None],
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Calls `run` in a new process, which has the descriptors `keep` alone, and is that of `user`; before
        it may take no more memory than is its own, `prepare`.  At its end `gone` is called with the reason
        ("": `run` has returned) and its last note.  Raises OSError, also where it cannot be that user's."""
        if os.geteuid() not in (0, user.uid):
            raise OSError(errno.EPERM, "the carrier is another user's, who is not root")
        progress = Progress()
        try:
            pid = os.fork()
        except OSError:
            progress.close()
            raise
        if pid == 0:
            _child(run, keep, user, progress, prepare)
        try:
            process = _Process(pid, progress, gone)
        except OSError:
            progress.close()
            raise
        self._running.add(process)
        self._loop.watch(process.pidfd, READ, lambda _: self._gone(process))
        if self._timer.at is None:
            self._loop.set(self._timer, time.monotonic() + _LOOK_SECONDS)

    def _look(self, now: float) -> None:
        for process in self._running:
            if process.progress.blocked(now) and not process.why:
                process.why = blocked_text()
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        if self._running:
            self._loop.set(self._timer, now + _LOOK_SECONDS)

    def _gone(self, process: _Process) -> None:
        self._loop.watch(process.pidfd, None, lambda _: None)
        with contextlib.suppress(OSError):  # before it is buried, so that the number is still its own
            os.killpg(process.pid, signal.SIGKILL)
        _, code = os.waitpid(process.pid, 0)
        os.close(process.pidfd)
        self._running.discard(process)
        done = os.WIFEXITED(code) and os.WEXITSTATUS(code) == _DONE
        why = "" if done else process.why
        if not done and not why:
            how = f"signal {os.WTERMSIG(code)}" if os.WIFSIGNALED(code) else f"status {os.WEXITSTATUS(code)}"
            why = f"the process of its chunnels died ({how})"
        note = process.progress.note
        process.progress.close()
        process.gone(why, note)
        self._ended()


def _child(
    run: Callable[[Progress], None],
    keep: set[int],
    user: User,
    progress: Progress,
    prepare: Callable[[], None],
) -> NoReturn:
    """The new process, to its end.  Never returns."""
    code = 70
    # What the carrier has not collected yet closes descriptors when it is, whose numbers are others' here.
    gc.freeze()
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _close_others({0, 1, 2} | keep)
        prepare()
        _limit_memory()
        _become(user)
        progress.say(False)
        run(progress)
        code = _DONE
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


def _become(user: User) -> None:
    """From root to the program's user: chunnels may touch files."""
    if os.geteuid() == 0 and user.uid != 0:
        os.setgroups([])
        os.setgid(user.gid)
        os.setuid(user.uid)


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
