"""The choice by brute force: every plan there is, those that are allowed, and the best of them.

Written from docs/negotiation.md, with no function of choose.py: slow, and plain to read.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from typing import Final

from bertha_socket.dag import Need, Value
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedImplementation
from bertha_socket.negotiation.plan import PlannedChunnel

Way = tuple[OfferedImplementation | None, OfferedImplementation | None, str]
Slot = tuple[str, OfferedChunnel | None, OfferedChunnel | None]

_NEAR: Final = ["application", "host", "network", "global"]


def slots(client: Offer, server: Offer) -> set[tuple[str, int]]:
    """What must be decided: (type, nth)."""
    found = set()
    for offer in (client, server):
        for kind in {c.type for c in offer.chunnels}:
            asked = [c for c in offer.chunnels if c.type == kind and c.need in (Need.REQUIRE, Need.PREFER)]
            found |= {(kind, n) for n in range(len(asked))}
    return found


def asked(offer: Offer, kind: str, nth: int) -> OfferedChunnel | None:
    """The nth chunnel of a type that an end asks for."""
    found = [c for c in offer.chunnels if c.type == kind and c.need in (Need.REQUIRE, Need.PREFER)]
    return found[nth] if nth < len(found) else None


def decide(client: Offer, server: Offer, kind: str, nth: int) -> PlannedChunnel | str | None:
    """The chunnel as planned; None: it is left out; "refused": there is no plan."""
    c, s = asked(client, kind, nth), asked(server, kind, nth)
    required = any(x is not None and x.need is Need.REQUIRE for x in (c, s))
    lost = "refused" if required else None
    said = {x.need for offer in (client, server) for x in offer.chunnels if x.type == kind}
    if Need.PROHIBIT in said or (Need.AVOID in said and not required):
        return lost
    args = _arguments(c, s)
    if args is None:
        return lost
    ways = [w for w in _every_way(client, server, kind, c, s) if _allowed(w, client, server, kind, c, s)]
    if not ways:
        return lost
    mine, other, wire = min(ways, key=lambda w: _worse(w, client, server, kind))
    return PlannedChunnel(
        kind,
        tuple(sorted(args.items())),
        wire,
        mine and mine.name,
        other and other.name,
        mine and mine.where,
        other and other.where,
    )


def _arguments(c: OfferedChunnel | None, s: OfferedChunnel | None) -> dict[str, Value] | None:
    one, two = dict(c.args) if c else {}, dict(s.args) if s else {}
    firm = set(c.firm if c else ()) | set(s.firm if s else ())
    for name in one.keys() & two.keys() & firm:
        # repr tells 1 from 1.0 and True, and 0.0 from -0.0.
        if repr(one[name]) != repr(two[name]):
            return None
    return one | two


def _listed(offer: Offer, kind: str, chunnel: OfferedChunnel | None) -> tuple[OfferedImplementation, ...]:
    if chunnel is not None:
        return chunnel.implementations
    for able in offer.able:
        if able.type == kind:
            return able.implementations
    return ()


def _every_way(
    client: Offer, server: Offer, kind: str, c: OfferedChunnel | None, s: OfferedChunnel | None
) -> Iterator[Way]:
    ours, theirs = _listed(client, kind, c), _listed(server, kind, s)
    wires = {w for i in (*ours, *theirs) for w in i.wires} | {"none"}
    for one, two in itertools.product((None, *ours), (None, *theirs)):
        for wire in sorted(wires):
            yield one, two, wire


def _allowed(
    way: Way,
    client: Offer,
    server: Offer,
    kind: str,
    c: OfferedChunnel | None,
    s: OfferedChunnel | None,
) -> bool:
    one, two, wire = way
    running = [i for i in (one, two) if i is not None]
    known = {
        e.endpoints
        for offer in (client, server)
        for e in (*offer.able, *(x for x in offer.chunnels if x.need is not Need.PROHIBIT))
        if e.type == kind
    }
    if one is not None and two is not None:
        if not (
            one.endpoints == "both" and two.endpoints == "both" and wire in one.wires and wire in two.wires
        ):
            return False
    elif "both" in known:
        return False
    elif one is not None:
        if one.endpoints not in ("client", "either") or wire != (one.wires or ("none",))[0]:
            return False
    elif two is not None:
        if two.endpoints not in ("server", "either") or wire != (two.wires or ("none",))[0]:
            return False
    else:
        scoped = (*_in_scope(_listed(client, kind, c), c, s), *_in_scope(_listed(server, kind, s), c, s))
        if wire != "none" or not known <= {"", "none"} or not any(i.endpoints == "none" for i in scoped):
            return False
    if len(_in_scope(tuple(running), c, s)) != len(running):
        return False
    for offer, own, other in ((client, one, two), (server, two, one)):
        for i in running:
            if any(_means(p, kind, i.name) for p in offer.rules.prohibit):
                return False
        judged = own if own is not None else other
        about = [p for p in offer.rules.require if "/" not in p or fnmatch.fnmatchcase(kind, p.split("/")[0])]
        if judged is not None and about and not any(_means(p, kind, judged.name) for p in about):
            return False
    return True


def _in_scope(
    found: tuple[OfferedImplementation, ...], c: OfferedChunnel | None, s: OfferedChunnel | None
) -> list[OfferedImplementation]:
    scopes = [x.scope for x in (c, s) if x is not None and x.scope is not None]
    return [i for i in found if all(_NEAR.index(i.where) <= _NEAR.index(scope.value) for scope in scopes)]


def _means(pattern: str, kind: str, name: str) -> bool:
    return fnmatch.fnmatchcase(f"{kind}/{name}", pattern if "/" in pattern else f"*/{pattern}")


def _worse(way: Way, client: Offer, server: Offer, kind: str) -> list[object]:
    one, two, wire = way
    key: list[object] = []
    for offer, own, other in ((client, one, two), (server, two, one)):
        judged = own if own is not None else other
        place = 0
        if judged is not None:
            wishes = [("prefer", p) for p in offer.rules.prefer] + [("avoid", p) for p in offer.rules.avoid]
            hits = [n for n, (_, p) in enumerate(wishes) if _means(p, kind, judged.name)]
            if hits:
                n = hits[0]
                preferred = wishes[n][0] == "prefer"
                place = n - len(wishes) if preferred else n + 1
        key.append(place)
    key += [one is None, two is None]
    key += [-(one.priority if one else 0), -(two.priority if two else 0)]
    for i in (one, two):
        key.append(i.wires.index(wire) if i is not None and wire in i.wires else 0)
    key += [one.name if one else "", two.name if two else ""]
    return key
