"""Work that may take long, done by forked children so that the agent never waits.

A child gets a copy of everything the agent knows, writes its outcome into a memory file and ends; its end
is an event of the loop.  One that takes too long is killed and counts as failed at once, also where the
kernel lets it die only later.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from bertha_socket.agent import memory

_T = TypeVar("_T")

_AT_ONCE: Final = 16
_AT_ONCE_PER_USER: Final = 2

#: In the child: writes its outcome to the descriptor.
Work = Callable[[int], None]
#: In the agent: the memory file with the outcome (closed afterwards), or None: it failed.
Done = Callable[[int | None], None]


@dataclass(eq=False, slots=True)
class _Errand:
    uid: int
    seconds: float
    until: float
    work: Work
    done: Done
    pid: int = 0
    pidfd: int = -1
    outcome: int = -1
    answered: bool = False


def tell_all(asked: Iterable[Callable[[_T], None]], outcome: _T) -> None:
    """Calls each with the outcome, whatever becomes of the others; raises the first mistake afterwards."""
    first: Exception | None = None
    for done in asked:
        try:
            done(outcome)
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


class Errands:
    """The children of one agent, and those that wait for their turn."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        #: Called with a mistake in `tick`, where nobody else would hear of it.
        self.failed: Callable[[BaseException], None] = lambda error: None
        self._waiting: list[_Errand] = []
        #: Children not yet buried, those that were given up included.
        self._children: set[_Errand] = set()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an outcome."""
        return bool(self._waiting) or any(not e.answered for e in self._children)

    def run(self, uid: int, seconds: float, work: Work, done: Done) -> None:
        """Has `work` done on behalf of a user.  `done` is called once, within `seconds` or a little more,
        and never before this returns."""
        self._waiting.append(_Errand(uid, seconds, time.monotonic() + seconds, work, done))
        self._start()

    def _start(self) -> None:
        for errand in list(self._waiting):
            mine = sum(1 for e in self._children if e.uid == errand.uid)
            if mine >= _AT_ONCE_PER_USER:
                continue
            if len(self._children) >= _AT_ONCE or not self._fork(errand):
                return
            self._waiting.remove(errand)

    def _fork(self, errand: _Errand) -> bool:
        """False when there is no memory, descriptor or process left for it now."""
        try:
            errand.outcome = memory.make_file("bertha-outcome")
            try:
                errand.pid = os.fork()
                if errand.pid == 0:
                    _child(errand)
                errand.pidfd = os.pidfd_open(errand.pid)
            except OSError:
                os.close(errand.outcome)
                raise
        except OSError:
            if errand.pid:
                os.kill(errand.pid, signal.SIGKILL)
                os.waitpid(errand.pid, 0)
                errand.pid = 0
            return False
        self._children.add(errand)
        self._selector.register(errand.pidfd, selectors.EVENT_READ, lambda: self._ended(errand))
        return True

    def _ended(self, errand: _Errand) -> None:
        self._selector.unregister(errand.pidfd)
        os.close(errand.pidfd)
        self._children.discard(errand)
        status = 1
        with contextlib.suppress(ChildProcessError):
            status = os.waitpid(errand.pid, 0)[1]
        try:
            self._answer(errand, status == 0)
        finally:
            self._start()

    @staticmethod
    def _answer(errand: _Errand, good: bool) -> None:
        if errand.answered:
            return
        errand.answered = True
        try:
            errand.done(errand.outcome if good else None)
        finally:
            if errand.outcome >= 0:
                os.close(errand.outcome)

    def deadline(self) -> float | None:
        """When `tick` has something to do without an event; None: never."""
        times = [e.until for e in self._waiting]
        times += [e.until for e in self._children if not e.answered]
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Gives up what has had its time."""
        for errand in list(self._children):
            if errand.until <= now and not errand.answered:
                os.kill(errand.pid, signal.SIGKILL)  # not buried yet, so the number is still its own
                self._give_up(errand)
        for errand in list(self._waiting):
            if errand.until <= now:
                self._waiting.remove(errand)
                self._give_up(errand)

    def _give_up(self, errand: _Errand) -> None:
        try:
            self._answer(errand, False)
        except Exception as error:  # of who waits for it: the others' time passes all the same
            self.failed(error)

    def close(self) -> None:
        """Kills all children."""
        for errand in self._children:
            os.kill(errand.pid, signal.SIGKILL)
        self._waiting.clear()


def _child(errand: _Errand) -> None:
    """Never returns."""
    status = 1
    try:
        memory.die_with_parent()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        errand.work(errand.outcome)
        status = 0
    finally:
        os._exit(status)
