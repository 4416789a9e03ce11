"""Questions between agents as datagrams, for a host to which there is no connection yet.

A connection takes a round trip to be made and another one for the question.  So the question goes by a
datagram as well, when the connection is begun: the answer that is there first counts.  A datagram that is
lost, too long, or from somebody who is not to be believed is as if there had been none: the connection has
the answer.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from bertha_socket.agent import addresses
from bertha_socket.agent.loop import Loop
from bertha_socket.agent.reach import Reach
from bertha_socket.agent.secrets import Secrets
from bertha_socket.keys import KeyFileError
from bertha_socket.negotiation import datagram
from bertha_socket.negotiation.machine import Answer, Asked, Event, Failed, Initiator, Responder

#: Datagrams that are looked at: for one question, and in one turn of a responder.
_LOOKS: Final = 8
_IN_A_TURN: Final = 16
#: Questions that are answered in a second, for an instant twice as many; others have to connect.
_RATE: Final = 32.0

_IP_PKTINFO: Final = 8
_PKTINFO_SIZE: Final = {socket.IPPROTO_IP: 12, socket.IPPROTO_IPV6: 20}


class Letter:
    """One question under way."""

    def __init__(
        self, loop: Loop, sock: socket.socket, machine: Initiator, done: Callable[[Event], None]
    ) -> None:
        """Takes the socket over.  `machine`: the one that asks by the connection; it stays untouched.
        `done(event)`: once, if there is an answer that is to be believed."""
        self._loop = loop
        self._sock = sock
        self._machine = machine
        self._done = done
        self._looks = _LOOKS
        self._open = True
        sock.setblocking(False)
        loop.watch(sock, self._ready)

    def send(self, address: tuple[str, int]) -> None:
        """Sends it, if it can be sent."""
        data = datagram.question(self._machine.again().outgoing())
        try:
            self._sock.connect(address)  # so that the kernel keeps out what comes from elsewhere
            if data is not None:
                self._sock.send(data, socket.MSG_DONTWAIT)  # others may have it, too: see talk.py
                return
        except OSError:
            pass
        self.close()

    def look(self) -> None:
        """Whether an answer is there by now."""
        self._ready()

    def _ready(self) -> None:
        if not self._open:
            return
        try:
            data = self._sock.recv(datagram.QUESTION_SIZE + 1, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # nobody is there, says an ICMP message
            self.close()
            return
        event = self._read(data)
        self._looks -= 1
        if event is not None or not self._looks:
            self.close()
        if event is not None:
            self._done(event)

    def _read(self, data: bytes) -> Event | None:
        """The answer; None: it is none to this question, or says only that there is none."""
        frames = datagram.answered(data)
        if frames is None:
            return None
        # Each is read from the start: what is wrong with one says nothing about the next.
        machine = self._machine.again()
        machine.receive(frames)
        event = machine.event()
        return event if machine.clean and not isinstance(event, Failed) else None

    def close(self) -> None:
        """No answer is wanted any more."""
        if self._open:
            self._open = False
            self._loop.unwatch(self._sock)
            self._sock.close()


class Letterbox:
    """Where a responder gets questions, in its own network namespace and in others."""

    def __init__(
        self,
        loop: Loop,
        secrets: Secrets,
        reach: Reach,
        decide: Callable[[int, Responder, Asked, bytes | None], Answer | None],
        heard: Callable[[int, bytes], None],
    ) -> None:
        """`decide`, `heard`: as of a connection's question.  The latter only where nobody can pretend; the
        former is told the host where that is so, else None, and may have no answer."""
        self._loop = loop
        self._secrets = secrets
        self._reach = reach
        self._decide = decide
        self._heard = heard
        self._socks: dict[int, socket.socket] = {}
        self._left = 2 * _RATE
        self._at = 0.0

    def open(self, netns: int, sock: socket.socket) -> None:
        """Takes over a socket that is bound to the agents' port; one for each namespace is enough."""
        if netns in self._socks:
            sock.close()
            return
        sock.setblocking(False)
        # An answer has to come from the address that was asked.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._socks[netns] = sock
        self._loop.watch(sock, lambda: self._ready(netns))

    def close(self, netns: int) -> None:
        """Nobody listens in that namespace any more."""
        sock = self._socks.pop(netns, None)
        if sock is not None:
            self._loop.unwatch(sock)
            sock.close()

    def close_all(self) -> None:
        """Ends everything."""
        for netns in list(self._socks):
            self.close(netns)

    def _ready(self, netns: int) -> None:
        for _ in range(_IN_A_TURN):
            sock = self._socks.get(netns)
            if sock is None:
                return
            try:
                data, control, _, peer = sock.recvmsg(datagram.QUESTION_SIZE + 1, 128, socket.MSG_DONTWAIT)
            except OSError:  # nothing more, or an ICMP message about an answer
                return
            frames = datagram.asked(data)
            source = _source(control)
            if frames is None or not self._wanted(peer[0], source) or not self._may():
                continue
            out = self._answer(netns, peer[0], frames)
            if out is not None:
                with contextlib.suppress(OSError):  # it is not waited for
                    sock.sendmsg([out], source, socket.MSG_DONTWAIT, peer)

    def _wanted(self, host: str, source: list[tuple[int, int, bytes]]) -> bool:
        """Whether we would ask that host ourselves, or it is this one."""
        try:
            addr = addresses.from_text(host)
        except OSError:
            return False
        own = any(_address(level, info) == addr for level, _, info in source)
        return addr in self._reach or addresses.is_loopback(addr) or own

    def _may(self) -> bool:
        now = self._loop.now
        self._left = min(2 * _RATE, self._left + (now - self._at) * _RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _answer(self, netns: int, host: str, frames: bytes) -> bytes | None:
        try:
            key = self._secrets.cluster_key()
        except KeyFileError:
            return None
        machine = Responder(key)
        machine.receive(frames)
        event = machine.event()
        if not isinstance(event, Asked) or not machine.alone:
            return None  # who has the wrong key is told so by a connection
        genuine = addresses.from_text(host) if key is not None else None
        answer = self._decide(netns, machine, event, genuine)
        if answer is None:
            return None
        machine.answer(answer)
        if genuine is not None:
            self._heard(netns, genuine)
        return datagram.answer(machine.outgoing())


def _source(control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """For sendmsg: from the address that the question was sent to, by whatever way leads there."""
    found = []
    for level, kind, data in control:
        if len(data) == _PKTINFO_SIZE.get(level) and kind in (_IP_PKTINFO, socket.IPV6_PKTINFO):
            if level == socket.IPPROTO_IP:  # struct in_pktinfo: interface, address, the packet's address
                found.append((level, kind, bytes(4) + data[8:12] + bytes(4)))
            else:  # struct in6_pktinfo: address, interface
                found.append((level, kind, data[:16] + bytes(4)))
    return found[:1]


def _address(level: int, info: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + info[4:8] if level == socket.IPPROTO_IP else info[:16]
