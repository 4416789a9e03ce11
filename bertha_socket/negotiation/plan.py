"""A plan: what was agreed for connections of one client to one listener, as bytes that both ends can check.

Whoever is shown a plan checks it with `acceptable`, against what it would offer now: a plan that was altered
on its way, or has gone stale, is refused instead of half-applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bertha_socket.dag import Need, Scope, Value
from bertha_socket.negotiation._codec import Args, Fields, as_fields, fail, pack, printable, same, unpack
from bertha_socket.negotiation._inner import DEPTH_MAX, INNER_MAX, sub_chunnels
from bertha_socket.negotiation.offer import (
    CHUNNELS_MAX,
    WHERES,
    Offer,
    OfferedChunnel,
    OfferedImplementation,
    OfferedType,
)

PLAN_VERSION: Final = 1
#: Bytes; what a carrier takes (BERTHA_CARRIER_PLAN_MAX).
PLAN_MAX: Final = 8192
#: The wire of a chunnel that puts nothing on the wire, or that one end runs alone.
NO_WIRE: Final = "none"
#: Bytes of the reason why a chunnel was left out; below, of a refusal's parts, which must fit into the line
#: that a carrier or the shim can show.
WHY_MAX: Final = 160
#: How the line about all of them begins, and its bytes (carrier.h: bertha_carrier_status).
LEFT_OUT: Final = "left out: "
LEFT_OUT_MAX: Final = 395
#: Chunnels of which a plan says that they were left out.
OMITTED_MAX: Final = 2 * CHUNNELS_MAX
_NAME_SHOWN: Final = 40
_REASON_MAX: Final = 120
_ALTERNATIVES_MAX: Final = 64
REFUSAL_LIMITS: Final = {
    "chunnel": _NAME_SHOWN,
    "why": _REASON_MAX,
    "client": _ALTERNATIVES_MAX,
    "server": _ALTERNATIVES_MAX,
}
#: check(type, arguments): one line why they are wrong, or None.
Check = Callable[[str, Mapping[str, Value]], str | None]


@dataclass(frozen=True, slots=True)
class PlannedChunnel:
    """One chunnel of a connection: by which implementations, and in which wire they meet."""

    type: str
    args: Args = ()
    wire: str = NO_WIRE
    #: The implementation at each end; None: nothing runs there.
    client: str | None = None
    server: str | None = None
    client_where: str | None = None
    server_where: str | None = None
    #: What runs of the sub-DAGs among the arguments, by position (negotiation._inner); None: it does not.
    inner: tuple[PlannedChunnel | None, ...] = ()

    @property
    def kwargs(self) -> dict[str, Value]:
        """The arguments by name."""
        return dict(self.args)

    def implementation(self, side: str) -> str | None:
        """The implementation at that end ("client" or "server")."""
        return self.client if side == "client" else self.server

    def where(self, side: str) -> str | None:
        """Where it runs at that end."""
        return self.client_where if side == "client" else self.server_where


@dataclass(frozen=True, slots=True)
class Omitted:
    """A chunnel that somebody preferred and that could not be had."""

    type: str
    why: str

    def __str__(self) -> str:
        return f"{self.type}: {self.why}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no plan: a required chunnel cannot be had."""

    chunnel: str
    why: str
    #: What each end could have run.
    client: str = ""
    server: str = ""

    def __post_init__(self) -> None:
        for name, limit in REFUSAL_LIMITS.items():
            object.__setattr__(self, name, printable(getattr(self, name), limit))

    def __str__(self) -> str:
        line = f"{self.chunnel} cannot be had: {self.why}"
        if self.client or self.server:
            line += f"; client has {self.client or 'nothing'}, server has {self.server or 'nothing'}"
        return line


@dataclass(frozen=True, slots=True)
class Plan:
    """The chunnels, the application's side first.  Hashable.  Without chunnels: plain."""

    chunnels: tuple[PlannedChunnel, ...] = ()
    omitted: tuple[Omitted, ...] = ()

    def encode(self) -> bytes:
        """The plan's one encoding, canonical msgpack.  Raises NegotiationError: longer than PLAN_MAX."""
        if len(self.chunnels) > CHUNNELS_MAX:
            fail(f"a plan of {len(self.chunnels)} chunnels, more than {CHUNNELS_MAX}; shorten the DAG")
        data = pack({"v": PLAN_VERSION, **self.fields()})
        if len(data) > PLAN_MAX:
            fail(f"a plan of {len(data)} bytes, more than {PLAN_MAX}; shorten the DAG's arguments")
        return data

    def fields(self) -> dict[str, object]:
        """For a message."""
        return {
            "chunnels": [_chunnel_fields(c) for c in self.chunnels],
            "omitted": [{"type": o.type, "why": o.why} for o in self.omitted],
        }

    @property
    def left_out(self) -> str:
        """What was preferred and could not be had, and why: a line for the log; "": nothing was left out."""
        line = "; ".join(str(o) for o in self.omitted)
        return printable(LEFT_OUT + line, LEFT_OUT_MAX) if line else ""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the encoding: 32 bytes."""
        return hashlib.sha256(self.encode()).digest()

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """The plan that these bytes are.  Raises NegotiationError."""
        f = unpack(data, PLAN_MAX, "plan")
        version = f.whole("v", 0, 2**32)
        if version != PLAN_VERSION:
            fail(f"plan: of version {version}, not {PLAN_VERSION}; run the same release at both ends")
        return cls(f.list("chunnels", CHUNNELS_MAX, _chunnel), f.list("omitted", OMITTED_MAX, _omitted))


def walk(chunnels: Iterable[PlannedChunnel | None]) -> Iterator[PlannedChunnel]:
    """All of them, and those within."""
    for chunnel in chunnels:
        if chunnel is not None:
            yield chunnel
            yield from walk(chunnel.inner)


def _chunnel_fields(c: PlannedChunnel) -> dict[str, object]:
    inner = [_chunnel_fields(i) if i is not None else None for i in c.inner]
    return {
        **({"inner": inner} if inner else {}),
        "type": c.type,
        "args": dict(c.args),
        "wire": c.wire,
        "client": c.client,
        "server": c.server,
        "client_where": c.client_where,
        "server_where": c.server_where,
    }


def _inner_of(f: Fields, deep: int) -> tuple[PlannedChunnel | None, ...]:
    if not f.has("inner"):
        return ()
    if deep >= DEPTH_MAX:
        fail(f"{f.what}: more than {DEPTH_MAX} sub-DAGs within each other")
    return f.list("inner", INNER_MAX, lambda v, w: _chunnel(v, w, deep + 1) if v is not None else None)


def _chunnel(value: object, what: str, deep: int = 0) -> PlannedChunnel:
    f = as_fields(value, what)
    wheres = {w: w for w in WHERES}
    found = PlannedChunnel(
        type=f.name("type"),
        args=f.args("args"),
        wire=f.wire("wire"),
        client=f.name_or_none("client"),
        server=f.name_or_none("server"),
        client_where=None if f.none("client_where") else f.one_of("client_where", wheres),
        server_where=None if f.none("server_where") else f.one_of("server_where", wheres),
        inner=_inner_of(f, deep),
    )
    if (found.client is None) != (found.client_where is None):
        fail(f"{what}: 'client' without 'client_where', or the other way round")
    if (found.server is None) != (found.server_where is None):
        fail(f"{what}: 'server' without 'server_where', or the other way round")
    return found


def _omitted(value: object, what: str) -> Omitted:
    f = as_fields(value, what)
    return Omitted(f.name("type"), f.text("why", WHY_MAX))


# -- is a plan acceptable? --------------------------------------------------------------------------------


def acceptable(plan: Plan, own: Offer, side: str, check: Check | None = None) -> Refusal | None:
    """Why the end `side` ("client" or "server") that offers `own` may not use a plan; None: it may.

    All that it requires is there, in its order and with its arguments; each implementation of its own is one
    that it offers, in that wire and place; nothing that it prohibits runs.  `check(type, arguments)` says
    what is wrong with arguments, some of which may be the other end's.
    """
    for chunnel in plan.chunnels:
        entries = list(own.entries(chunnel.type))
        why = _wrong(chunnel, own, side, entries) or _wrong_within(chunnel, own, side, entries, check)
        if why is None and check is not None:
            why = check(chunnel.type, chunnel.kwargs)
        if why is not None:
            return Refusal(chunnel.type, f"the plan is not one that the {side} agrees to ({why})")
    lost = _missing(plan, own, side)
    if lost is not None:
        return Refusal(lost.type, f"the {side} requires it, and the plan has it not as required")
    return None


_Entries = Sequence[OfferedType | OfferedChunnel]


def _wrong_within(
    chunnel: PlannedChunnel, own: Offer, side: str, entries: _Entries, check: Check | None
) -> str | None:
    """What is wrong with what runs of a chunnel's sub-DAGs."""
    if not chunnel.inner:
        return None
    subs = sub_chunnels(chunnel.args)
    if len(subs) != len(chunnel.inner):
        return "its sub-DAGs are not what is planned for them"
    for at, ((place, sub), planned) in enumerate(zip(subs, chunnel.inner, strict=True)):
        if planned is None:
            continue
        if planned.type != sub.type:
            return f"{planned.type} is planned for the {sub.type} in {place}"
        # What this end asks for there itself, and what it can run for anybody.
        here: list[OfferedType | OfferedChunnel] = [t for t in own.able if t.type == sub.type]
        for entry in entries:
            if isinstance(entry, OfferedChunnel) and at < len(entry.inner):
                here += [entry.inner[at]] if entry.inner[at].type == sub.type else []
        why = _wrong(planned, own, side, here) or _wrong_within(planned, own, side, here, check)
        if why is None and check is not None:
            why = check(planned.type, planned.kwargs)
        if why is not None:
            return f"{planned.type} in {place}: {why}"
    return None


def _wrong(chunnel: PlannedChunnel, own: Offer, side: str, entries: _Entries) -> str | None:
    kind = chunnel.type
    if own.speaks(kind, Need.PROHIBIT):
        return "the type is prohibited"
    for name in (chunnel.client, chunnel.server):
        if name is not None and own.rules.prohibits(kind, name):
            return f"implementation {name} is prohibited"
    two_ended = any(e.endpoints == "both" for e in entries)
    mine, other = chunnel.implementation(side), chunnel.implementation(_other(side))
    if two_ended and (mine is None or other is None):
        return "both ends must take part"
    judged = mine if mine is not None else other
    if judged is not None and own.rules.lacks(kind, judged):
        return f"another implementation than {judged} is required"
    if mine is None:
        if other is None and any(e.endpoints not in ("", "none") for e in entries):
            return "nobody runs it"
        return None
    where = chunnel.where(side)
    why = f"{mine} with wire {chunnel.wire} is not offered"
    for entry in entries:
        if not any(
            i.name == mine and i.where == where and _fits(i, chunnel, side) for i in entry.implementations
        ):
            continue
        # What is not offered unasked runs as this end has asked for it.
        if isinstance(entry, OfferedType) or (entry.wanted and _given(chunnel, entry, side)):
            return None
        why = "the arguments are not as asked for"
    return why


def _fits(i: OfferedImplementation, chunnel: PlannedChunnel, side: str) -> bool:
    alone = chunnel.implementation(_other(side)) is None
    if alone:
        return i.endpoints in ("either", side) and chunnel.wire == lone_wire(i)
    return i.endpoints == "both" and chunnel.wire in i.wires


def lone_wire(i: OfferedImplementation) -> str:
    """The wire of an implementation that runs without a partner."""
    return i.wires[0] if i.wires else NO_WIRE


def _other(side: str) -> str:
    return "server" if side == "client" else "client"


def _missing(plan: Plan, own: Offer, side: str) -> OfferedChunnel | None:
    """The first chunnel that `own` requires and the plan lacks.

    The server's order is kept in every union, so it is checked over all types; the client's may give way to
    it, so it is checked within each type.
    """
    positions: dict[str, int] = {}
    for wish in own.chunnels:
        if wish.need is not Need.REQUIRE:
            continue
        key = "" if side == "server" else wish.type
        for at in range(positions.get(key, 0), len(plan.chunnels)):
            if _meets(plan.chunnels[at], wish, side):
                positions[key] = at + 1
                break
        else:
            return wish
    return None


def _meets(chunnel: PlannedChunnel, wish: OfferedChunnel, side: str) -> bool:
    if chunnel.type != wish.type or not within(wish.scope, chunnel) or not _given(chunnel, wish, side):
        return False
    if side == "client" and any(chunnel.kwargs.get(n) != v for n, v in wish.args):
        return True  # the server's sub-DAGs are in force
    for at, sub in enumerate(wish.inner):
        if sub.need is Need.REQUIRE:
            planned = chunnel.inner[at] if at < len(chunnel.inner) else None
            if planned is None or not _meets(planned, sub, side):
                return False
    return True


def _given(chunnel: PlannedChunnel, wish: OfferedChunnel, side: str) -> bool:
    """Whether a plan has the arguments that an end gave: the server's as they are, the client's firm ones."""
    planned = chunnel.kwargs
    for name, value in wish.args:
        if side == "client" and name not in wish.firm:
            if name not in planned:
                return False
        elif name not in planned or not same(planned[name], value):
            return False
    return True


def within(scope: Scope | None, chunnel: PlannedChunnel) -> bool:
    """Whether each implementation runs at the scope or nearer."""
    return all(near_enough(scope, where) for where in _places(chunnel))


def near_enough(scope: Scope | None, where: str) -> bool:
    """Whether that place is the scope or nearer to the application."""
    return scope is None or WHERES.index(where) <= WHERES.index(scope.value)


def _places(chunnel: PlannedChunnel) -> Iterator[str]:
    return (w for w in (chunnel.client_where, chunnel.server_where) if w is not None)
