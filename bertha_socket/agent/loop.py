"""What the agent's parts need of its loop: being called when a descriptor is ready, and when time is up."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import Final, Protocol

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE


class Loop(Protocol):
    """The server's loop (server.py), as its parts see it."""

    #: time.monotonic() at the start of the present turn.
    now: float

    def watch(self, what: socket.socket | int, call: Callable[[], None], events: int = READ) -> None:
        """Calls `call` whenever `what` is ready for one of `events`; again: for other events, or another."""

    def unwatch(self, what: socket.socket | int) -> None:
        """No more."""


class Ticker(Protocol):
    """A part of the agent that has deadlines."""

    def deadline(self) -> float | None:
        """When `tick` has something to do without an event (monotonic seconds); None: never."""

    def tick(self, now: float) -> None:
        """Does what is due."""
