"""Offers as hypothesis makes them: few names, so that two ends often mean the same thing."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from bertha_socket.dag import Need, Scope, Value
from bertha_socket.negotiation.offer import (
    ENDPOINTS,
    WHERES,
    Offer,
    OfferedChunnel,
    OfferedImplementation,
    OfferedType,
)
from bertha_socket.negotiation.rules import Rules

TYPES: Final = ("compress", "encrypt", "count")
NAMES: Final = ("native", "python", "nic")
WIRES: Final = ("zstd/1", "lz4/1", "none")

#: Endpoints that types have in the tests, where they are consistent with those of their implementations.
TYPE_ENDPOINTS: Final = {"both": ("both",), "": ENDPOINTS, "either": ("client", "server", "either")}

_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.lists(st.integers(0, 1), max_size=2).map(tuple),
)
_args = st.dictionaries(st.sampled_from(("level", "a")), _values, max_size=2).map(
    lambda d: tuple(sorted(d.items()))
)


@st.composite
def implementations(draw: st.DrawFn, ends: tuple[str, ...] = ENDPOINTS) -> tuple[OfferedImplementation, ...]:
    """Up to three implementations with different names."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    return tuple(
        OfferedImplementation(
            name=name,
            wires=tuple(draw(st.lists(st.sampled_from(WIRES), unique=True, max_size=3))),
            endpoints=draw(st.sampled_from(ends)),
            where=draw(st.sampled_from(WHERES[:3])),
            priority=draw(st.sampled_from((10, 10, 100))),
            carrier=draw(st.sampled_from(("native", "python"))),
        )
        for name in names
    )


_patterns = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(("compress/native", "encrypt/*", "*/python", "count/n*", "other/native")),
)
rules: st.SearchStrategy[Rules] = st.builds(
    Rules,
    require=st.lists(_patterns, max_size=1).map(tuple),
    prefer=st.lists(_patterns, max_size=2).map(tuple),
    avoid=st.lists(_patterns, max_size=2).map(tuple),
    prohibit=st.lists(_patterns, max_size=1).map(tuple),
)


@st.composite
def chunnels(draw: st.DrawFn) -> OfferedChunnel:
    """A chunnel of a DAG, mostly asked for."""
    endpoints = draw(st.sampled_from(tuple(TYPE_ENDPOINTS)))
    args = draw(_args)
    return OfferedChunnel(
        type=draw(st.sampled_from(TYPES)),
        args=args,
        need=draw(
            st.sampled_from((Need.REQUIRE, Need.REQUIRE, Need.PREFER, Need.PREFER, Need.AVOID, Need.PROHIBIT))
        ),
        scope=draw(st.sampled_from((None, None, *Scope))),
        implementations=draw(implementations(TYPE_ENDPOINTS[endpoints])),
        endpoints=endpoints,
        layer=draw(st.sampled_from((10, 40, 80))),
        firm=tuple(n for n, _ in args if draw(st.booleans())),
    )


@st.composite
def offers(draw: st.DrawFn, size: int = 3) -> Offer:
    """Any offer, of up to `size` chunnels."""
    able: list[OfferedType] = []
    for name in draw(st.lists(st.sampled_from(TYPES), unique=True, max_size=3)):
        endpoints = draw(st.sampled_from(tuple(TYPE_ENDPOINTS)))
        found = draw(implementations(TYPE_ENDPOINTS[endpoints]))
        able.append(OfferedType(name, found, endpoints, draw(st.sampled_from((10, 40, 80)))))
    return Offer(
        chunnels=tuple(draw(st.lists(chunnels(), max_size=size))),
        able=tuple(able),
        rules=draw(st.one_of(st.just(Rules()), rules)),
    )


def both(name: str, *wires: str, priority: int = 100, where: str = "host") -> OfferedImplementation:
    """An implementation that runs at both ends."""
    return OfferedImplementation(name, wires, "both", where, priority, "native")


#: What hosts really have, more or less.
COMPRESS: Final = (
    both("native", "zstd/1", "lz4/1"),
    both("python", "zstd/1", priority=10, where="application"),
)
ENCRYPT: Final = (
    both("openssl", "tls1.3"),
    both("python", "tls1.3", priority=10, where="application"),
)
ABLE: Final = (OfferedType("compress", COMPRESS, "both", 60), OfferedType("encrypt", ENCRYPT, "both", 80))


def compress(
    *args: tuple[str, Value], need: Need = Need.REQUIRE, firm: tuple[str, ...] = ()
) -> OfferedChunnel:
    """compress as a DAG has it."""
    return OfferedChunnel("compress", args, need, None, COMPRESS, "both", 60, firm)


def encrypt(need: Need = Need.REQUIRE, scope: Scope | None = None) -> OfferedChunnel:
    """encrypt as a DAG has it."""
    return OfferedChunnel("encrypt", (), need, scope, ENCRYPT, "both", 80)
