"""Which chunnels a client's connections to a destination are to have: asked here, or of the agent there.

What was found out is remembered: a plan for minutes, a host without an agent for a minute.  A destination
that nobody has anything to say about is plain, and costs nothing from then on.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bertha_socket.agent import addresses, messages
from bertha_socket.agent.handlers import Answer, Caller
from bertha_socket.agent.loop import Loop
from bertha_socket.agent.messages import CarrierKind, Negotiate, Verdict
from bertha_socket.agent.model import Listener, Process
from bertha_socket.agent.offers import Choice, Offers, carrier_of, checker, required_of
from bertha_socket.agent.reach import Others
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.secrets import Secrets
from bertha_socket.agent.talk import Talk
from bertha_socket.keys import KeyFileError
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.machine import NO_LISTENER, Failed, Initiator
from bertha_socket.negotiation.offer import Offer
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
_TALK_SECONDS: Final = 1.5
_CACHE_MAX: Final = 4096
_AT_ONCE: Final = 128


class Outcome(NamedTuple):
    """The answer to one question, and until when it holds (monotonic seconds)."""

    verdict: Verdict
    until: float
    plan: bytes = b""
    carrier: CarrierKind = CarrierKind.NATIVE
    detail: str = ""
    #: There was nobody to ask.
    nobody: bool = False

    def reply(self, now: float, context: int = 0, *, application: bool = False) -> Answer:
        """`context`: what carriers call the client's own certificates.  `application`: the one who asks runs
        his chunnels himself, and knows what to do where there is nobody."""
        left = max(0, min(round((self.until - now) * 1000), messages.UINT32_MAX))
        verdict = Verdict.NOBODY if self.nobody and application else self.verdict
        return Answer(
            body=messages.pack_negotiate_reply(verdict, self.carrier, left, self.plan, self.detail, context)
        )


class _Key(NamedTuple):
    """The same offer for the same destination has the same outcome."""

    netns: int
    addr: bytes
    port: int
    offer: Offer
    proto: str


@dataclass(eq=False, slots=True)
class _Question:
    key: _Key
    machine: Initiator
    check: Check
    talk: Talk | None = None
    until: float = 0.0
    #: Who waits for it, and the number of his certificates.
    waiting: list[tuple[Caller, int]] = field(default_factory=list)


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
        self._known: OrderedDict[_Key, Outcome] = OrderedDict()
        #: Hosts without an agent: (namespace, address) to (until when, why).
        self._silent: OrderedDict[tuple[int, bytes], tuple[float, str]] = OrderedDict()
        self._asked: dict[_Key, _Question] = {}

    # -- a shim's question ----------------------------------------------------------------------------

    def negotiate(
        self, caller: Caller, process: Process, wish: Negotiate, sock: socket.socket
    ) -> Answer | None:
        """The answer, or None: it comes later.  `sock` is the way to the destination's host; whoever calls
        this closes it."""
        now = self._loop.now
        where = addresses.endpoint(wish.server_addr, wish.server_port)
        application = process.offer is not None
        if process.policy_error is not None and not application:
            return Outcome(Verdict.PLAIN, now + _LOCAL_SECONDS, detail=process.policy_error).reply(now)
        try:
            offer, context = self._offers.of_client(process, wish.server_addr, wish.server_port, wish.proto)
        except OSError as error:  # a rule says what cannot be: no reason to do without
            text = f"{where}: {error.strerror or error}"
            return Outcome(Verdict.REFUSED, now + _LOCAL_SECONDS, detail=text).reply(now)
        listener = self._listener(wish)
        if listener is not None:
            chosen = self._offers.choose(offer, listener, wish.server_addr)
            return self._outcome(chosen, offer, where, _LOCAL_SECONDS).reply(now, context)
        key = _Key(wish.netns, wish.server_addr, wish.server_port, offer, wish.proto)
        known = None if wish.fresh else self._look_up(key, where)
        if known is not None:
            return known.reply(now, context, application=application)
        question = self._asked.get(key)
        if question is None:
            if wish.server_addr not in self._reach or not self._port or len(self._asked) >= _AT_ONCE:
                why = "its address is not one whose agents are asked (BERTHA_AGENT_PEERS)"
                return self._nobody(offer, where, why, now + _NO_AGENT_SECONDS).reply(
                    now, application=application
                )
            try:
                secret = self._secrets.cluster_key()
            except KeyFileError as error:
                return self._nobody(offer, where, str(error.strerror), now + _LOCAL_SECONDS).reply(
                    now, application=application
                )
            try:
                machine = Initiator(addresses.to_text(key.addr), key.port, offer, secret, None, key.proto)
            except NegotiationError as error:
                return self._nobody(offer, where, str(error.strerror), now + _LOCAL_SECONDS).reply(
                    now, application=application
                )
            question = _Question(key, machine, checker(process.brought))
            self._ask(question, wish, sock.dup())
        question.waiting.append((caller, context))
        return None

    def _listener(self, wish: Negotiate) -> Listener | None:
        """The listener of this host that the caller would reach; None: none, or it cannot be told which."""
        listeners = self._registry.listeners
        found = listeners.at(wish.netns, wish.server_addr, wish.server_port, wish.proto)
        if found is None and not addresses.is_loopback(wish.server_addr):
            others = listeners.anywhere(wish.server_addr, wish.server_port, wish.proto)
            found = others[0] if len(others) == 1 else None
        if found is not None and not found.members and listeners.drop_if_gone(found):
            return None
        return found

    # -- what is remembered ---------------------------------------------------------------------------

    def _look_up(self, key: _Key, where: str) -> Outcome | None:
        now = self._loop.now
        known = self._known.get(key)
        if known is not None and known.until > now:
            return known
        silent = self._silent.get((key.netns, key.addr))
        if silent is not None and silent[0] > now:
            return self._nobody(key.offer, where, silent[1], silent[0])
        return None

    def _remember(self, key: _Key, outcome: Outcome) -> None:
        self._known[key] = outcome
        self._known.move_to_end(key)
        while len(self._known) > _CACHE_MAX:
            self._known.popitem(last=False)

    def _remember_silence(self, key: _Key, why: str, until: float) -> None:
        self._silent[key.netns, key.addr] = (until, why)
        self._silent.move_to_end((key.netns, key.addr))
        while len(self._silent) > _CACHE_MAX:
            self._silent.popitem(last=False)

    # -- outcomes -------------------------------------------------------------------------------------

    def _outcome(self, chosen: Choice | Refusal, offer: Offer, where: str, seconds: float) -> Outcome:
        until = self._loop.now + seconds
        if isinstance(chosen, Refusal):
            return Outcome(Verdict.REFUSED, until, detail=f"{where}: {chosen}")
        omitted = "; ".join(str(o) for o in chosen.plan.omitted)
        if not chosen.plan.chunnels:
            return Outcome(Verdict.PLAIN, until, detail=f"{where}: left out: {omitted}" if omitted else "")
        try:
            plan = chosen.plan.encode()
        except NegotiationError as error:
            return Outcome(Verdict.REFUSED, until, detail=f"{where}: {error.strerror}")
        return Outcome(Verdict.PLAN, until, plan, chosen.client)

    @staticmethod
    def _nobody(offer: Offer, where: str, why: str, until: float) -> Outcome:
        """Nobody to negotiate with: plain, unless this end requires something."""
        required = required_of(offer)
        if not required:
            return Outcome(Verdict.PLAIN, until, detail=f"{where}: {why}", nobody=True)
        text = f"{where}: required chunnel {', '.join(required)} cannot be had: {why}"
        return Outcome(Verdict.REFUSED, until, detail=text, nobody=True)

    # -- asking another agent -------------------------------------------------------------------------

    def _ask(self, question: _Question, wish: Negotiate, sock: socket.socket) -> None:
        key = question.key
        self._asked[key] = question
        # Patience is for hosts that may not be there.  Where an agent has accepted, giving up early would
        # make a connection plain that its server then refuses.
        connecting = min(_CONNECT_SECONDS, max(0.05, wish.patience_ms / 1000))
        if required_of(key.offer):
            connecting = _CONNECT_SECONDS_REQUIRED
        now = time.monotonic()  # the first offer takes a while to make, which is not the other host's fault
        question.until = now + _TALK_SECONDS
        question.talk = talk = Talk(
            self._loop,
            sock,
            question.machine,
            now + connecting,
            lambda: None,
            lambda error: self._told(question, error),
        )
        host = addresses.to_text(key.addr)
        if sock.family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        talk.connect((host, self._port))

    def _told(self, question: _Question, error: OSError | None) -> None:
        """The conversation has ended."""
        del self._asked[question.key]
        outcome = self._conclude(question, error)
        for caller, context in question.waiting:
            application = caller.process is not None and caller.process.offer is not None
            self._answer(caller, outcome.reply(self._loop.now, context, application=application))

    def _conclude(self, question: _Question, error: OSError | None) -> Outcome:
        key, offer, talk = question.key, question.key.offer, question.talk
        where = addresses.endpoint(key.addr, key.port)
        now = self._loop.now
        event = question.machine.event()
        if isinstance(event, Plan):
            problem = acceptable(event, offer, "client", question.check)
            chosen = problem or Choice(event, carrier_of(event, offer, "client"))
            outcome = self._outcome(chosen, offer, where, _PLAN_SECONDS)
        elif isinstance(event, Refusal):
            outcome = self._outcome(event, offer, where, _NO_LISTENER_SECONDS)
        elif event is NO_LISTENER:
            why = "no program under bertha-run listens there"
            outcome = self._nobody(offer, where, why, now + _NO_LISTENER_SECONDS)
        elif isinstance(event, Failed):
            outcome = self._nobody(offer, where, event.why, now + _NO_LISTENER_SECONDS)
        else:
            met = talk is not None and talk.connected
            what = (
                "the agent there does not answer" if met else f"no agent answers there on port {self._port}"
            )
            why = f"{what} ({error.strerror if error else 'it says nothing'})"
            until = now + (_SLOW_SECONDS if met else _NO_AGENT_SECONDS)
            self._remember_silence(key, why, until)
            return self._nobody(offer, where, why, until)
        self._remember(key, outcome)
        return outcome

    # -- the loop -------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """See loop.Ticker."""
        return min((q.talk.until for q in self._asked.values() if q.talk is not None), default=None)

    def tick(self, now: float) -> None:
        """See loop.Ticker."""
        for question in list(self._asked.values()):
            talk = question.talk
            if talk is not None and talk.until <= now:
                talk.look()  # it is we who may have been slow
                if talk.closed:
                    continue
                if talk.connected and question.until > now:
                    talk.until = question.until  # it has accepted in time: it has the rest of its time
                else:
                    talk.expire()

    def close(self) -> None:
        """Ends all conversations; nobody is answered any more."""
        for question in self._asked.values():
            if question.talk is not None:
                question.talk.close()
        self._asked.clear()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._asked)

    def facts(self) -> list[dict[str, object]]:
        """For STATUS: what is remembered now, by destination."""
        now = self._loop.now
        plans: list[dict[str, object]] = [
            {
                "destination": addresses.endpoint(key.addr, key.port),
                "verdict": outcome.verdict.name.lower(),
                "chunnels": [c.type for c in Plan.decode(outcome.plan).chunnels] if outcome.plan else [],
                "detail": outcome.detail or None,
                "seconds": round(outcome.until - now, 1),
            }
            for key, outcome in self._known.items()
            if outcome.until > now
        ]
        silent: list[dict[str, object]] = [
            {
                "destination": addresses.to_text(addr),
                "verdict": "silent",
                "chunnels": [],
                "detail": why,
                "seconds": round(until - now, 1),
            }
            for (_, addr), (until, why) in self._silent.items()
            if until > now
        ]
        return plans + silent
