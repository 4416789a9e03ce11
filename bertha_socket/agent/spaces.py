"""The network namespaces that listeners are in, each seen by two netlink sockets that a client has passed.

A socket bound to every address is reached under addresses that come and go, so the namespace is asked to
tell of changes (rtnetlink's address groups), and the loop watches for that.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_RTNLGRP_IPV4_IFADDR: Final = 5
_RTNLGRP_IPV6_IFADDR: Final = 9
_DRAIN: Final = 64
#: Wake-ups without a message after which a socket is left alone: its owner may have made it so.
_PATIENCE: Final = 8
#: Times as long as the last look took, no other is taken.
_REST: Final = 20
_REST_MAX_SECONDS: Final = 1.0


class Watcher(Protocol):
    """The loop, as far as it watches sockets for others."""

    def watch(self, what: socket.socket, call: Callable[[], None]) -> None:
        """Calls `call` whenever `what` can be read."""

    def unwatch(self, what: socket.socket) -> None:
        """No more."""


@dataclass(eq=False, slots=True)
class Namespace:
    """Two netlink sockets of one network namespace, as one user's processes have passed them."""

    uid: int
    netns: int
    route: socket.socket
    diag: socket.socket
    listeners: int = 0
    watched: bool = False
    idle_wakes: int = 0
    rests_until: float = 0.0

    def subscribe(self) -> None:
        """Asks for news of addresses.  Before the addresses are read, or a change in between is missed."""
        for group in (_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR):
            with contextlib.suppress(OSError):  # a kernel without IPv6; then there is no news of it either
                self.route.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def drain(self) -> bool:
        """Takes what lies in the socket.  Whether there was anything (also: whether something was lost)."""
        for i in range(_DRAIN):
            try:
                self.route.recv(1, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                return i > 0
        return True

    def close(self) -> None:
        """Gives the sockets up; they are not watched any more."""
        self.route.close()
        self.diag.close()


class Spaces:
    """One Namespace for each user and network namespace that has a listener."""

    def __init__(self, changed: Callable[[Namespace], None]) -> None:
        self._changed = changed
        self._spaces: dict[tuple[int, int], Namespace] = {}
        #: Those that have changed while we rested.
        self._later: set[Namespace] = set()
        self.watcher: Watcher | None = None
        #: Called when nobody listens in a namespace any more.
        self.left: Callable[[int], None] = lambda netns: None

    def adopt(self, fresh: Namespace) -> Namespace:
        """The user's Namespace, with the latest pair of sockets: that one surely works."""
        known = self._spaces.setdefault((fresh.uid, fresh.netns), fresh)
        if known is not fresh:
            self._unwatch(known)
            known.close()
            known.route, known.diag = fresh.route, fresh.diag
        self._watch(known)
        return known

    def release(self, space: Namespace) -> None:
        """Drops it if no listener needs it."""
        if space.listeners == 0 and self._spaces.pop((space.uid, space.netns), None) is not None:
            self._unwatch(space)
            space.close()
            if not any(s.netns == space.netns for s in self._spaces.values()):
                self.left(space.netns)

    def _watch(self, space: Namespace) -> None:
        if self.watcher is not None and not space.watched:
            self.watcher.watch(space.route, lambda: self._readable(space))
            space.watched = True
            space.idle_wakes = 0

    def _unwatch(self, space: Namespace) -> None:
        if self.watcher is not None and space.watched:
            self.watcher.unwatch(space.route)
            space.watched = False

    def _readable(self, space: Namespace) -> None:
        if not space.watched:
            return
        if space.drain():
            space.idle_wakes = 0
            now = time.monotonic()
            if now >= space.rests_until:
                self._look(space, now)
            else:
                self._later.add(space)
            return
        space.idle_wakes += 1
        if space.idle_wakes >= _PATIENCE:
            self._unwatch(space)

    def _look(self, space: Namespace, now: float) -> None:
        """Its user's programs can wake us at will: looking takes a small part of our time, for each user."""
        self._later.discard(space)
        try:
            self._changed(space)
        finally:
            done = time.monotonic()
            space.rests_until = done + min(_REST_MAX_SECONDS, _REST * (done - now))

    def deadline(self) -> float | None:
        """When `tick` has something to do; None: never."""
        return min((s.rests_until for s in self._later), default=None)

    def tick(self, now: float) -> None:
        """Looks at what has changed while we rested."""
        for space in [s for s in self._later if s.rests_until <= now]:
            if space.watched:
                self._look(space, time.monotonic())
            else:
                self._later.discard(space)
