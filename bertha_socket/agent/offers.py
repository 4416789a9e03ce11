"""What this host's programs offer: a policy's DAG together with the implementations that work here.

An end's chunnels all run in one process, the carrier, and there are two of them; so a plan is looked for with
offers that are restricted to one carrier each, the native ones first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from bertha_socket import keys
from bertha_socket._bottom import BOTTOM, upper
from bertha_socket.agent import memory, plans
from bertha_socket.agent.authors import Brought
from bertha_socket.agent.carriers import Judge, native_path
from bertha_socket.agent.messages import CarrierKind, DagNeed
from bertha_socket.agent.model import Listener, Process
from bertha_socket.agent.omissions import Omissions
from bertha_socket.agent.registry import Registry
from bertha_socket.agent.secrets import SecretError, Secrets, named_files
from bertha_socket.chunnels import ChunnelType, Implementation, all_types, get
from bertha_socket.chunnels._native import native_probe
from bertha_socket.chunnels._registry import BUILTIN
from bertha_socket.dag import Chunnel, Dag, Need, Value
from bertha_socket.negotiation.choose import Policy as ChoicePolicy
from bertha_socket.negotiation.choose import choose, omission, within_limits
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedType, offer_of
from bertha_socket.negotiation.pick import IMPLEMENTATIONS
from bertha_socket.negotiation.plan import Check, Plan, Refusal, acceptable, walk
from bertha_socket.negotiation.rules import Rules
from bertha_socket.policy import Policy, Rule, Subject

#: Both ends native, then as little Python as will do.
_PAIRS: Final = (
    (CarrierKind.NATIVE, CarrierKind.NATIVE),
    (CarrierKind.PYTHON, CarrierKind.NATIVE),
    (CarrierKind.NATIVE, CarrierKind.PYTHON),
    (CarrierKind.PYTHON, CarrierKind.PYTHON),
)
#: Seconds for which a probe's finding is believed.
_PROBE_SECONDS: Final = 60.0
_OFFERS_MAX: Final = 512
#: For a chunnel that is not here.
REMEDY: Final = "name its class by a [[chunnel]] in the policy file"


class Choice(NamedTuple):
    """A plan, and the carrier of each end (of the server's only where it is chosen)."""

    plan: Plan
    client: CarrierKind
    server: CarrierKind = CarrierKind.NATIVE


class Offers:
    """The offers of everybody who is registered with one agent."""

    def __init__(self, secrets: Secrets, policy: ChoicePolicy | None = None) -> None:
        """`policy`: an operator's order of preference."""
        self._secrets = secrets
        #: For the log of servers' ends.
        self.omissions = Omissions()
        self._policy = policy
        self._probes: dict[tuple[str, str], tuple[float, str | None]] = {}
        self._made: dict[tuple[object, ...], tuple[float, Offer, object]] = {}

    def key_fact(self) -> str | None:
        """For STATUS: the cluster key's id, or what is wrong with it."""
        try:
            key = keys.find()
        except keys.KeyFileError as error:
            return error.strerror
        return None if key is None else keys.key_id(key)

    def prepare(self) -> Iterator[None]:
        """What takes long when the first offer is made, piece by piece: on a busy machine who waits for that
        gives up, and is plain."""
        for name in sorted(BUILTIN):
            for implementation in get(name).implementations:
                self._probe(name, implementation)
            yield

    # -- offers ---------------------------------------------------------------------------------------

    def of_client(self, process: Process, addr: bytes, port: int, proto: str = "tcp") -> tuple[Offer, int]:
        """What a process offers for its connections to `addr`, and the number of its own certificates.

        Raises OSError: its DAG makes no sense.
        """
        if process.offer is not None:
            return process.offer, 0
        dag = plans.dag_of(process.policy, process.subject, "client", addr, port, proto)
        context = self._secrets.for_client(dag, process.peer.uid)
        who = Who(process.policy, process.subject, process.peer.uid, process.brought)
        return self._offer(who, "client", addr, port, proto), context

    def of_listener(self, listener: Listener, addr: bytes) -> Offer:
        """What a listener offers to those who reach it under `addr`.  Raises OSError."""
        if listener.offer is not None:
            return listener.offer
        who = Who(listener.policy, listener.subject, listener.uid, listener.brought)
        return self._offer(who, "server", addr, listener.where.port, listener.where.proto)

    def of_end(self, who: Who, side: str, addr: bytes, port: int, proto: str = "tcp") -> Offer:
        """What an end would offer that is not registered (`bertha explain`).  Raises OSError."""
        self._secrets.check(plans.dag_of(who.policy, who.subject, side, addr, port, proto), who.uid)
        return self._offer(who, side, addr, port, proto)

    def _offer(self, who: Who, side: str, addr: bytes, port: int, proto: str) -> Offer:
        brought = who.brought
        rule = plans.rule_of(who.policy, who.subject, side, addr, port, proto)
        dag = plans.dag_of(who.policy, who.subject, side, addr, port, proto)
        chunnels = upper(dag) if dag is not None else ()
        has_key = self._has_key()
        foreign = who.uid != os.geteuid()
        if side == "server":
            self._secrets.check(dag, who.uid)
        for name, problem in brought.errors:
            if any(c.type == name for c in chunnels):
                raise OSError(errno.EINVAL, f"chunnel {name}: {problem}")
        wishes = rule.wishes if rule is not None else None
        key = (Dag(chunnels), wishes, has_key, foreign, id(brought.types), proto)
        known = self._made.get(key)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        offer = self._make(Dag(chunnels), rule, has_key, foreign, brought, proto)
        if len(self._made) >= _OFFERS_MAX:
            self._made.clear()
        # With the types, so that no others get their id.
        self._made[key] = (time.monotonic() + _PROBE_SECONDS, offer, brought.types)
        return offer

    def _make(
        self, dag: Dag, rule: Rule | None, has_key: bool, foreign: bool, brought: Brought, proto: str
    ) -> Offer:
        own_certificate = bool(named_files(dag))

        def usable(kind: ChunnelType, implementation: Implementation) -> bool:
            if kind.name == "encrypt" and not has_key and not own_certificate:
                return False
            if not implementation.carries(proto):
                return False
            if implementation.carrier == "native" and native_path() is None:
                return False
            if foreign and has_key and not implementation.builtin:
                return False  # another user's carrier has no key: see carriers.Carriers._give
            if kind in brought.types:
                return implementation.probe() is None
            return self._probe(kind.name, implementation) is None

        types = [t for t in (*all_types(), *brought.types) if t.name not in BOTTOM]
        offer = offer_of(dag, types, chunnel_rules(rule), usable)
        if not has_key:  # its own certificate is for its own chunnel
            offer = dataclasses.replace(offer, able=tuple(t for t in offer.able if t.type != "encrypt"))
        return offer

    def _probe(self, kind: str, implementation: Implementation) -> str | None:
        now = time.monotonic()
        known = self._probes.get((kind, implementation.name))
        if known is None or known[0] <= now:
            try:
                found = implementation.probe()
            except Exception as error:  # somebody else's code
                found = f"its probe failed: {error}"
            known = self._probes[kind, implementation.name] = (now + _PROBE_SECONDS, found)
        return known[1]

    def _has_key(self) -> bool:
        return self.why_no_key() is None

    def why_no_key(self) -> str | None:
        """Why there is no cluster key, and the remedy; None: there is one."""
        try:
            return keys.NO_KEY if self._secrets.cluster_key() is None else None
        except keys.KeyFileError as error:
            return error.strerror or str(error)

    def settle(self, listener: Listener) -> None:
        """Decides what a listener's connections may have, by its policy, and tells its processes."""
        where = listener.where
        need = DagNeed.NONE
        before = listener.spin_us
        listener.spin_us = plans.spin_bound(listener, listener.entries or listener.reached_at)
        if listener.offer is not None:  # the application sees to its chunnels, and no carrier
            if listener.need != need:
                _mark(listener, need, CarrierKind.NATIVE)
            return
        offers = []
        problem = False
        for addr in listener.entries:
            dag = plans.dag_of(listener.policy, listener.subject, "server", addr, where.port, where.proto)
            found = plans.need_of(dag)
            if found != DagNeed.NONE:
                with contextlib.suppress(OSError):  # then every client is refused, and told why
                    try:
                        self._secrets.for_listener(listener.id, dag, listener.uid, listener.users)
                    except SecretError:
                        problem = True
                        raise
                    offers.append(self.of_listener(listener, addr))
                need = DagNeed.REQUIRED if DagNeed.REQUIRED in (need, found) else DagNeed.MAYBE
        if problem:  # what the rule for another address says is not for this one
            self._secrets.refuse(listener.id, (listener.uid, *listener.users))
        self.omissions.settled(listener, offers if need == DagNeed.MAYBE else [])
        if need == DagNeed.NONE and listener.need == DagNeed.MAYBE:
            # Clients have brought chunnels, and keep them.
            if before != listener.spin_us:
                _mark(listener, listener.need, listener.carrier)
            return
        least = _least_of_datagrams if where.proto == "udp" else _least_carrier
        carrier = max((least(offer) for offer in offers), default=CarrierKind.NATIVE)
        if native_path() is None:
            carrier = max(carrier, CarrierKind.PYTHON)
        if (need, carrier, before) != (listener.need, listener.carrier, listener.spin_us):
            _mark(listener, need, carrier)

    # -- plans ----------------------------------------------------------------------------------------

    def choose(self, client: Offer, listener: Listener, addr: bytes) -> Choice | Refusal:
        """The plan for a client with that offer, and the listener made ready for it."""
        found = self._decided(client, listener, addr)
        if not _is_ready(listener, found):
            assert isinstance(found, Choice)
            if listener.need == DagNeed.NONE:
                _mark(listener, DagNeed.MAYBE, found.server)
            else:
                _mark(listener, listener.need, found.server)  # it can do all that the one before can
        return found

    def choose_for_anybody(self, client: Offer, listener: Listener, addr: bytes) -> Choice | Refusal | None:
        """The same for one who may not be who he says he is: None if the listener is not ready for it."""
        found = self._decided(client, listener, addr)
        return found if _is_ready(listener, found) else None

    def _decided(self, client: Offer, listener: Listener, addr: bytes) -> Choice | Refusal:
        try:
            server = self.of_listener(listener, addr)
            found = self.decide(client, server)
        except OSError as error:  # its rule says what cannot be: no reason to do without
            return Refusal("the server's DAG", error.strerror or str(error))
        if isinstance(found, Choice) and listener.where.proto == "udp":
            found = found._replace(server=carrier_of_datagrams(found.plan, server, "server"))
        return found

    def decide(self, client: Offer, server: Offer) -> Choice | Refusal:
        """The plan for two ends' offers; a refusal for want of a key says so."""
        found = pick(client, server, self._policy)
        if isinstance(found, Refusal) and found.chunnel == "encrypt" and _nobody_runs_it(found.why):
            why = self.why_no_key()
            return found if why is None else dataclasses.replace(found, why=why)
        if isinstance(found, Refusal) and found.chunnel not in BUILTIN and _nobody_runs_it(found.why):
            return dataclasses.replace(found, why=f"{found.why}; {REMEDY}")
        return found

    def judge_for(self, registry: Registry) -> Judge:
        """For carriers: whether a plan that a client shows may run at a listener."""

        def judge(number: int, data: bytes) -> str | None:
            listener = registry.listeners.lately(number)
            if listener is None:
                return "the listener is not registered any more"
            try:
                plan = Plan.decode(data)
                places = listener.entries or listener.reached_at
                offers = {self.of_listener(listener, addr) for addr in places}
            except OSError as error:
                return error.strerror or str(error)
            problem: Refusal | None = None
            for offer in offers:
                problem = acceptable(plan, offer, "server", checker(listener.brought))
                if problem is None:
                    return None
            return str(problem) if problem is not None else "the listener has no address any more"

        return judge


class Who(NamedTuple):
    """Whose offer it is."""

    policy: Policy
    subject: Subject
    uid: int
    brought: Brought


def _nobody_runs_it(why: str) -> bool:
    """Whether a refusal is for want of implementations, not because somebody wants it so."""
    return why.startswith("no implementation")


def _is_ready(listener: Listener, found: Choice | Refusal) -> bool:
    """Whether its processes know already what this may ask of them."""
    if isinstance(found, Refusal) or not found.plan.chunnels or listener.offer is not None:
        return True
    return listener.need != DagNeed.NONE and listener.carrier >= found.server


def _mark(listener: Listener, need: DagNeed, carrier: CarrierKind) -> None:
    listener.need, listener.carrier = need, carrier
    memory.mark_claims(listener.claims_fd, need, carrier, plans.wire_bound(listener.spin_us))


def pick(client: Offer, server: Offer, policy: ChoicePolicy | None = None) -> Choice | Refusal:
    """The plan of two offers with one carrier at each end.

    What is chosen freely, if it is such a plan; else, of those with restricted offers, the one with the most
    chunnels and then the least Python.
    """
    free = choose(client, server, policy)
    if isinstance(free, Refusal):
        return free
    at_ends = (_only_carrier(free, client, "client"), _only_carrier(free, server, "server"))
    if at_ends[0] is not None and at_ends[1] is not None:
        return _chosen(free, at_ends[0], at_ends[1])
    best: Choice | None = None
    refusal = Refusal("the DAG", "no carrier has implementations of all its chunnels")
    for at_client, at_server in _PAIRS:
        found = choose(_only(client, at_client), _only(server, at_server), policy)
        if isinstance(found, Refusal):
            refusal = found
        elif not (_fits(found, "client", at_client) and _fits(found, "server", at_server)):
            continue
        elif best is None or len(found.chunnels) > len(best.plan.chunnels):
            best = _chosen(found, at_client, at_server)
    return _told_truly(best, free, client, server) if best is not None else refusal


def _told_truly(choice: Choice, free: Plan, client: Offer, server: Offer) -> Choice:
    """What was left out for want of a carrier for all says that, and not what restricted offers lack."""
    possible = {c.type for c in walk(free.chunnels)}
    why = "no carrier runs it together with the others"
    omitted = [*free.omitted]
    omitted += (omission(o.type, why, client, server) for o in choice.plan.omitted if o.type in possible)
    told = within_limits(dataclasses.replace(choice.plan, omitted=tuple(omitted)))
    return choice._replace(plan=told) if isinstance(told, Plan) else choice


def _only(offer: Offer, carrier: CarrierKind) -> Offer:
    """The same, with what that carrier runs: `reliable` in C is in both."""
    native = carrier == CarrierKind.NATIVE
    name = carrier.name.lower()
    return offer.filtered(lambda kind, i: i.carrier == name or (native and _has_datagrams(kind, i.name)))


def _fits(plan: Plan, side: str, carrier: CarrierKind) -> bool:
    """The native carrier has one `reliable`, below all others (native/carrier/dgram_chain.h)."""
    many = sum(c.type == "reliable" and c.implementation(side) is not None for c in plan.chunnels) > 1
    return carrier != CarrierKind.NATIVE or not many


def _chosen(plan: Plan, client: CarrierKind, server: CarrierKind) -> Choice:
    return Choice(plan, _runs(plan, "client", client), _runs(plan, "server", server))


def _only_carrier(plan: Plan, offer: Offer, side: str) -> CarrierKind | None:
    """The carrier that has all of that end's implementations; None: they are in several."""
    every = walk(plan.chunnels)
    names = {(c.type, c.implementation(side)) for c in every if c.implementation(side) is not None}
    for kind in (CarrierKind.NATIVE, CarrierKind.PYTHON):
        if _fits(plan, side, kind) and names <= _names_in(_only(offer, kind)):
            return kind
    return None


def _all_of(chunnels: Iterable[OfferedChunnel]) -> Iterator[OfferedChunnel]:
    """They, and those of their sub-DAGs."""
    for chunnel in chunnels:
        yield chunnel
        yield from _all_of(chunnel.inner)


def _names_in(offer: Offer) -> set[tuple[str, str | None]]:
    entries: tuple[OfferedType | OfferedChunnel, ...] = (*offer.able, *_all_of(offer.chunnels))
    return {(e.type, i.name) for e in entries for i in e.implementations}


def carrier_of(plan: Plan, offer: Offer, side: str) -> CarrierKind:
    """Which carrier runs all of that end's implementations."""
    if _only_carrier(plan, offer, side) == CarrierKind.NATIVE:
        return CarrierKind.NATIVE
    return _runs(plan, side, CarrierKind.PYTHON)


def _runs(plan: Plan, side: str, kind: CarrierKind) -> CarrierKind:
    """The same kind, or AUTHORS when not all of it is our own code."""
    if kind == CarrierKind.NATIVE:
        return kind
    names = [(c.type, c.implementation(side)) for c in walk(plan.chunnels)]
    ours = all(n is None or _is_builtin(t, n) for t, n in names)
    return CarrierKind.PYTHON if ours else CarrierKind.AUTHORS


def _is_builtin(kind: str, name: str) -> bool:
    try:
        return any(i.name == name and i.builtin for i in get(kind).implementations)
    except KeyError:
        return False


def _least_carrier(offer: Offer) -> CarrierKind:
    """The first carrier that can run all that the offer asks for."""
    wanted = tuple(c for c in _all_of(offer.wanted()) if c.wanted)
    if all(any(i.carrier == "native" for i in c.implementations) for c in wanted):
        return CarrierKind.NATIVE
    if all(any(_is_builtin(c.type, i.name) for i in c.implementations) for c in wanted):
        return CarrierKind.PYTHON
    return CarrierKind.AUTHORS


def carrier_of_datagrams(plan: Plan, offer: Offer, side: str) -> CarrierKind:
    """The carrier of a UDP socket whose datagrams go by that plan."""
    here = [(c.type, c.implementation(side)) for c in plan.chunnels if c.implementation(side) is not None]
    if here and all(_is_native(t, n) for t, n in here):
        return CarrierKind.NATIVE
    return _python_of_datagrams(offer)


def _python_of_datagrams(offer: Offer) -> CarrierKind:
    """The carrier in Python of a UDP socket, whatever the plans are by which it speaks with others."""
    entries: tuple[OfferedType | OfferedChunnel, ...] = (*offer.able, *_all_of(offer.chunnels))
    ours = all(_is_builtin(e.type, i.name) for e in entries for i in e.implementations)
    return CarrierKind.PYTHON if ours else CarrierKind.AUTHORS


def _least_of_datagrams(offer: Offer) -> CarrierKind:
    """The carrier of datagrams for what the offer asks for, by the implementations that it likes best."""
    best = [(c.type, _liked_best(offer, c)) for c in offer.wanted()]
    if best and all(_is_native(kind, name) for kind, name in best):
        return CarrierKind.NATIVE
    return _python_of_datagrams(offer)


def _liked_best(offer: Offer, chunnel: OfferedChunnel) -> str | None:
    """Of those that the end's own rules let run, by their order and then by priority; None: none may."""
    about = offer.rules.about(chunnel.type)
    names = [i.name for i in chunnel.implementations]
    may = (name for name in names if not about.prohibits(name) and not about.lacks(name))
    return min(may, key=about.rank, default=None)


def _has_datagrams(kind: str, name: str | None) -> bool:
    """Whether native carriers of datagrams have that implementation."""
    try:
        return any(i.name == name and i.builtin and i.native_datagrams for i in get(kind).implementations)
    except KeyError:
        return False


def _is_native(kind: str, name: str | None) -> bool:
    """Whether this host's has it."""
    return _has_datagrams(kind, name) and native_path() is not None and native_probe(kind)() is None


def checker(brought: Brought) -> Check:
    """What is wrong with a planned chunnel's arguments, some of which may be the other end's."""
    own = {t.name: t for t in brought.types}

    def check(kind: str, arguments: Mapping[str, Value]) -> str | None:
        try:
            known = own[kind] if kind in own else get(kind)
            known.bind(Chunnel(kind, (), tuple(arguments.items())))
        except KeyError:
            return f"there is no chunnel type {kind} here"
        except OSError as error:
            return error.strerror
        return None

    return check


def required_of(offer: Offer) -> list[str]:
    """The types of the chunnels without which there must be no connection."""
    return [c.type for c in offer.chunnels if c.need is Need.REQUIRE]


def chunnel_rules(rule: Rule | None) -> Rules:
    """The rules about implementations of chunnels; those about local_or_remote are plans.py's."""
    if rule is None:
        return Rules()
    kept = {
        kind: tuple(p for p in getattr(rule.wishes, kind) if p not in IMPLEMENTATIONS)
        for kind in ("require", "prefer", "avoid", "prohibit")
    }
    return Rules(**kept, priorities=rule.wishes.priority)
