"""Connections to other hosts' agents that wait for the next question, which then costs one round trip.

A connection is kept only after an answer, for a while, and not for many hosts at once.  Whatever comes by one
that nobody has asked anything closes it.  That it is there does not mean that anybody still listens at its
other end: who asks by one asks once more by a fresh one when that fails (remote.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from bertha_socket.agent import addresses
from bertha_socket.agent.handlers import Caller, Ways
from bertha_socket.agent.loop import Loop
from bertha_socket.agent.memory import netns_cookie, within_netns
from bertha_socket.agent.talk import Talk

#: Seconds.  Longer than a plan holds, so that it is asked for anew without connecting; shorter than a
#: responder waits, so that seldom a question meets a connection's end.
KEPT_SECONDS: Final = 330.0
KEPT_MAX: Final = 256
#: Two programs that start at once ask two questions at once.
KEPT_PER_HOST: Final = 2

_SO_BINDTODEVICE: Final = 25
_SO_MARK: Final = 36


class Via(NamedTuple):
    """Whose sockets a host is reached by, where they are not the agent's own: another user has these too, and
    can lead them elsewhere, so what is found out by them is told to nobody else."""

    uid: int
    device: bytes
    mark: int


class Way(NamedTuple):
    """Questions with the same way may follow one another on one connection."""

    netns: int
    addr: bytes
    #: Whose socket it is; None: the agent's own.
    owner: Caller | None


def _led_by(sock: socket.socket) -> tuple[bytes, int]:
    """What beside routes decides where it leads: the device that it is bound to (a VRF), and its mark."""
    try:
        device = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, 16).rstrip(b"\0")
        return device, sock.getsockopt(socket.SOL_SOCKET, _SO_MARK)
    except OSError:
        return b"?", 0


def _or_none(make: Callable[[], socket.socket]) -> socket.socket | None:
    with contextlib.suppress(OSError):
        return make()
    return None


class Kept:
    """The connections of one agent that are at rest."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        #: The one that has rested longest comes first: (way, until when).
        self._resting: dict[Talk, tuple[Way, float]] = {}
        self._own: int | None = None

    def via(self, caller: Caller, netns: int, theirs: Ways) -> Via | None:
        """By whose sockets hosts are reached from the caller's namespace; None: the agent's own."""
        device, mark = _led_by(theirs.tcp)
        if netns == self._own_netns() and not device and not mark:
            return None
        return Via(caller.peer.uid, device, mark)

    def way(self, caller: Caller, netns: int, addr: bytes, theirs: Ways, via: Via | None) -> tuple[Way, Ways]:
        """How to reach a host's agent from the caller's namespace, and sockets for it, which become the
        callee's.

        In the agent's own namespace the agent takes a socket of its own: nobody else can read it or write to
        it, so it serves everybody.  Elsewhere it leads where the caller's does: that one is for the caller's
        questions alone and goes when the caller does, also because it keeps its namespace alive.  Raises
        OSError.
        """
        if via is None:
            family = socket.AF_INET6 if ":" in addresses.to_text(addr) else socket.AF_INET
            tcp = socket.socket(family)
            return Way(netns, addr, None), Ways(
                tcp, _or_none(lambda: socket.socket(family, socket.SOCK_DGRAM))
            )
        udp = theirs.udp
        return Way(netns, addr, caller), Ways(
            self._like(caller, netns, theirs.tcp, via),
            _or_none(lambda: self._like(caller, netns, udp, via)) if udp is not None else None,
        )

    def _like(self, caller: Caller, netns: int, theirs: socket.socket, via: Via) -> socket.socket:
        """A socket that leads where theirs does.  Not a duplicate: O_NONBLOCK is common to those, and who
        takes it off can make us wait in connect().  Where we may not have one, only our own user can."""
        sock = None
        try:
            elsewhere = within_netns(theirs) if netns != self._own_netns() else contextlib.nullcontext()
            with elsewhere:
                sock = socket.socket(theirs.family, theirs.type & ~socket.SOCK_NONBLOCK)
            if via.mark:
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, via.mark)
            if via.device:
                sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, via.device + b"\0")
            return sock
        except OSError:
            if sock is not None:
                sock.close()
            if caller.peer.uid not in (0, os.geteuid()):
                raise
            return theirs.dup()

    def _own_netns(self) -> int:
        if self._own is None:
            with socket.socket(socket.AF_UNIX) as sock:
                self._own = netns_cookie(sock.fileno())
        return self._own or -1  # 0: the kernel does not say

    def take(self, way: Way) -> Talk | None:
        """A connection to ask by; it rests no more."""
        for talk, (theirs, until) in reversed(self._resting.items()):
            if theirs == way and until > self._loop.now:
                del self._resting[talk]
                return talk
        return None

    def put(self, way: Way, talk: Talk) -> None:
        """Keeps one whose conversation has ended well, or closes it."""
        if way.owner is not None and way.owner.process is None:
            talk.close()
            return
        same = [t for t, (theirs, _) in self._resting.items() if theirs == way]
        if len(same) >= KEPT_PER_HOST:
            self._drop(same[0])
        elif len(self._resting) >= KEPT_MAX:
            self._drop(next(iter(self._resting)))
        self._resting[talk] = (way, self._loop.now + KEPT_SECONDS)
        talk.rest(lost=lambda: self._forget(talk))

    def gone(self, owner: Caller) -> None:
        """That caller has ended."""
        for talk in [t for t, (way, _) in self._resting.items() if way.owner is owner]:
            self._drop(talk)

    def _forget(self, talk: Talk) -> None:
        self._resting.pop(talk, None)

    def _drop(self, talk: Talk) -> None:
        self._forget(talk)
        talk.close()

    def __len__(self) -> int:
        return len(self._resting)

    # -- the loop -------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """See loop.Ticker."""
        return min((until for _, until in self._resting.values()), default=None)

    def tick(self, now: float) -> None:
        """See loop.Ticker."""
        for talk in [t for t, (_, until) in self._resting.items() if until <= now]:
            self._drop(talk)

    def close(self) -> None:
        """Ends all of them."""
        for talk in list(self._resting):
            self._drop(talk)
