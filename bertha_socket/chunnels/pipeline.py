"""Pipes one below the other, as one: what goes in at the top comes out at the bottom, and vice versa.

Without I/O, as the pipes are.  Ends travel like data: a pipe hears of the end once those before it have given
all that they had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bertha_socket.chunnels._types import ChunnelError, Pipe


class Moved(NamedTuple):
    """What came out: at the top (`up`) and at the bottom (`down`)."""

    up: list[Any]
    down: list[Any]


class Pipeline:
    """Some pipes of one connection, the application's side first.  Exceptions are the pipes' own."""

    def __init__(self, pipes: Sequence[Pipe] = ()) -> None:
        self._pipes = list(pipes)
        #: How many pipes have heard of the end; None: it has not come yet.
        self._down_ended: int | None = None
        self._up_ended: int | None = None
        self._network_over = False
        #: The pipe that is at work, for the message about what it raises.
        self.at: Pipe | None = None

    def __len__(self) -> int:
        return len(self._pipes)

    @property
    def pipes(self) -> tuple[Pipe, ...]:
        """The pipes, top first."""
        return tuple(self._pipes)

    @property
    def full_down(self) -> bool:
        """Whether nothing should be given to `down` now."""
        return any(p.full_down for p in self._pipes)

    @property
    def full_up(self) -> bool:
        """Whether nothing should be given to `up` now."""
        return any(p.full_up for p in self._pipes)

    @property
    def down_done(self) -> bool:
        """Whether the end has come out at the bottom."""
        return self._down_ended == len(self._pipes) + 1

    @property
    def up_done(self) -> bool:
        """Whether the end has come out at the top."""
        return self._up_ended == len(self._pipes) + 1

    @property
    def unsaid(self) -> bool:
        """Whether something is still to be said, or said again."""
        return self.deadline() is not None

    def append(self, pipe: Pipe) -> None:
        """One more at the bottom, which starts now."""
        self._pipes.append(pipe)

    def start(self) -> Moved:
        """The lowest pipe first: what others send goes through it."""
        found: list[Any] = []
        for i in range(len(self._pipes) - 1, -1, -1):
            self.at = self._pipes[i]
            found += self._down(i + 1, self._pipes[i].start())
        return self._after([], found)

    def down(self, item: Any) -> Moved:
        """An item from the program."""
        alone = self._alone
        if alone is None:
            return self._after([], self._down(0, (item,)))
        self.at = alone
        found = list(alone.down(item))
        self.at = None
        return Moved([], found)

    def up(self, item: Any) -> Moved:
        """An item from the network.  Raises ChunnelError: its end has come before."""
        if self._network_over:
            raise ChunnelError("something came after the network's end")
        alone = self._alone
        if alone is None:
            return self._after(*self._up(len(self._pipes) - 1, (item,)))
        self.at = alone
        up, down = alone.up(item)
        ups, downs = list(up), list(down)
        self.at = None
        return self._after(ups, downs) if alone.ended_up else Moved(ups, downs)

    @property
    def _alone(self) -> Pipe | None:
        """The only pipe, while there are no ends to be passed on: what datagrams mostly have."""
        if len(self._pipes) == 1 and self._down_ended is None and self._up_ended is None:
            return self._pipes[0]
        return None

    def down_end(self) -> Moved:
        """The program sends no more."""
        if self._down_ended is None:
            self._down_ended = 0
        return self._after([], [])

    def up_end(self) -> Moved:
        """The network brings no more.  Raises ChunnelError: it was cut off."""
        self._network_over = True
        if self._up_ended is None:
            self._up_ended = 0
        return self._after([], [])

    def deadline(self) -> float | None:
        """When `tick` is to be called (time.monotonic() seconds)."""
        return min((d for p in self._pipes if (d := p.deadline()) is not None), default=None)

    def tick(self, now: float) -> Moved:
        """Calls the pipes whose deadline is there."""
        ups: list[Any] = []
        downs: list[Any] = []
        for i, pipe in enumerate(self._pipes):
            due = pipe.deadline()
            if due is None or due > now:
                continue
            self.at = pipe
            up, down = pipe.tick(now)
            down = list(down)
            above, answered = self._up(i - 1, up)
            ups += above
            downs += answered
            downs += self._down(i + 1, down)
        return self._after(ups, downs)

    def close(self) -> None:
        """Every pipe hears of it, whatever the others do."""
        for pipe in self._pipes:
            try:
                pipe.close()
            except Exception:  # the connection has ended already; nobody could do anything about it
                continue

    def _down(self, first: int, items: Iterable[Any]) -> list[Any]:
        current = list(items)
        for pipe in self._pipes[first:]:
            if not current:
                break
            self.at = pipe
            current = [out for item in current for out in pipe.down(item)]
        self.at = None
        return current

    def _up(self, last: int, items: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        """Through the pipes from number `last` upwards."""
        current = list(items)
        downs: list[Any] = []
        for i in range(last, -1, -1):
            risen: list[Any] = []
            for item in current:
                self.at = self._pipes[i]
                up, down = self._pipes[i].up(item)
                risen += up
                downs += self._down(i + 1, down)
            current = risen
        self.at = None
        return current, downs

    def _after(self, ups: list[Any], downs: list[Any]) -> Moved:
        """Passes the ends on as far as they go."""
        pipes = self._pipes
        while self._down_ended is not None and self._down_ended <= len(pipes):
            i = self._down_ended
            if i > 0 and pipes[i - 1].lingers_down:
                break
            self._down_ended += 1
            if i < len(pipes):
                self.at = pipes[i]
                downs += self._down(i + 1, pipes[i].down_end())
        for i, pipe in enumerate(pipes):
            if pipe.ended_up:  # those below it hear of the network's end, or never
                self._up_ended = max(self._up_ended or 0, len(pipes) - i)
                break
        while self._up_ended is not None and self._up_ended <= len(pipes):
            i = self._up_ended
            if i > 0 and pipes[-i].lingers_up:
                break
            self._up_ended += 1
            if i < len(pipes):
                self.at = pipes[-1 - i]
                above, answered = self._up(len(pipes) - 2 - i, pipes[-1 - i].up_end())
                ups += above
                downs += answered
        self.at = None
        return Moved(ups, downs)
