"""The choice: two offers in, a plan or a refusal out.  Pure: the same offers give the same outcome anywhere.

Each chunnel of the union is decided on its own, so the work grows with the sum of the alternatives.  An
operator may replace the order of preference; what is possible at all is not a policy's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bertha_socket.dag import Need, Scope
from bertha_socket.negotiation._codec import Args, NegotiationError, printable, same
from bertha_socket.negotiation._inner import sub_chunnels, wanted
from bertha_socket.negotiation.offer import WHERES, Offer, OfferedChunnel, OfferedImplementation
from bertha_socket.negotiation.order import Pair, union
from bertha_socket.negotiation.plan import (
    NO_WIRE,
    OMITTED_MAX,
    WHY_MAX,
    Omitted,
    Plan,
    PlannedChunnel,
    Refusal,
    lone_wire,
    near_enough,
)
from bertha_socket.negotiation.rules import About

#: Bytes of the reason why a chunnel was left out, where there are very many of them; of what both ends have,
#: where there is more to say than there is room.
_BRIEF: Final = 40
_ENDS_MAX: Final = 80


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to run a chunnel: by these implementations, in that wire."""

    client: OfferedImplementation | None
    server: OfferedImplementation | None
    wire: str


@dataclass(frozen=True, slots=True)
class Wish:
    """A chunnel of the union, its needs and arguments brought together."""

    type: str
    args: Args
    required: bool
    scope: Scope | None


#: An operator's policy: the alternatives come in the default order; one of them, or None: none will do.
Policy = Callable[[Wish, Sequence[Alternative]], Alternative | None]


def first(wish: Wish, alternatives: Sequence[Alternative]) -> Alternative | None:
    """The default policy: the paper's (section 4.3), by the order in which `choose` gives the alternatives.

    What rules prefer, the client's before the server's; what the client runs before what the server runs;
    higher priority (kernel bypass and hardware) before lower; the wire that the client lists first.
    """
    return alternatives[0] if alternatives else None


class _Left(Exception):
    """A chunnel cannot be had; the text says why."""


def choose(client: Offer, server: Offer, policy: Policy | None = None) -> Plan | Refusal:
    """The plan for connections of a client and a server, or why there is none.

    A preferred chunnel that cannot be had is left out and named in the plan's `omitted`; a required one makes
    it a refusal.  Raises nothing: a policy that fails is a refusal too.
    """
    planned: list[PlannedChunnel] = []
    omitted: list[Omitted] = []
    for pair in union(tuple(client.wanted()), tuple(server.wanted())):
        required = any(c is not None and c.need is Need.REQUIRE for c in pair)
        try:
            found, lost = _plan(pair, required, client, server, policy or first)
            planned.append(found)
            omitted += lost
        except _Left as why:
            if required:
                return _refusal(pair, str(why), client, server)
            omitted.append(_omission(pair, str(why), client, server))
    return within_limits(Plan(tuple(planned), tuple(omitted)))


def omission(kind: str, why: str, client: Offer, server: Offer) -> Omitted:
    """A chunnel that both ends could have, and that is left out for another reason than those known here."""
    ends = (next((c for c in o.chunnels if c.type == kind and c.wanted), None) for o in (client, server))
    return _omission(Pair(*ends), why, client, server)


def without_a_plan(own: Offer, side: str, why: str) -> Plan:
    """What the end `side` ("client" or "server") goes without where the other one brings no plan: all that it
    prefers.  (What it requires it does not go without.)"""
    nobody = Offer()
    omitted = []
    for chunnel in own.wanted():
        if chunnel.need is not Need.PREFER:
            continue
        if side == "server":
            omitted.append(_omission(Pair(None, chunnel), why, nobody, own))
        else:
            omitted.append(_omission(Pair(chunnel, None), why, own, nobody))
    return Plan(omitted=tuple(omitted[:OMITTED_MAX]))


def within_limits(plan: Plan) -> Plan | Refusal:
    """What was left out is told as far as there is room: it is no reason to refuse what can be had."""
    whole = plan.omitted[:OMITTED_MAX]
    brief = tuple(Omitted(o.type, printable(o.why, _BRIEF)) for o in whole)
    for omitted in (whole, brief, ()):
        found = Plan(plan.chunnels, omitted)
        try:
            found.encode()
        except NegotiationError as error:
            problem = error
        else:
            return found
    return Refusal("the DAG", str(problem.strerror))


_Planned = tuple[PlannedChunnel, list[Omitted]]


def _plan(pair: Pair, required: bool, client: Offer, server: Offer, policy: Policy) -> _Planned:
    kind = pair.type
    for side, offer in (("client", client), ("server", server)):
        if offer.speaks(kind, Need.PROHIBIT):
            raise _Left(f"the {side} prohibits it")
        if offer.speaks(kind, Need.AVOID) and not required:
            raise _Left(f"the {side} avoids it")
    wish = Wish(kind, _merged(pair), required, _narrower(pair))
    alternatives = alternatives_of(pair, wish, client, server)
    if not alternatives:
        raise _Left(_why_none(pair, wish, client, server))
    try:
        chosen = policy(wish, alternatives)
    except Exception as error:
        # The operator's code.  Whatever is wrong with it must not make a connection plain.
        raise _Left(f"the policy function failed ({type(error).__name__}: {error})") from None
    if chosen is None:
        raise _Left("the policy function wants none of the alternatives")
    if chosen not in alternatives:
        raise _Left("the policy function returned something that is none of the alternatives")
    inner, lost = _within(pair, wish, client, server, policy)
    planned = PlannedChunnel(
        inner=inner,
        type=kind,
        args=wish.args,
        wire=chosen.wire,
        client=chosen.client.name if chosen.client else None,
        server=chosen.server.name if chosen.server else None,
        client_where=chosen.client.where if chosen.client else None,
        server_where=chosen.server.where if chosen.server else None,
    )
    return planned, lost


def _within(
    pair: Pair, wish: Wish, client: Offer, server: Offer, policy: Policy
) -> tuple[tuple[PlannedChunnel | None, ...], list[Omitted]]:
    """What runs of the sub-DAGs among the arguments, each chunnel decided on its own like any other."""
    subs = sub_chunnels(wish.args)
    # An end whose sub-DAGs are not the ones in force has nothing to say about them.
    ours, theirs = (
        c.inner if c is not None and [i.type for i in c.inner] == [s.type for _place, s in subs] else ()
        for c in pair
    )
    if not ours and not theirs:
        return (), []
    found: list[PlannedChunnel | None] = []
    omitted: list[Omitted] = []
    for at, (place, sub) in enumerate(subs):
        if not wanted(sub):
            found.append(None)
            continue
        one = Pair(ours[at] if ours else None, theirs[at] if theirs else None)
        required = sub.need is Need.REQUIRE
        try:
            planned, lost = _plan(one, required, client, server, policy)
            found.append(planned)
            omitted += lost
        except _Left as why:
            if required:
                raise _Left(_lost_within(one, place, str(why), client, server)) from None
            found.append(None)
            omitted.append(_omission(one, f"in {place} of {pair.type}: {why}", client, server))
    return tuple(found), omitted


def _lost_within(pair: Pair, place: str, why: str, client: Offer, server: Offer) -> str:
    ours, theirs = (
        ",".join(i.name for i in _runnable(c, pair.type, o)) or "none"
        for c, o in ((pair.client, client), (pair.server, server))
    )
    return f"{pair.type} in {place}: {why} (client: {ours}; server: {theirs})"


def _merged(pair: Pair) -> Args:
    """Both ends' arguments; where both give one, the server's, unless an end insists."""
    if pair.client is None or pair.server is None:
        return (pair.client or pair.server or _nobody()).args
    found = dict(pair.client.args)
    firm = {*pair.client.firm, *pair.server.firm}
    for name, value in pair.server.args:
        if name in firm and name in found and not same(found[name], value):
            raise _Left(f"client and server insist on different values of '{name}'")
        found[name] = value
    return tuple((name, found[name]) for name in sorted(found))


def _narrower(pair: Pair) -> Scope | None:
    scopes = [c.scope for c in pair if c is not None and c.scope is not None]
    return min(scopes, key=lambda s: WHERES.index(s.value), default=None)


def _nobody() -> OfferedChunnel:
    raise AssertionError("a pair without chunnels")


# -- what is possible -------------------------------------------------------------------------------------


def alternatives_of(pair: Pair, wish: Wish, client: Offer, server: Offer) -> tuple[Alternative, ...]:
    """Every way to run a chunnel that neither end rules out, the default policy's best first."""
    rules = (client.rules.about(wish.type), server.rules.about(wish.type))
    found = [a for a in _possible(pair, wish, client, server) if _allowed(a, *rules)]
    found.sort(key=lambda a: _rank(a, *rules))
    return tuple(found)


def _possible(pair: Pair, wish: Wish, client: Offer, server: Offer) -> Iterator[Alternative]:
    """Every way to run a chunnel, whatever rules say."""
    ours = [i for i in _runnable(pair.client, pair.type, client) if near_enough(wish.scope, i.where)]
    theirs = [i for i in _runnable(pair.server, pair.type, server) if near_enough(wish.scope, i.where)]
    yield from _pairs(ours, theirs)
    known = _known_endpoints(pair, client, server)
    if "both" in known:
        return
    for i in ours:
        if i.endpoints in ("client", "either"):
            yield Alternative(i, None, lone_wire(i))
    for i in theirs:
        if i.endpoints in ("server", "either"):
            yield Alternative(None, i, lone_wire(i))
    if known <= {"none"} and any(i.endpoints == "none" for i in (*ours, *theirs)):
        yield Alternative(None, None, NO_WIRE)


def _runnable(
    chunnel: OfferedChunnel | None, type_name: str, offer: Offer
) -> tuple[OfferedImplementation, ...]:
    entry = chunnel if chunnel is not None else offer.unasked(type_name)
    return entry.implementations if entry is not None else ()


def _pairs(
    ours: Sequence[OfferedImplementation], theirs: Sequence[OfferedImplementation]
) -> Iterator[Alternative]:
    for c in ours:
        for s in theirs:
            if c.endpoints == s.endpoints == "both":
                yield from (Alternative(c, s, wire) for wire in dict.fromkeys(c.wires) if wire in s.wires)


def _known_endpoints(pair: Pair, client: Offer, server: Offer) -> set[str]:
    """What the ends know about which ends must take part; no implementation may claim to need fewer."""
    entries = [*client.entries(pair.type), *server.entries(pair.type)]
    return {e.endpoints for e in entries} - {""}


def _allowed(a: Alternative, client: About, server: About) -> bool:
    for i in (a.client, a.server):
        if i is not None and (client.prohibits(i.name) or server.prohibits(i.name)):
            return False
    for rules, judged in ((client, a.client or a.server), (server, a.server or a.client)):
        if judged is not None and rules.lacks(judged.name):
            return False
    return True


def _rank(a: Alternative, client: About, server: About) -> tuple[object, ...]:
    c, s = a.client, a.server
    return (
        client.rank(_name(c or s)),
        server.rank(_name(s or c)),
        c is None,
        s is None,
        -c.priority if c else 0,
        -s.priority if s else 0,
        c.wires.index(a.wire) if c and a.wire in c.wires else 0,
        s.wires.index(a.wire) if s and a.wire in s.wires else 0,
        _name(c) or "",
        _name(s) or "",
    )


def _name(i: OfferedImplementation | None) -> str | None:
    return i.name if i is not None else None


# -- why not ----------------------------------------------------------------------------------------------


def _why_none(pair: Pair, wish: Wish, client: Offer, server: Offer) -> str:
    ours = _runnable(pair.client, pair.type, client)
    theirs = _runnable(pair.server, pair.type, server)
    if not ours and not theirs:
        return "no implementation at either end"
    if "both" in _known_endpoints(pair, client, server) and not (ours and theirs):
        return f"no implementation at the {'server' if ours else 'client'}"
    if not any(near_enough(wish.scope, i.where) for i in (*ours, *theirs)):
        return f"nothing runs it within scope {wish.scope.value if wish.scope else ''}"
    if next(_possible(pair, wish, client, server), None) is not None:
        return "rules leave no implementation"
    wires = {w for i in ours for w in i.wires} & {w for i in theirs for w in i.wires}
    if ours and theirs and not wires:
        return "no wire in common"
    return "no implementations that fit each other"


def _refusal(pair: Pair, why: str, client: Offer, server: Offer) -> Refusal:
    return Refusal(
        pair.type,
        why,
        _alternatives_text(_runnable(pair.client, pair.type, client)),
        _alternatives_text(_runnable(pair.server, pair.type, server)),
    )


def _omission(pair: Pair, why: str, client: Offer, server: Offer) -> Omitted:
    """As a refusal says it, within the room that there is: names alone where all would be too long."""
    ends = (_runnable(pair.client, pair.type, client), _runnable(pair.server, pair.type, server))
    # It is part of the plan, which does not depend on the order of what is offered.
    ours, theirs = (sorted(e, key=lambda i: (-i.priority, i.name, i.wires)) for e in ends)
    line = f"{why}; client has {_alternatives_text(ours)}, server has {_alternatives_text(theirs)}"
    if len(line.encode("utf-8", "replace")) > WHY_MAX:
        has = printable(f"; client has {_names(ours)}, server has {_names(theirs)}", _ENDS_MAX)
        line = printable(why, WHY_MAX - len(has.encode())) + has
    return Omitted(pair.type, printable(line, WHY_MAX))


def _names(implementations: Sequence[OfferedImplementation]) -> str:
    return ", ".join(i.name for i in implementations) or "nothing"


def _alternatives_text(implementations: Sequence[OfferedImplementation]) -> str:
    return ", ".join(str(i) for i in implementations) or "nothing"
