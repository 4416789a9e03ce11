"""An offer: the chunnels that one end wants, and for each type the implementations that it can run.

It lists each alternative once, so it grows with their sum.  Types that the end does not ask for are in it
too (`able`): the other end may ask for them, and an end without a DAG of its own inherits the other's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from bertha_socket.dag import Chunnel, Dag, Need, Scope
from bertha_socket.negotiation._codec import (
    NAME_MAX,
    Args,
    Fields,
    as_fields,
    check_name,
    check_wire,
    fail,
    freeze_args,
    pack,
    printable,
    unpack,
)
from bertha_socket.negotiation._inner import DEPTH_MAX, INNER_MAX, sub_chunnels
from bertha_socket.negotiation.pick import IMPLEMENTATIONS as LOCAL_OR_REMOTE
from bertha_socket.negotiation.rules import NO_RULES, Rules, check_pattern, matches, rules_from

#: Limits of what an offer may hold.
CHUNNELS_MAX: Final = 32
TYPES_MAX: Final = 128
IMPLEMENTATIONS_MAX: Final = 8
WIRES_MAX: Final = 8
OFFER_MAX: Final = 60_000  # bytes
PRIORITY_MAX: Final = 1_000_000
#: Where in a union of two DAGs a type goes when neither says: 0 at the application, 100 at the network.
LAYER_DEFAULT: Final = 40
LAYER_MAX: Final = 100

#: Which ends must take part.  "" (of a type): not known here.
ENDPOINTS: Final = ("both", "client", "server", "either", "none")
#: Nearest first.
WHERES: Final = tuple(s.value for s in (Scope.APPLICATION, Scope.HOST, Scope.NETWORK, Scope.GLOBAL))

_LAYERS: Final = {
    "serialize": 10,
    "branch": 20,
    "http2": 30,
    "frame": 30,
    "compress": 60,
    "reliable": 70,
    "encrypt": 80,
    "limit": 85,
    "local_or_remote": 100,
    "tcp": 100,
    "udp": 100,
}
#: Arguments that are about one host (its files) where the type does not say so itself.
_OWN: Final = {"encrypt": frozenset({"cert", "key", "ca"})}
_NEEDS: Final = {n.value: n for n in Need}
_SCOPES: Final = {s.value: s for s in Scope}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OfferedImplementation:
    """One way to run a chunnel type at the end that offers it."""

    name: str
    #: Best first; implementations work together only if they share one.
    wires: tuple[str, ...] = ()
    endpoints: str = "both"
    where: str = "host"
    #: Higher first.
    priority: int = 0
    carrier: str = ""

    def __str__(self) -> str:
        wires = ",".join(self.wires)
        return f"{self.name}@{self.where}" + (f" ({wires})" if wires else "")


@dataclass(frozen=True, slots=True)
class OfferedType:
    """A chunnel type that an end can run, though it does not ask for it."""

    type: str
    implementations: tuple[OfferedImplementation, ...] = ()
    endpoints: str = ""
    layer: int = LAYER_DEFAULT


@dataclass(frozen=True, slots=True)
class OfferedChunnel:
    """A chunnel of an end's DAG."""

    type: str
    args: Args = ()
    need: Need = Need.REQUIRE
    scope: Scope | None = None
    implementations: tuple[OfferedImplementation, ...] = ()
    endpoints: str = ""
    layer: int = LAYER_DEFAULT
    #: Arguments whose value this end insists on.
    firm: tuple[str, ...] = ()
    #: How it would run each chunnel of the sub-DAGs among the arguments (negotiation._inner).
    inner: tuple[OfferedChunnel, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether the end asks for it, rather than against it."""
        return self.need in (Need.REQUIRE, Need.PREFER)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one end brings to a negotiation.  Hashable; equal offers have equal outcomes."""

    #: The end's DAG, the application's side first.
    chunnels: tuple[OfferedChunnel, ...] = ()
    #: Further types that it can run.
    able: tuple[OfferedType, ...] = ()
    rules: Rules = NO_RULES

    def wanted(self) -> Iterator[OfferedChunnel]:
        """The chunnels that it asks for."""
        return (c for c in self.chunnels if c.wanted)

    def speaks(self, type_name: str, need: Need) -> bool:
        """Whether it has a chunnel of that type with that need."""
        return any(c.type == type_name and c.need is need for c in self.chunnels)

    def entries(self, type_name: str) -> Iterator[OfferedChunnel | OfferedType]:
        """All that it says about a type: what it can run without arguments first."""
        yield from (t for t in self.able if t.type == type_name)
        yield from (c for c in self.chunnels if c.type == type_name and c.need is not Need.PROHIBIT)

    def unasked(self, type_name: str) -> OfferedType | None:
        """How it would run a chunnel that the other end alone asks for; None: it would not."""
        return next((t for t in self.able if t.type == type_name), None)

    def only(self, carrier: str) -> Offer:
        """The same, with the implementations of one carrier ("native", "python")."""
        return self.filtered(lambda _, i: i.carrier == carrier)

    def filtered(self, keep: Callable[[str, OfferedImplementation], bool]) -> Offer:
        """The same, with the implementations for which keep(type name, implementation) holds."""

        def thin(entry: OfferedChunnel | OfferedType) -> tuple[OfferedImplementation, ...]:
            return tuple(i for i in entry.implementations if keep(entry.type, i))

        def thinned(c: OfferedChunnel) -> OfferedChunnel:
            inner = tuple(map(thinned, c.inner))
            return dataclasses.replace(c, implementations=thin(c), inner=inner)

        return Offer(
            tuple(map(thinned, self.chunnels)),
            tuple(dataclasses.replace(t, implementations=thin(t)) for t in self.able),
            self.rules,
        )

    def fields(self) -> dict[str, object]:
        """For a message."""
        return {
            "chunnels": [_chunnel_fields(c) for c in self.chunnels],
            "able": [_type_fields(t) for t in self.able],
            "rules": self.rules.fields(),
        }

    def encode(self) -> bytes:
        """Canonical msgpack.  Raises NegotiationError: longer than what may be sent."""
        data = pack(self.fields())
        if len(data) > OFFER_MAX:
            fail(f"an offer of {len(data)} bytes, more than {OFFER_MAX}; shorten the DAG's arguments")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Offer:
        """The offer that these bytes are.  Raises NegotiationError."""
        return offer_from(unpack(data, OFFER_MAX, "offer"))


# -- on the wire ------------------------------------------------------------------------------------------


def _implementation_fields(i: OfferedImplementation) -> dict[str, object]:
    return {
        "name": i.name,
        "wires": list(i.wires),
        "endpoints": i.endpoints,
        "where": i.where,
        "priority": i.priority,
        "carrier": i.carrier,
    }


def _type_fields(t: OfferedType | OfferedChunnel) -> dict[str, object]:
    return {
        "type": t.type,
        "endpoints": t.endpoints,
        "layer": t.layer,
        "implementations": [_implementation_fields(i) for i in t.implementations],
    }


def _chunnel_fields(c: OfferedChunnel) -> dict[str, object]:
    inner = {"inner": [_chunnel_fields(i) for i in c.inner]} if c.inner else {}
    return {
        **_type_fields(c),
        **inner,
        "args": dict(c.args),
        "firm": list(c.firm),
        "need": c.need.value,
        "scope": c.scope.value if c.scope is not None else None,
    }


def _implementation(value: object, what: str) -> OfferedImplementation:
    f = as_fields(value, what)
    carrier = f.text("carrier", NAME_MAX)
    return OfferedImplementation(
        name=f.name("name"),
        wires=f.list("wires", WIRES_MAX, check_wire),
        endpoints=f.one_of("endpoints", {e: e for e in ENDPOINTS}),
        where=f.one_of("where", {w: w for w in WHERES}),
        priority=f.whole("priority", -PRIORITY_MAX, PRIORITY_MAX),
        carrier=carrier,
    )


def _unique(items: tuple[T, ...], name: Callable[[T], str], what: str) -> tuple[T, ...]:
    seen: set[str] = set()
    for item in items:
        if name(item) in seen:
            fail(f"{what}: {name(item)} twice")
        seen.add(name(item))
    return items


def _implementations(f: Fields) -> tuple[OfferedImplementation, ...]:
    found = f.list("implementations", IMPLEMENTATIONS_MAX, _implementation)
    return _unique(found, lambda i: i.name, f.what)


def _endpoints(f: Fields) -> str:
    return f.one_of("endpoints", {e: e for e in ("", *ENDPOINTS)})


def _type(value: object, what: str) -> OfferedType:
    f = as_fields(value, what)
    return OfferedType(f.name("type"), _implementations(f), _endpoints(f), f.whole("layer", 0, LAYER_MAX))


def _chunnel(value: object, what: str, deep: int = 0) -> OfferedChunnel:
    if deep > DEPTH_MAX:
        fail(f"more than {DEPTH_MAX} sub-DAGs within each other")
    f = as_fields(value, what)
    inner = f.list("inner", INNER_MAX, lambda v, w: _chunnel(v, w, deep + 1)) if f.has("inner") else ()
    scope: Mapping[str, Scope] = _SCOPES
    args = f.args("args")
    return OfferedChunnel(
        type=f.name("type"),
        args=args,
        need=f.one_of("need", _NEEDS),
        scope=None if f.none("scope") else f.one_of("scope", scope),
        implementations=_implementations(f),
        endpoints=_endpoints(f),
        layer=f.whole("layer", 0, LAYER_MAX),
        firm=_unique(f.list("firm", len(args), check_name), str, what),
        inner=inner,
    )


def offer_from(f: Fields) -> Offer:
    """The offer in a message.  Raises NegotiationError."""
    able = _unique(f.list("able", TYPES_MAX, _type), lambda t: t.type, f.what)
    return Offer(f.list("chunnels", CHUNNELS_MAX, _chunnel), able, rules_from(f.map("rules")))


# -- from a DAG -------------------------------------------------------------------------------------------


class ImplementationLike(Protocol):
    """What an offer needs of bertha_socket.chunnels.Implementation."""

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def endpoints(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def carrier(self) -> str: ...
    def wires(self, args: Mapping[str, Any], /) -> Sequence[str]:
        """Best first."""


class TypeLike(Protocol):
    """What an offer needs of bertha_socket.chunnels.ChunnelType."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> Sequence[Any]: ...
    @property
    def endpoints(self) -> str: ...
    @property
    def implementations(self) -> Iterable[Any]: ...
    def bind(self, chunnel: Chunnel, /) -> Mapping[str, Any]:
        """The arguments, checked; raises an OSError of one line."""


Usable = Callable[[Any, Any], bool]


def offer_of(
    dag: Dag,
    available: Iterable[TypeLike],
    rules: Rules | None = None,
    usable: Usable = lambda chunnel_type, implementation: True,
) -> Offer:
    """What an end with that DAG offers.

    `available` are the chunnel types known here, `usable(type, implementation)` what the caller's probes have
    found.  Raises ChunnelArgumentError (wrong arguments) or NegotiationError (too much of something).
    """
    types = {t.name: t for t in available}
    own = _resolved(rules or NO_RULES, types.values())
    wanted = dag.chunnels
    if len(wanted) > CHUNNELS_MAX:
        fail(f"a DAG of {len(wanted)} chunnels, more than {CHUNNELS_MAX}")
    chunnels = tuple(_offered(c, types, own, usable) for c in wanted)
    # A type may say that it runs at an end only if that end asks for it: it does more than carry bytes.
    free = [t for t in types.values() if getattr(t, "dictated", True)]
    able = tuple(_able(t, own, usable) for t in sorted(free, key=lambda t: t.name))
    return Offer(chunnels, tuple(t for t in able if t.implementations)[:TYPES_MAX], own)


def named_args(chunnel: Chunnel, chunnel_type: TypeLike | None) -> dict[str, Any]:
    """The arguments that are given, by name; of a type that is not known, positional ones by number."""
    names = [p.name for p in chunnel_type.parameters] if chunnel_type is not None else []
    found: dict[str, Any] = {}
    for i, value in enumerate(chunnel.args):
        found[names[i] if i < len(names) else str(i)] = value
    found.update(chunnel.kwargs)
    return found


def agreement(chunnel_type: object, name: str) -> str:
    """How two ends agree on an argument: "server", "equal" or "own" (docs/decisions/0006)."""
    for parameter in getattr(chunnel_type, "parameters", ()):
        if parameter.name == name and hasattr(parameter, "agree"):
            return str(parameter.agree)
    return "own" if name in _OWN.get(getattr(chunnel_type, "name", ""), ()) else "server"


def layer_of(name: str, chunnel_type: object = None) -> int:
    """Where a type goes in a union."""
    given = getattr(chunnel_type, "layer", None)
    layer = given if isinstance(given, int) else _LAYERS.get(name, LAYER_DEFAULT)
    return max(0, min(layer, LAYER_MAX))


def _offered(c: Chunnel, types: Mapping[str, TypeLike], rules: Rules, usable: Usable) -> OfferedChunnel:
    known = types.get(c.type)
    what = f"chunnel {printable(c.type, NAME_MAX)}"
    check_name(c.type, what)
    if c.need is Need.PROHIBIT:  # it is about the type; arguments would say nothing
        return OfferedChunnel(c.type, need=c.need, layer=layer_of(c.type, known))
    given = named_args(c, known)
    if known is None:
        args = freeze_args(given, what)
        return OfferedChunnel(c.type, args, c.need, c.scope, layer=layer_of(c.type))
    bound = known.bind(c)
    sent = {n: v for n, v in given.items() if agreement(known, n) != "own"}
    args = freeze_args(sent, what)
    subs = sub_chunnels(args) if getattr(known, "sub_dags", False) else ()
    return OfferedChunnel(
        type=c.type,
        args=args,
        inner=tuple(_offered(sub, types, rules, usable) for _place, sub in subs),
        need=c.need,
        scope=c.scope,
        implementations=_list(known, bound, rules, usable),
        endpoints=_plain(known.endpoints),
        layer=layer_of(c.type, known),
        firm=tuple(sorted(n for n in sent if agreement(known, n) == "equal")),
    )


def _able(known: TypeLike, rules: Rules, usable: Usable) -> OfferedType:
    name = check_name(known.name, "chunnel type")
    try:
        bound: Mapping[str, Any] = known.bind(Chunnel(name))
    except OSError:
        bound = {}  # it has arguments without defaults; the other end gives them
    try:
        found = _list(known, bound, rules, usable)
    except (KeyError, AttributeError, TypeError):
        found = ()  # its wires hang on those arguments: it cannot be offered without
    return OfferedType(name, found, _plain(known.endpoints), layer_of(name, known))


def _list(
    known: TypeLike, bound: Mapping[str, Any], rules: Rules, usable: Usable
) -> tuple[OfferedImplementation, ...]:
    found = []
    for i in known.implementations:
        if not usable(known, i):
            continue
        priority = rules.priority(known.name, i.name, i.priority)
        found.append(
            OfferedImplementation(
                name=check_name(i.name, f"chunnel type {known.name}"),
                wires=tuple(check_wire(w, f"{known.name}/{i.name}") for w in i.wires(bound))[:WIRES_MAX],
                endpoints=_plain(i.endpoints),
                where=_plain(i.where),
                priority=max(-PRIORITY_MAX, min(priority, PRIORITY_MAX)),
                carrier=_plain(i.carrier),
            )
        )
    found.sort(key=lambda i: (-i.priority, i.name))
    return tuple(found[:IMPLEMENTATIONS_MAX])


def _plain(value: Any) -> str:
    """The text of an enumeration's member, or of a text."""
    return str(getattr(value, "value", value))


def _resolved(rules: Rules, types: Iterable[TypeLike]) -> Rules:
    """The rules with a type in each required name that is known here.

    Without it `require = ["openssl"]` would forbid every other chunnel.  A name that nobody here goes by
    stays as it is, and so forbids too much rather than too little.
    """
    known = [(t.name, i.name) for t in types for i in t.implementations]
    known += [("local_or_remote", name) for name in LOCAL_OR_REMOTE]
    for pattern in (*rules.require, *rules.prefer, *rules.avoid, *rules.prohibit):
        check_pattern(pattern, "rule")
    required: list[str] = []
    for pattern in rules.require:
        about = sorted({kind for kind, name in known if matches(pattern, kind, name)})
        required += [pattern] if "/" in pattern or not about else [f"{kind}/{pattern}" for kind in about]
    return dataclasses.replace(rules, require=tuple(dict.fromkeys(required)))
