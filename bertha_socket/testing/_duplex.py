"""Two ends of a chunnel with a network between them that exists in memory only, and time that a test makes.

The network cuts streams into pieces as it likes, and loses, doubles and reorders datagrams.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from bertha_socket.chunnels import Interface, Pipe
from bertha_socket.chunnels.pipeline import Moved, Pipeline

SIDES: Final = ("client", "server")
MakePair = Callable[[], tuple[Pipe | Sequence[Pipe], Pipe | Sequence[Pipe]]]


def other(side: str) -> str:
    """The other one."""
    return "server" if side == "client" else "client"


class Stuck(AssertionError):
    """Nothing happens any more, and what was waited for has not come."""


class Duplex:
    """A connection.  `got[side]` is what came out at the top there, `ended[side]` whether the end did."""

    def __init__(
        self, make_pair: MakePair, lower: Interface = Interface.STREAM, seed: int = 0, loss: float = 0.0
    ) -> None:
        self.random = random.Random(seed)
        self.lower = lower
        self.loss = loss
        self.now = 1000.0
        self.got: dict[str, list[Any]] = {s: [] for s in SIDES}
        #: What went over the network from that side, whether it arrived or not.
        self.sent: dict[str, list[Any]] = {s: [] for s in SIDES}
        self.ended = dict.fromkeys(SIDES, False)
        #: False: what a side sends waits in the network.
        self.flowing = True
        self._stream = {s: bytearray() for s in SIDES}  # by sender
        self._items: list[tuple[float, int, str, Any]] = []
        self._count = itertools.count()
        self._last = dict.fromkeys(SIDES, 0.0)
        self._end_sent = dict.fromkeys(SIDES, False)
        self._end_seen = dict.fromkeys(SIDES, False)
        self.ends: dict[str, Pipeline] = {}
        for side, made in zip(SIDES, make_pair(), strict=True):
            pipes = [made] if isinstance(made, Pipe) else list(made)
            for pipe in pipes:
                pipe.context.clock = self._clock
            self.ends[side] = Pipeline(pipes)
        for side in SIDES:
            self._moved(side, self.ends[side].start())

    def _clock(self) -> float:
        return self.now

    # -- what a program does --------------------------------------------------------------------------

    def full(self, side: str) -> bool:
        """Whether a program would have to wait before it sends."""
        return self.ends[side].full_down

    def send(self, side: str, item: Any) -> None:
        """An item of the program, whether the chunnel is full or not."""
        self._moved(side, self.ends[side].down(item))

    def send_all(self, side: str, items: Iterable[Any]) -> None:
        """Items, each when the chunnel takes it."""
        for item in items:
            if self.full(side):
                self.run(lambda: not self.full(side), "the chunnel stays full")
            self.send(side, item)

    def end(self, side: str) -> None:
        """The program sends no more."""
        self._moved(side, self.ends[side].down_end())

    def close(self) -> None:
        """Both ends hear that it is over."""
        for side in SIDES:
            self.ends[side].close()

    # -- what happens ---------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], what: str = "it does not come to an end") -> None:
        """Lets things happen until the condition holds.  Raises Stuck."""
        for _ in range(1_000_000):
            if until():
                return
            if not self.step():
                raise Stuck(what)
        raise Stuck(f"{what} (after a million steps)")

    def settle(self, seconds: float = 120.0) -> None:
        """Until nothing happens any more."""
        end = self.now + seconds
        while self.now < end and self.step():
            pass

    def step(self) -> bool:
        """One thing happens; False: nothing will."""
        if self.flowing and self._deliver():
            return True
        times = [d for e in self.ends.values() if (d := e.deadline()) is not None]
        if self._items and self.flowing:
            times.append(self._items[0][0])
        if not times:
            return False
        self.now = max(self.now, min(times))
        for side in SIDES:
            due = self.ends[side].deadline()
            if due is not None and due <= self.now:
                self._moved(side, self.ends[side].tick(self.now))
        return True

    def _deliver(self) -> bool:
        if self.lower is Interface.STREAM:
            return self._deliver_stream()
        if self._items and self._items[0][0] <= self.now:
            _, _, sender, item = heapq.heappop(self._items)
            target = other(sender)
            if item is None:
                self._network_end(target)
            else:
                self._moved(target, self.ends[target].up(item))
            return True
        return False

    def _deliver_stream(self) -> bool:
        for sender in self.random.sample(SIDES, 2):
            target = other(sender)
            waiting = self._stream[sender]
            if self.ends[target].full_up:
                continue
            if waiting:
                size = self.random.choice((1, 3, 100, 5000, 70000))
                piece = bytes(waiting[:size])
                del waiting[:size]
                self._moved(target, self.ends[target].up(piece))
                return True
            if self._end_sent[sender] and not self._end_seen[target]:
                self._network_end(target)
                return True
        return False

    def _network_end(self, side: str) -> None:
        self._end_seen[side] = True
        self._moved(side, self.ends[side].up_end())

    def cut(self, side: str) -> None:
        """The network ends for that side, in the midst of whatever there is."""
        self._network_end(side)

    def inject(self, side: str, item: Any) -> None:
        """Something comes from the network that the other end has not sent."""
        self._moved(side, self.ends[side].up(item))

    def _moved(self, side: str, moved: Moved) -> None:
        for item in moved.down:
            self.sent[side].append(item)
            self._put(side, item)
        if self.ends[side].down_done and not self._end_sent[side]:
            self._end_sent[side] = True
            if self.lower is Interface.MESSAGES:
                self._put(side, None)
        self.got[side] += moved.up
        if self.ends[side].up_done:
            self.ended[side] = True

    def _put(self, side: str, item: Any) -> None:
        if self.lower is Interface.STREAM:
            self._stream[side] += item
            return
        at = self.now
        if self.lower is Interface.DATAGRAMS:
            copies = self.random.choices((1, 2), (20, 1 if self.loss else 0))[0]
            for _ in range(copies):
                if self.random.random() >= self.loss:
                    delay = 0.02 + (self.random.random() * 0.03 if self.loss else 0.0)
                    heapq.heappush(self._items, (at + delay, next(self._count), side, item))
            return
        heapq.heappush(self._items, (at, next(self._count), side, item))
