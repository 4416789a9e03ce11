"""Bytes of strangers: a value or one clear error, in bounded time and memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.negotiation import messages
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.messages import ASK_MAX, NO_LISTENER, Asked, Hello, Message, Trouble
from bertha_socket.negotiation.offer import OFFER_MAX, Offer
from bertha_socket.negotiation.plan import PLAN_MAX, Plan, PlannedChunnel, Refusal
from tests.negotiation.strategies import ABLE, compress, encrypt, offers

DECODERS: dict[str, Callable[[bytes], object]] = {
    "offer": Offer.decode,
    "plan": Plan.decode,
    "message": lambda data: messages.decode(data, ASK_MAX),
}
OFFER = Offer((compress(("level", 3)), encrypt()), ABLE)
PLAN = Plan((PlannedChunnel("encrypt", (("a", 1.5),), "tls1.3", "openssl", "python", "host", "application"),))
MESSAGES: list[Message] = [
    Hello(b"n" * 16, True),
    Asked("10.0.0.1", 6379, OFFER),
    Asked("fd00::1", 1, Offer()),
    PLAN,
    Plan(),
    Refusal("encrypt", "why", "a", "b"),
    NO_LISTENER,
    Trouble("so"),
]
VALID = {
    "offer": [OFFER.encode(), Offer().encode()],
    "plan": [PLAN.encode(), Plan().encode()],
    "message": [messages.encode(m) for m in MESSAGES],
}

every = pytest.mark.parametrize("what", sorted(DECODERS))


def decoded(what: str, data: bytes) -> object:
    """The value, or the error: nothing else may come out."""
    try:
        return DECODERS[what](data)
    except NegotiationError as error:
        found = error
    assert found.strerror and found.strerror.isprintable(), "one line"
    assert len(found.strerror) < 600
    return found


def fields(what: str, nth: int = 0) -> dict[str, Any]:
    found = msgpack.unpackb(VALID[what][nth], strict_map_key=False)
    assert isinstance(found, dict)
    return found


def test_messages_come_back_as_they_went() -> None:
    for message in MESSAGES:
        assert messages.decode(messages.encode(message), ASK_MAX) == message


# -- anything at all ----------------------------------------------------------------------------------------


@every
@given(data=st.binary(max_size=200))
def test_any_bytes(what: str, data: bytes) -> None:
    decoded(what, data)


_scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
)
_key = st.text(max_size=8) | st.integers(-9, 9)
_anything = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_key, inner, max_size=4),
    max_leaves=20,
)


@every
@given(data=st.data())
def test_any_value_in_place_of_any_field(what: str, data: st.DataObject) -> None:
    """Well-formed msgpack with one field, at any depth, replaced, taken away or added."""
    valid = msgpack.unpackb(data.draw(st.sampled_from(VALID[what])))
    place: Any = valid
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    action = data.draw(st.sampled_from(("replace", "remove", "add")))
    if action == "replace":
        place[key] = data.draw(_anything)
    elif action == "remove":
        del place[key]
    elif isinstance(place, dict):
        place[data.draw(st.text(max_size=8))] = data.draw(_anything)
    else:
        place.append(data.draw(_anything))
    decoded(what, msgpack.packb(valid))


@every
@given(data=st.data())
def test_flipped_bits(what: str, data: st.DataObject) -> None:
    valid = bytearray(data.draw(st.sampled_from(VALID[what])))
    for _ in range(data.draw(st.integers(1, 4))):
        valid[data.draw(st.integers(0, len(valid) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decoded(what, bytes(valid))


@every
@given(data=st.data())
def test_cut_short_or_with_something_behind(what: str, data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from(VALID[what]))
    cut = data.draw(st.integers(0, len(valid) - 1))
    assert isinstance(decoded(what, valid[:cut]), NegotiationError)
    assert isinstance(decoded(what, valid + b"\xc0"), NegotiationError)


@given(offer=offers())
def test_unknown_fields_are_ignored(offer: Offer) -> None:
    raw = msgpack.unpackb(offer.encode())

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for inner in list(value.values()):
                add(inner)
            value["later"] = {"x": [1, None]}
        elif isinstance(value, list):
            for inner in value:
                add(inner)

    for chunnel in raw["chunnels"]:
        chunnel.update(args=None, firm=[])  # names of arguments are no fields
    plain = _with_args(raw)
    add(raw)
    assert Offer.decode(_with_args(raw)) == Offer.decode(plain)


def _with_args(raw: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb({**raw, "chunnels": [{**c, "args": {}} for c in raw["chunnels"]]}))


# -- what somebody would try ----------------------------------------------------------------------------

BOMBS = {
    "arrays in arrays": b"\x91" * 50_000,
    "arrays that claim much": b"\xdc\x04\x00" * 15_000,
    "arrays that claim all": b"\xdd\xff\xff\xff\xff" * 10_000,
    "maps that claim all": b"\xdf\xff\xff\xff\xff",
    "maps in maps": b"\x81\xa1a" * 15_000,
    "a text that claims all": b"\xdb\xff\xff\xff\xff",
    "bytes that claim all": b"\xc6\xff\xff\xff\xff",
    "an extension that claims all": b"\xc9\xff\xff\xff\xff\x01",
    "lists as names": b"\x81\x90\xc0",
    "numbers as names": b"\x81\x01\xc0",
    "a time": b"\xd6\xff\x00\x00\x00\x00",
    "not msgpack": b"\xc1",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "nothing": b"",
}


@every
@pytest.mark.timeout(30)  # not that it hangs
@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_bombs(what: str, bomb: str) -> None:
    data = BOMBS[bomb]
    tracemalloc.start()
    try:
        outcomes = [decoded(what, data)]
        for inside in ({"chunnels": 0, "able": [], "rules": {}}, {"kind": "offer", "x": 0}):
            name = next(n for n, v in inside.items() if v == 0)
            packed = msgpack.packb({**inside, name: "@"}).replace(b"\xa1@", data)
            outcomes.append(decoded(what, packed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(isinstance(o, NegotiationError) for o in outcomes)
    assert peak < 40 << 20


@every
def test_too_long(what: str) -> None:
    limit = {"offer": OFFER_MAX, "plan": PLAN_MAX, "message": ASK_MAX}[what]
    error = decoded(what, b"\xc0" * (limit + 1))
    assert isinstance(error, NegotiationError)
    assert f"more than {limit}" in error.strerror


def _chunnel(**fields: object) -> dict[str, Any]:
    found = msgpack.unpackb(Offer((compress(),)).encode())["chunnels"][0]
    return {**found, **fields}


def _offer(**fields: object) -> bytes:
    return bytes(msgpack.packb({"chunnels": [], "able": [], "rules": {}, **fields}))


_runs = {"name": "n", "wires": [], "endpoints": "both", "where": "host", "priority": 1, "carrier": ""}
_kind = {"type": "t", "endpoints": "", "layer": 1, "implementations": [_runs]}


def _able(*implementations: object) -> bytes:
    return _offer(able=[{**_kind, "implementations": list(implementations)}])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (_offer(chunnels=[_chunnel()] * 33), "'chunnels' is not a list of at most 32"),
        (_offer(chunnels=[_chunnel(args={"x": float("nan")})]), "nan is not a number that can be agreed on"),
        (
            _offer(chunnels=[_chunnel(args={"x": float("-inf")})]),
            "-inf is not a number",
        ),
        (_offer(chunnels=[_chunnel(args={"x": b"bytes"})]), "bytes is not an argument"),
        (_offer(chunnels=[_chunnel(args={"x": {"y": 1}})]), "dict is not an argument"),
        (_offer(chunnels=[_chunnel(args={"x": "y" * 4097})]), "a text of 4097 characters"),
        (_offer(chunnels=[_chunnel(args={"x": [0] * 1024})]), "more than 1024 values"),
        (_offer(chunnels=[_chunnel(args={f"a{n}": 0 for n in range(33)})]), "33 arguments, more than 32"),
        (_offer(chunnels=[_chunnel(args={"x y": 0})]), "'x y' is not a name"),
        (_offer(chunnels=[_chunnel(args=[])]), "'args' is not a map"),
        (
            _offer(chunnels=[_chunnel(args={"x": msgpack.ExtType(1, b"a(")})]),
            "expression that is none",
        ),
        (_offer(chunnels=[_chunnel(args={"x": msgpack.ExtType(1, b"\xff")})]), "not msgpack as it should be"),
        (_offer(chunnels=[_chunnel(args={"x": msgpack.ExtType(9, b"")})]), "a value of unknown kind 9"),
        (_offer(chunnels=[_chunnel(type="../x")]), "'../x' is not a name"),
        (_offer(chunnels=[_chunnel(type="x" * 65)]), "is not a name"),
        (_offer(chunnels=[_chunnel(type="\x1b[2J")]), "is not a name"),
        (_offer(chunnels=[_chunnel(type=1)]), "is not a name"),
        (_offer(chunnels=[_chunnel(need="want")]), "'need' is not one of require"),
        (_offer(chunnels=[_chunnel(scope="moon")]), "'scope' is not one of application"),
        (_offer(chunnels=[_chunnel(layer=101)]), "'layer' is not a whole number from 0 to 100"),
        (_offer(chunnels=[_chunnel(layer=True)]), "'layer' is not a whole number"),
        (_offer(chunnels=[7]), "chunnels[0]: not a map"),
        (_offer(able=[_kind, _kind]), "t twice"),
        (_able(_runs, _runs), "n twice"),
        (_able(*({**_runs, "name": f"n{i}"} for i in range(9))), "a list of at most 8"),
        (_able({**_runs, "wires": ["w"] * 9}), "a list of at most 8"),
        (_able({**_runs, "wires": ["a b"]}), "is not a wire"),
        (
            _able({**_runs, "endpoints": ""}),
            "'endpoints' is not one of both",
        ),
        (_able({**_runs, "where": "here"}), "'where' is not one of"),
        (_able({**_runs, "priority": 10**9}), "'priority' is not"),
        (_offer(rules={"prohibit": ["a/b/c"]}), "is no rule"),
        (_offer(rules={"prohibit": ["x"] * 33}), "a list of at most 32"),
        (b"\x82\xa4able\x90\xa4able\x90", "field 'able' twice"),
        (b"\xc0", "not a map"),
        (_offer()[:-1], "not msgpack as it should be"),
    ],
)
def test_offers_that_are_none(data: bytes, problem: str) -> None:
    error = decoded("offer", data)
    assert isinstance(error, NegotiationError)
    assert problem in error.strerror


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"v": 2}, "of version 2, not 1; run the same release at both ends"),
        ({"chunnels": [{}]}, "no 'type'"),
        ({"omitted": [{"type": "x"}]}, "no 'why'"),
        ({"omitted": [{"type": "x", "why": "y" * 161}]}, "a text of at most 160 bytes"),
    ],
)
def test_plans_that_are_none(changes: dict[str, object], problem: str) -> None:
    error = decoded("plan", msgpack.packb({**fields("plan"), **changes}))
    assert isinstance(error, NegotiationError)
    assert problem in error.strerror


def test_an_implementation_without_a_place_is_no_plan() -> None:
    raw = fields("plan")
    raw["chunnels"][0]["client_where"] = None
    assert isinstance(decoded("plan", msgpack.packb(raw)), NegotiationError)


@pytest.mark.parametrize(
    ("nth", "changes", "problem"),
    [
        (0, {"protocol": "other"}, "another protocol"),
        (0, {"v": 9, "low": 2}, "it speaks versions 2 to 9, we 1 to 1; run the same release at both ends"),
        (0, {"nonce": b"short"}, "'nonce' is not 16 bytes"),
        (0, {"keyed": 1}, "'keyed' is not true or false"),
        (1, {"addr": "example.org"}, "is not an IP address"),
        (1, {"addr": "fe80::1%eth0"}, "is not an IP address"),
        (1, {"port": 0}, "'port' is not a whole number from 1 to 65535"),
        (1, {"kind": "plot"}, "'kind' is not one of hello"),
        (1, {"offer": []}, "offer: not a map"),
        (3, {"plan": b"\xc0"}, "plan: not a map"),
    ],
)
def test_messages_that_are_none(nth: int, changes: dict[str, object], problem: str) -> None:
    error = decoded("message", msgpack.packb({**fields("message", nth), **changes}))
    assert isinstance(error, NegotiationError)
    assert problem in error.strerror


def test_a_later_version_that_still_speaks_ours_is_welcome() -> None:
    later = msgpack.packb({**fields("message", 0), "v": 9, "more": [1]})
    assert messages.decode(later, 512) == Hello(b"n" * 16, True, version=9)


def test_text_for_people_is_made_harmless() -> None:
    raw = {"kind": "error", "why": "\x1b]0;x\x07\nline"}
    assert messages.decode(msgpack.packb(raw), 512) == Trouble("?]0;x??line")
