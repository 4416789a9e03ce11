"""Answers other hosts' agents: which chunnels a client there and a listener here are to have between them.

Listens on the agents' port in the agent's own network namespace, and in those whose shims have passed a
listening socket.  Whoever connects is a stranger until the machine says otherwise: few at once, few bytes,
little time, and only from addresses that we would ask ourselves.  Who has had an answer may stay and ask
again, and is the first to go when somebody else needs the room.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from bertha_socket.agent import addresses
from bertha_socket.agent.letters import Letterbox
from bertha_socket.agent.loop import Loop
from bertha_socket.agent.memory import netns_cookie
from bertha_socket.agent.model import Listener
from bertha_socket.agent.offers import Choice, Offers
from bertha_socket.agent.reach import Reach
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.secrets import Secrets
from bertha_socket.agent.talk import Talk
from bertha_socket.keys import KeyFileError
from bertha_socket.negotiation.machine import NO_LISTENER, Answer, Asked
from bertha_socket.negotiation.machine import Responder as Machine
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import Plan, Refusal

_AT_ONCE: Final = 64
_AT_ONCE_PER_HOST: Final = 8
_SECONDS: Final = 3.0
#: So many more may be connected and wait for their next question, this long.
_KEPT_MAX: Final = 512
_KEPT_SECONDS: Final = 345.0
#: Answers that are remembered for a question that comes by a connection as well, or once more.
_ANSWERS_MAX: Final = 64


_Choose = Callable[[Offer, Listener, bytes], Choice | Refusal | None]


class _Guest(NamedTuple):
    host: bytes
    netns: int


class Responder:
    """The responder's side of one agent."""

    def __init__(
        self, loop: Loop, registry: Registry, offers: Offers, secrets: Secrets, reach: Reach
    ) -> None:
        self._loop = loop
        self._registry = registry
        self._offers = offers
        self._secrets = secrets
        self._reach = reach
        self._listening: dict[int, socket.socket] = {}
        self._talks: dict[Talk, _Guest] = {}
        #: Those of them that have had an answer and have asked nothing since; who did so first comes first.
        self._resting: dict[Talk, None] = {}
        self._per_host: Counter[bytes] = Counter()
        self._own = 0
        self._letters = Letterbox(loop, secrets, reach, self._decide_letter, lambda *host: self.heard(*host))
        #: By namespace and question: until when it is the answer.
        self._answers: OrderedDict[tuple[int, bytes], tuple[float, Answer]] = OrderedDict()
        self.answered = 0
        #: Called with the namespace and the address of a host whose agent has asked.
        self.heard: Callable[[int, bytes], None] = lambda netns, host: None
        registry.listeners.spaces.left = self.leave

    # -- ports ----------------------------------------------------------------------------------------

    def listens_in(self, netns: int) -> bool:
        """Whether other hosts' agents can ask there."""
        return netns in self._listening

    def listen(self, sock: socket.socket, *, own: bool = False) -> None:
        """Takes over a socket that listens on the agents' port; one for each namespace is enough.

        `own`: of the agent's namespace, to be kept until the end.
        """
        netns = netns_cookie(sock.fileno())
        if own:
            self._own = netns
        elif netns in self._listening:
            sock.close()
            return
        sock.setblocking(False)
        self._listening[netns] = sock
        self._loop.watch(sock, lambda: self._accept(netns))

    def take_letters(self, sock: socket.socket) -> None:
        """Takes over a UDP socket that is bound to the agents' port, of a namespace where we listen."""
        netns = netns_cookie(sock.fileno())
        if netns in self._listening:
            self._letters.open(netns, sock)
        else:
            sock.close()

    def leave(self, netns: int) -> None:
        """Nobody listens in that namespace any more: it must not be kept alive by us."""
        if netns != self._own:
            self._close(netns)
            self._letters.close(netns)
            for talk in [t for t in self._resting if self._talks[t].netns == netns]:
                self._drop(talk)

    def _close(self, netns: int) -> None:
        sock = self._listening.pop(netns, None)
        if sock is not None:
            self._loop.unwatch(sock)
            sock.close()

    # -- connections ----------------------------------------------------------------------------------

    def _accept(self, netns: int) -> None:
        listening = self._listening.get(netns)
        if listening is None:
            return
        try:
            listening.setblocking(False)  # a shim of our own user may have it, too
            sock, peer = listening.accept()
        except OSError:
            return
        try:
            host = addresses.from_text(peer[0])
            wanted = host in self._reach or addresses.is_loopback(host) or self._is_own(sock, host)
        except OSError:
            wanted = False
        if not wanted or not self._has_room(host):
            sock.close()
            return
        talk = Talk(self._loop, sock)
        self._talks[talk] = _Guest(host, netns)
        self._per_host[host] += 1
        self._listen_to(talk, self._loop.now + _SECONDS)

    def _has_room(self, host: bytes) -> bool:
        """Whether one more of that host may be connected.  Who only waits to ask again makes room."""
        if self._per_host[host] >= _AT_ONCE_PER_HOST:
            self._drop(next((t for t in self._resting if self._talks[t].host == host), None))
        if len(self._resting) >= _KEPT_MAX:
            self._drop(next(iter(self._resting)))
        full = len(self._talks) - len(self._resting) >= _AT_ONCE
        return not full and self._per_host[host] < _AT_ONCE_PER_HOST

    def _listen_to(self, talk: Talk, until: float) -> None:
        """A question, the first or the next, is to come until then."""
        try:
            machine = Machine(self._secrets.cluster_key())
        except KeyFileError:  # a key that cannot be used is no reason to answer without one
            self._drop(talk)
            return
        talk.begin(machine, until, lambda: self._heard(talk, machine), lambda error: self._end(talk))
        talk.flush()

    @staticmethod
    def _is_own(sock: socket.socket, host: bytes) -> bool:
        """A host that speaks with itself under an address of its own."""
        with contextlib.suppress(OSError):
            return addresses.from_text(sock.getsockname()[0]) == host
        return False

    def _end(self, talk: Talk) -> None:
        """A conversation has ended; the next one may follow, unless the namespace has been left meanwhile."""
        if not talk.closed and self._talks[talk].netns in self._listening:
            self._resting[talk] = None
            talk.until = self._loop.now + _KEPT_SECONDS
            talk.rest(lambda: self._asks_again(talk))
        else:
            self._drop(talk)

    def _asks_again(self, talk: Talk) -> None:
        """Now, so that it is the cluster key of now that counts."""
        del self._resting[talk]
        self._listen_to(talk, self._loop.now + _SECONDS)

    def _drop(self, talk: Talk | None) -> None:
        if talk is None:
            return
        talk.close()
        self._resting.pop(talk, None)
        host = self._talks.pop(talk).host
        self._per_host[host] -= 1
        if not self._per_host[host]:
            del self._per_host[host]

    def _heard(self, talk: Talk, machine: Machine) -> None:
        event = machine.event()
        if isinstance(event, Asked):
            guest = self._talks[talk]
            machine.answer(self._decide(guest, machine, event))
            self.heard(guest.netns, guest.host)

    def _decide(self, guest: _Guest, machine: Machine, asked: Asked) -> Answer:
        """The plan for a client of another host.  A question that comes twice has one answer."""
        answer = self._answer(guest.netns, machine, asked, self._offers.choose, guest.host)
        assert answer is not None
        return answer

    def _decide_letter(
        self, netns: int, machine: Machine, asked: Asked, genuine: bytes | None
    ) -> Answer | None:
        """The same for a datagram, of the host `genuine`.  None: anybody may have written the address on it.
        Then it changes nothing for the listener, and where that would be needed the connection is waited
        for."""
        choose = self._offers.choose_for_anybody if genuine is None else self._offers.choose
        return self._answer(netns, machine, asked, choose, genuine)

    def _answer(
        self, netns: int, machine: Machine, asked: Asked, choose: _Choose, host: bytes | None
    ) -> Answer | None:
        now = self._loop.now
        known = self._answers.get((netns, machine.question))
        if known is not None and known[0] > now:
            answer: Answer | None = known[1]
        else:
            answer = self._choose(netns, asked, choose)
            if answer is not None:
                self._answers[netns, machine.question] = (now + _SECONDS, answer)
            if len(self._answers) > _ANSWERS_MAX:
                self._answers.popitem(last=False)
        if host is not None and isinstance(answer, Plan):
            self._note(netns, asked, host, answer)
        return answer

    def _note(self, netns: int, asked: Asked, host: bytes, plan: Plan) -> None:
        """For the log of the listener's end, before the client can come."""
        listener = self._find(netns, addresses.from_text(asked.addr), asked.port, asked.proto)
        if listener is not None:
            self._offers.omissions.answered(listener, host, plan)

    def _choose(self, netns: int, asked: Asked, choose: _Choose) -> Answer | None:
        try:
            addr = addresses.from_text(asked.addr)
        except OSError:
            return NO_LISTENER
        listener = self._find(netns, addr, asked.port, asked.proto)
        if listener is None:
            return NO_LISTENER
        chosen = choose(asked.offer, listener, addr)
        if chosen is None:
            return None
        self.answered += 1
        return chosen if isinstance(chosen, Refusal) else chosen.plan

    def _find(self, netns: int, addr: bytes, port: int, proto: str) -> Listener | None:
        if addresses.is_loopback(addr):
            return None
        found = self._registry.listeners.at(netns, addr, port, proto)
        if found is not None and not found.members and self._registry.listeners.drop_if_gone(found):
            return None
        return found

    @property
    def kept(self) -> int:
        """Connections of other agents that have had an answer and may ask again."""
        return len(self._resting)

    # -- the loop -------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """See loop.Ticker."""
        return min((t.until for t in self._talks), default=None)

    def tick(self, now: float) -> None:
        """See loop.Ticker."""
        for talk in list(self._talks):
            if talk.until <= now:
                talk.expire()

    def close(self) -> None:
        """Ends everything."""
        for talk in list(self._talks):
            talk.close()
        self._talks.clear()
        self._resting.clear()
        self._letters.close_all()
        for netns in list(self._listening):
            self._close(netns)
