"""Waits for descriptors and for times; calls back.  One thread, and nothing runs while nothing happens."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
#: Events that come unasked.
_ALWAYS: Final = select.EPOLLERR | select.EPOLLHUP


class Timer:
    """A call at a time, which may be moved or cancelled."""

    __slots__ = ("at", "call", "queued")

    def __init__(self, call: Callable[[float], None]) -> None:
        self.call = call
        #: Monotonic seconds; None: never.
        self.at: float | None = None
        #: The earliest entry for it in the heap.
        self.queued: float | None = None


class Loop:
    """An epoll set and a heap of timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._soon: dict[Callable[[], None], None] = {}

    def watch(self, fd: int, events: int | None, call: Callable[[int], None]) -> None:
        """Calls `call(events)` when the descriptor is ready; None: no more.

        With events 0 hang-ups and errors are still told, again and again until the descriptor is dropped.
        """
        if events is None:
            if fd in self._masks:
                del self._masks[fd], self._calls[fd]
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)
            return
        old = self._masks.get(fd)
        if old is None:
            self._epoll.register(fd, events)
        elif old != events:
            self._epoll.modify(fd, events)
        self._calls[fd] = call
        self._masks[fd] = events

    def set(self, timer: Timer, at: float | None) -> None:
        """Lets the timer fire at that time (monotonic seconds)."""
        timer.at = at
        if at is not None and (timer.queued is None or at < timer.queued):
            timer.queued = at
            heapq.heappush(self._heap, (at, next(self._count), timer))

    def soon(self, call: Callable[[], None]) -> None:
        """Calls it in the next turn, once, which does not wait."""
        self._soon[call] = None

    def turn(self, limit: float | None = None) -> None:
        """Waits for one thing to happen, or `limit` seconds, and calls back."""
        self._call(self._epoll.poll(self._patience(limit)))

    def _patience(self, limit: float | None) -> float:
        """Seconds that may be waited for; -1: for ever."""
        wait = limit
        if self._soon:
            return 0
        if self._heap:
            due = max(0.0, self._heap[0][0] - time.monotonic())
            wait = due if wait is None else min(wait, due)
        return -1 if wait is None else wait + 0.0005

    def _call(self, ready: list[tuple[int, int]]) -> None:
        # By then a number may be another file's, whose event it is not; one that stays is told of again.
        meant = [self._calls.get(fd) for fd, _ in ready]
        if self._soon:
            soon, self._soon = self._soon, {}
            for later in soon:
                later()
        for (fd, events), call in zip(ready, meant, strict=True):
            if call is not None and call == self._calls.get(fd) and (events & (self._masks[fd] | _ALWAYS)):
                call(events)
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            at, _, timer = heapq.heappop(self._heap)
            if timer.queued == at:
                timer.queued = None
            if timer.at is None:
                continue
            if timer.at > now:
                self.set(timer, timer.at)
            else:
                timer.at = None
                timer.call(now)

    def close(self) -> None:
        """Drops everything."""
        self._calls.clear()
        self._masks.clear()
        self._heap.clear()
        self._soon.clear()
        self._epoll.close()
