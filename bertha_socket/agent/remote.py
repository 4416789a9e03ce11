"""Which chunnels a client's connections to a destination are to have: asked here, or of the agent there.

What was found out is remembered: a plan for minutes, a host without an agent for a minute, though not
without doubt (silence.py).  A destination that nobody has anything to say about is plain, and costs nothing
from then on.

A question travels by a connection that an earlier one has left behind (kept.py), if there is one.  Whatever
goes wrong there, short of an answer, it is asked once more by a fresh connection, and by a datagram meanwhile
(letters.py).  If that is answered first, the connection has its answer as well, and is kept for the next one.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from bertha_socket.agent import addresses, messages, plans
from bertha_socket.agent.handlers import Answer, Caller, Ways
from bertha_socket.agent.kept import Kept, Via, Way
from bertha_socket.agent.letters import Letter
from bertha_socket.agent.loop import Loop
from bertha_socket.agent.messages import CarrierKind, Negotiate, Verdict
from bertha_socket.agent.model import Listener, Process
from bertha_socket.agent.offers import (
    Choice,
    Offers,
    carrier_of,
    carrier_of_datagrams,
    checker,
    required_of,
)
from bertha_socket.agent.reach import Others
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.secrets import Secrets
from bertha_socket.agent.silence import REFUSED_SECONDS, Belief, Host, Silences, believe
from bertha_socket.agent.talk import Talk
from bertha_socket.keys import KeyFileError
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.machine import NO_LISTENER, Event, Failed, Initiator
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.pick import least
from bertha_socket.negotiation.plan import Check, Plan, Refusal, acceptable

#: Seconds.  A plan that has gone stale before is refused by the server's carrier and asked for anew.
_PLAN_SECONDS: Final = 300.0
_LOCAL_SECONDS: Final = 30.0
_NO_AGENT_SECONDS: Final = 60.0
_NO_LISTENER_SECONDS: Final = 10.0
_SLOW_SECONDS: Final = 5.0
#: A host that answers nothing at all is given this long; one that has accepted, the second.
_CONNECT_SECONDS: Final = 0.3
_CONNECT_SECONDS_REQUIRED: Final = 1.2
_LEAST_PATIENCE: Final = 0.05
_TALK_SECONDS: Final = 1.5
#: How long an answer by a kept connection is waited for before a fresh one is tried: this, or some round
#: trips where those take longer.  It is taken from the time for the fresh one, not added to it.
_KEPT_SECONDS: Final = 0.1
_KEPT_ROUND_TRIPS: Final = 4
_KEPT_SECONDS_MAX: Final = 0.5
_CACHE_MAX: Final = 4096
_AT_ONCE: Final = 128
#: Questions that nobody waits for are put while there are fewer than so many.
_BEHIND_BACKS: Final = 64


class Own(NamedTuple):
    """What an answer has of its client's own rule, whoever is at the other end."""

    #: What carriers call the client's own certificates; 0: the default ones.
    context: int = 0
    #: The most that its threads, and the carrier for them, spin.
    spin_us: int | None = None


class Outcome(NamedTuple):
    """The answer to one question, and until when it holds (monotonic seconds)."""

    verdict: Verdict
    belief: Belief
    plan: bytes = b""
    carrier: CarrierKind = CarrierKind.NATIVE
    detail: str = ""
    #: There was nobody to ask.
    nobody: bool = False

    def reply(self, now: float, own: Own | None = None, *, application: bool = False) -> Answer:
        """`own`: what the client's own rule says.  `application`: the one who asks runs his chunnels himself,
        and knows what to do where there is nobody."""
        left = max(0, min(round((self.belief.doubt - now) * 1000), messages.UINT32_MAX))
        verdict = Verdict.NOBODY if self.nobody and application else self.verdict
        context, spin_us = own or Own()
        bound = plans.wire_bound(spin_us)
        return Answer(
            body=messages.pack_negotiate_reply(
                verdict, self.carrier, left, self.plan, self.detail, context, bound
            )
        )


def _firm(now: float, seconds: float) -> Belief:
    return Belief(now, now + seconds, now + seconds)


class _Key(NamedTuple):
    """The same offer for the same destination has the same outcome."""

    netns: int
    addr: bytes
    port: int
    offer: Offer
    proto: str
    #: And by the same sockets: see there.
    via: Via | None

    @property
    def host(self) -> Host:
        return self.netns, self.addr, self.via


@dataclass(eq=False, slots=True)
class _Question:
    key: _Key
    #: Who has asked first.
    uid: int
    secret: bytes | None
    machine: Initiator
    check: Check
    way: Way
    #: For a fresh connection, and a datagram; None once it has one.
    socks: Ways | None
    #: Until when a fresh connection must be there, and the answer.
    connected_by: float
    until: float
    talk: Talk | None = None
    #: `talk` is one that was kept.
    by_kept: bool = False
    letter: Letter | None = None
    #: A datagram has brought the answer.
    over: bool = False
    #: Who waits for it, and what his own rule says.
    waiting: list[tuple[Caller, Own]] = field(default_factory=list)

    def close(self) -> None:
        """What is not wanted any more, but for the connection."""
        if self.letter is not None:
            self.letter.close()
        for sock in self.socks or ():
            if sock is not None:
                sock.close()
        self.socks = None


def _initiator(key: _Key, secret: bytes | None) -> Initiator:
    """Raises NegotiationError: the offer is too long to be sent."""
    return Initiator(addresses.to_text(key.addr), key.port, key.offer, secret, None, key.proto)


class Remote:
    """The initiator's side of one agent."""

    def __init__(
        self,
        loop: Loop,
        registry: Registry,
        offers: Offers,
        secrets: Secrets,
        others: Others,
        answer: Callable[[Caller, Answer], None],
    ) -> None:
        self._loop = loop
        self._registry = registry
        self._offers = offers
        self._secrets = secrets
        self._reach = others.reach
        self._port = others.port
        self._answer = answer
        self._kept = Kept(loop)
        self._known: OrderedDict[_Key, Outcome] = OrderedDict()
        self._silent = Silences()
        self._asked: dict[_Key, _Question] = {}
        #: Those that are over, while their connections have yet to be answered.
        self._over: set[_Question] = set()

    # -- a shim's question ----------------------------------------------------------------------------

    def negotiate(self, caller: Caller, process: Process, wish: Negotiate, socks: Ways) -> Answer | None:
        """The answer, or None: it comes later.  `socks` are ways to the destination's host; whoever calls
        this closes them."""
        now = self._loop.now
        where = addresses.endpoint(wish.server_addr, wish.server_port)
        application = process.offer is not None
        if process.policy_error is not None and not application:
            # Whoever has read the file, bertha-run or a door, has told the shim what it requires.
            verdict = Verdict.REFUSED if wish.must else Verdict.PLAIN
            return Outcome(verdict, _firm(now, _LOCAL_SECONDS), detail=process.policy_error).reply(now)
        try:
            offer, context = self._offers.of_client(process, wish.server_addr, wish.server_port, wish.proto)
        except OSError as error:  # a rule says what cannot be: no reason to do without
            text = f"{where}: {error.strerror or error}"
            return Outcome(Verdict.REFUSED, _firm(now, _LOCAL_SECONDS), detail=text).reply(now)
        own = Own(context)
        if not application:
            rule = plans.wishes(
                process.policy, process.subject, "client", wish.server_addr, wish.server_port, wish.proto
            )
            own = Own(context, rule.spin_us)
        listener = self._listener(process, wish)
        if listener is not None:
            # Both ends' threads want the processors of this host.
            there = plans.spin_bound(listener, (wish.server_addr,))
            own = own._replace(spin_us=least(own.spin_us, there))
            chosen = self._offers.choose(offer, listener, wish.server_addr)
            if isinstance(chosen, Choice) and wish.netns == listener.where.netns:
                # There is no other address that it comes from.
                self._offers.omissions.answered(listener, wish.server_addr, chosen.plan)
            outcome = self._outcome(chosen, offer, where, _LOCAL_SECONDS, wish.proto)
            return self._say(outcome, process, wish.place, own)
        via = self._kept.via(caller, wish.netns, socks)
        key = _Key(wish.netns, wish.server_addr, wish.server_port, offer, wish.proto, via)
        known = None if wish.fresh else self._look_up(key, where)
        if known is not None:
            if known.belief.doubt <= now and key not in self._asked and len(self._asked) < _BEHIND_BACKS:
                self._silent.asked(key.host, now)
                with contextlib.suppress(OSError):
                    self._put(caller, process, wish, key, socks)
            return self._say(known, process, wish.place, own)
        question = self._asked.get(key) or self._put(caller, process, wish, key, socks)
        if isinstance(question, Outcome):
            return self._say(question, process, wish.place)
        question.waiting.append((caller, own))
        return None

    def _say(
        self, outcome: Outcome, process: Process, place: tuple[str, bytes, int], own: Own | None = None
    ) -> Answer:
        """The answer, which is remembered for `bertha ps` where it says why there are no chunnels."""
        process.note_told(place, outcome.detail if outcome.verdict == Verdict.PLAIN else "")
        return outcome.reply(self._loop.now, own, application=process.offer is not None)

    def _put(
        self, caller: Caller, process: Process, wish: Negotiate, key: _Key, socks: Ways
    ) -> _Question | Outcome:
        """A question under way, or what is to be said without one.  Raises OSError."""
        where = addresses.endpoint(key.addr, key.port)
        now = self._loop.now
        if key.addr not in self._reach or not self._port:
            why = "its address is not one whose agents are asked (BERTHA_AGENT_PEERS)"
            if not self._port:
                why = "this host's agent asks no other (BERTHA_AGENT_PORT is 0)"
            return self._nobody(key.offer, where, why, _firm(now, _NO_AGENT_SECONDS))
        if not self._has_room(caller.peer.uid):
            why = f"its agent is not asked: {_AT_ONCE} other questions are under way; connect again later"
            return self._nobody(key.offer, where, why, _firm(now, REFUSED_SECONDS))
        try:
            secret = self._secrets.cluster_key()
            machine = _initiator(key, secret)
        except (KeyFileError, NegotiationError) as error:
            return self._nobody(key.offer, where, str(error.strerror), _firm(now, _LOCAL_SECONDS))
        way, own = self._kept.way(caller, wish.netns, wish.server_addr, socks, key.via)
        # Patience is for hosts that may not be there.  Where an agent has accepted, giving up early would
        # make a connection plain that its server then refuses.
        patience = min(_CONNECT_SECONDS, max(_LEAST_PATIENCE, wish.patience_ms / 1000))
        if required_of(key.offer):
            patience = _CONNECT_SECONDS_REQUIRED
        begun = time.monotonic()  # the first offer takes a while to make, which is not the host's fault
        question = _Question(
            *(key, caller.peer.uid, secret, machine, checker(process.brought), way, own),
            connected_by=begun + patience,
            until=begun + _TALK_SECONDS,
        )
        self._asked[key] = question
        self._ask(question)
        return question

    def _has_room(self, uid: int) -> bool:
        """Whether one more may be asked: no user who is not root has more than half of them."""
        under_way = [q.uid for q in (*self._asked.values(), *self._over)]
        most = _AT_ONCE if uid == 0 else _AT_ONCE // 2
        return len(under_way) < _AT_ONCE and under_way.count(uid) < most

    def _listener(self, process: Process, wish: Negotiate) -> Listener | None:
        """The listener of this host that the caller would reach; None: none, or it cannot be told which.

        Who makes a namespace gives it any address: what another user has in one says nothing about whom the
        caller reaches, unless his policy names that user.  The agent that answers at that address is asked
        then.
        """
        listeners = self._registry.listeners
        found = listeners.at(wish.netns, wish.server_addr, wish.server_port, wish.proto)
        if found is None and not addresses.is_loopback(wish.server_addr):
            others = listeners.anywhere(wish.server_addr, wish.server_port, wish.proto)
            if len(others) == 1 and self._believed(process, wish, others[0].uid):
                found = others[0]
        if found is not None and not found.members and listeners.drop_if_gone(found):
            return None
        return found

    @staticmethod
    def _believed(process: Process, wish: Negotiate, uid: int) -> bool:
        where = wish.server_addr, wish.server_port
        return uid == process.peer.uid or plans.trusts(
            process.policy, process.subject, "client", *where, uid, wish.proto
        )

    # -- what is remembered ---------------------------------------------------------------------------

    def _look_up(self, key: _Key, where: str) -> Outcome | None:
        now = self._loop.now
        known = self._known.get(key)
        if known is not None and known.belief.holds(now):
            return known
        silent = self._silent.look(key.host, now, required=bool(required_of(key.offer)))
        return self._nobody(key.offer, where, silent.why, silent.belief) if silent is not None else None

    def _remember(self, key: _Key, outcome: Outcome) -> None:
        self._known[key] = outcome
        self._known.move_to_end(key)
        while len(self._known) > _CACHE_MAX:
            self._known.popitem(last=False)

    def heard(self, netns: int, addr: bytes) -> None:
        """An agent at that host has asked us something: there is one."""
        if self._silent.heard(netns, addr):
            self._registry.directory.tell_news()

    # -- outcomes -------------------------------------------------------------------------------------

    def _outcome(
        self, chosen: Choice | Refusal, offer: Offer, where: str, seconds: float, proto: str
    ) -> Outcome:
        now = self._loop.now
        belief, refused = _firm(now, seconds), _firm(now, REFUSED_SECONDS)
        if isinstance(chosen, Refusal):
            return Outcome(Verdict.REFUSED, refused, detail=f"{where}: {chosen}")
        left_out = chosen.plan.left_out
        if not chosen.plan.chunnels:
            return Outcome(Verdict.PLAIN, belief, detail=left_out)
        try:
            plan = chosen.plan.encode()
        except NegotiationError as error:
            return Outcome(Verdict.REFUSED, refused, detail=f"{where}: {error.strerror}")
        carrier = chosen.client
        if proto == "udp":
            carrier = carrier_of_datagrams(chosen.plan, offer, "client")
        return Outcome(Verdict.PLAN, belief, plan, carrier, left_out)

    @staticmethod
    def _nobody(offer: Offer, where: str, why: str, belief: Belief) -> Outcome:
        """Nobody to negotiate with: plain, unless this end requires something."""
        required = required_of(offer)
        if not required:
            return Outcome(Verdict.PLAIN, belief, detail=f"{where}: {why}", nobody=True)
        text = f"{where}: required chunnel {', '.join(required)} cannot be had: {why}"
        return Outcome(Verdict.REFUSED, _firm(belief.since, REFUSED_SECONDS), detail=text, nobody=True)

    # -- asking another agent -------------------------------------------------------------------------

    def _ask(self, question: _Question) -> None:
        """By a connection that was kept, or else by a fresh one."""
        talk = self._kept.take(question.way)
        if talk is None:
            self._ask_afresh(question)
            return
        question.talk, question.by_kept = talk, True
        now = time.monotonic()
        least = min(_KEPT_SECONDS, (question.connected_by - now) / 2)
        patience = max(least, min(_KEPT_ROUND_TRIPS * talk.took, _KEPT_SECONDS_MAX))
        # Where round trips are long, a fresh connection needs as much again.
        question.connected_by = max(question.connected_by, now + 2 * patience)
        self._begin(question, talk, now + patience)
        talk.flush()

    def _ask_afresh(self, question: _Question) -> None:
        socks = question.socks
        assert socks is not None
        question.socks, question.by_kept = None, False
        question.talk = talk = Talk(self._loop, socks.tcp)
        self._begin(question, talk, question.connected_by)
        host = addresses.to_text(question.key.addr)
        if socks.tcp.family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        if socks.udp is not None:
            done = partial(self._answered_by_letter, question)
            question.letter = Letter(self._loop, socks.udp, question.machine, done)
            question.letter.send((host, self._port))
        talk.connect((host, self._port))

    def _begin(self, question: _Question, talk: Talk, until: float) -> None:
        talk.begin(question.machine, until, lambda: None, lambda error: self._told(question, error))

    def _answered_by_letter(self, question: _Question, event: Event) -> None:
        """The connection goes on, so that it can be kept."""
        del self._asked[question.key]
        question.over = True
        self._over.add(question)
        self._tell(question, event, None)

    def _tell(self, question: _Question, event: Event | None, error: OSError | None) -> None:
        """Those who have been waiting."""
        outcome = self._conclude(question, event, error)
        waiting, question.waiting = question.waiting, []
        place = question.key.proto, question.key.addr, question.key.port
        for caller, own in waiting:
            process = caller.process
            if process is not None:
                self._answer(caller, self._say(outcome, process, place, own))
            else:  # it has ended
                self._answer(caller, outcome.reply(self._loop.now, own))

    def _told(self, question: _Question, error: OSError | None) -> None:
        """The conversation has ended."""
        talk = question.talk
        assert talk is not None
        if question.over:
            self._over.discard(question)
            if not talk.closed:
                self._kept.put(question.way, talk)
            return
        event = question.machine.event()
        if question.by_kept and (event is None or isinstance(event, Failed)):
            # The other agent has ended or begun anew, or the way there has: that is no answer.
            talk.close()
            question.machine = _initiator(question.key, question.secret)
            # Should it be we who were slow, the host is not to be taken for one without an agent.
            question.connected_by = max(question.connected_by, time.monotonic() + _LEAST_PATIENCE)
            self._ask_afresh(question)
            return
        del self._asked[question.key]
        question.close()
        if not talk.closed:
            self._kept.put(question.way, talk)
        self._tell(question, event, error)

    def _conclude(self, question: _Question, event: Event | None, error: OSError | None) -> Outcome:
        key, offer, talk = question.key, question.key.offer, question.talk
        where = addresses.endpoint(key.addr, key.port)
        now, host = self._loop.now, key.host
        before = self._known.get(key)
        none = believe(
            now, _NO_LISTENER_SECONDS, before.belief if before is not None and before.nobody else None
        )
        if isinstance(event, Plan):
            problem = acceptable(event, offer, "client", question.check)
            chosen = problem or Choice(event, carrier_of(event, offer, "client"))
            outcome = self._outcome(chosen, offer, where, _PLAN_SECONDS, key.proto)
        elif isinstance(event, Refusal):
            outcome = self._outcome(event, offer, where, REFUSED_SECONDS, key.proto)
        elif event is NO_LISTENER:
            why = "no program under bertha-run listens there"
            outcome = self._nobody(offer, where, why, none)
        elif isinstance(event, Failed):
            outcome = self._nobody(offer, where, event.why, none)
        else:
            met = talk is not None and talk.connected
            what = (
                "the agent there does not answer" if met else f"no agent answers there on port {self._port}"
            )
            why = f"{what} ({error.strerror if error else 'it says nothing'})"
            silent = self._silent.note(host, why, now, _SLOW_SECONDS if met else _NO_AGENT_SECONDS)
            return self._nobody(offer, where, why, silent.belief)
        news = before is not None and before.nobody and not outcome.nobody
        if self._silent.answered(host) or news:
            self._registry.directory.tell_news()
        self._remember(key, outcome)
        return outcome

    # -- the loop -------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """See loop.Ticker."""
        times = [q.talk.until for q in (*self._asked.values(), *self._over) if q.talk is not None]
        kept = self._kept.deadline()
        return min(times if kept is None else [*times, kept], default=None)

    def tick(self, now: float) -> None:
        """See loop.Ticker."""
        self._kept.tick(now)
        for question in [*self._asked.values(), *self._over]:
            talk = question.talk
            if talk is not None and talk.until <= now:
                if question.letter is not None:
                    question.letter.look()
                talk.look()  # it is we who may have been slow
                if talk.closed or (
                    question not in self._over and self._asked.get(question.key) is not question
                ):
                    continue
                if talk.connected and question.until > now and not question.by_kept:
                    talk.until = question.until  # it has accepted in time: it has the rest of its time
                else:
                    talk.expire()

    def gone(self, caller: Caller) -> None:
        """That caller has ended."""
        self._kept.gone(caller)

    def close(self) -> None:
        """Ends all conversations; nobody is answered any more."""
        for question in (*self._asked.values(), *self._over):
            if question.talk is not None:
                question.talk.close()
            question.close()
        self._asked.clear()
        self._over.clear()
        self._kept.close()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._asked)

    @property
    def kept(self) -> int:
        """Connections to other agents that wait for the next question."""
        return len(self._kept)

    def facts(self) -> list[dict[str, object]]:
        """For STATUS: what is remembered now, by destination."""
        now = self._loop.now
        plans: list[dict[str, object]] = [
            {
                "destination": addresses.endpoint(key.addr, key.port),
                "verdict": outcome.verdict.name.lower(),
                "chunnels": [c.type for c in Plan.decode(outcome.plan).chunnels] if outcome.plan else [],
                "detail": outcome.detail or None,
                "seconds": round(outcome.belief.until - now, 1),
            }
            for key, outcome in self._known.items()
            if outcome.belief.holds(now)
        ]
        silent: list[dict[str, object]] = [
            {
                "destination": addresses.to_text(addr),
                "verdict": "silent",
                "chunnels": [],
                "detail": found.why,
                "seconds": round(found.belief.until - now, 1),
            }
            for (_, addr, _), found in self._silent.believed(now)
        ]
        return plans + silent
