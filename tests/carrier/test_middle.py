"""Somebody in the middle of the connection itself never makes two ends run different plans, or a weaker one.

Who alters the greeting can always prevent a connection.  What must not happen is that an end is READY with
anything but the plan that the client has, or that bytes come out of a READY connection that nobody put in
while all that was altered is the greeting.  Behind the greeting only `encrypt` protects the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket.carrier.session import State
from bertha_socket.negotiation.plan import Plan
from tests.carrier.conftest import KEY, NATIVE, MakeCarrier
from tests.carrier.host import PYTHON, READY, REFUSED, CarrierHost
from tests.carrier.middle import Attack, Middle
from tests.carrier.test_pairs import PLANS as NATIVE_PLANS
from tests.carrier.test_session import PLANS, Session, pair, taken, talk

_KINDS = ("flip", "drop", "repeat", "reorder")
_WORDS = {"client": b"the words of the client", "server": b"the words of the server"}
_ATTACKS = st.builds(
    Attack, st.sampled_from(_KINDS), st.integers(0, 5000), st.integers(1, 400), st.integers(0, 7)
)


def _give(target: Session, parts: list[bytes], plan: bytes) -> None:
    for part in parts:
        if not target.over:
            target.network(part)
        if target.question is not None:
            assert target.question == plan, "an altered plan got as far as the agent"
            target.answer(None)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLANS), _ATTACKS, st.integers(0, 3), st.booleans(), st.booleans())
def test_sessions(plan: bytes, attack: Attack, flight: int, from_client: bool, early: bool) -> None:
    """Any flight of either direction; with data right behind the greeting, or only when both have agreed."""
    ends = dict(zip(("client", "server"), pair(plan), strict=True))
    if early:
        ends["client"].program(_WORDS["client"])
    greeting = attacked = False
    for turn in range(12):
        name, other = ("client", "server") if turn % 2 == 0 else ("server", "client")
        data = taken(ends[name])
        parts = [data] if data else []
        if turn == 2 * flight + (0 if from_client else 1):
            greeting = turn == 1 or (turn == 0 and not early)
            parts = attack.done(data)
            attacked = b"".join(parts) != data
        _give(ends[other], parts, plan)
        if not early and turn > 2 * flight + 2 and ends[name].state == State.READY:
            for end, words in _WORDS.items():
                if ends[end].wants_program and not ends[end].program_ended:
                    ends[end].program(words)
                    ends[end].program_end()
            early = True
    talk(ends["client"], ends["server"])
    for end in ends.values():
        end.network_end()
        assert not end.traceback, end.traceback
        assert end.state != State.PENDING
        if end.state == State.READY:
            assert end.recipe is not None and end.recipe.plan == Plan.decode(plan)
    if ends["client"].state == ends["server"].state == State.READY:
        assert ends["client"].chunnels == ends["server"].chunnels
    for end, words in (("server", _WORDS["client"]), ("client", _WORDS["server"])):
        got = b"".join(ends[end].to_program)
        if b"tls1.3" in plan or greeting or not attacked:
            assert words.startswith(got), (end, got)


@pytest.mark.parametrize("plan", PLANS)
def test_without_an_attack_both_are_ready(plan: bytes) -> None:
    """So that the test above is not about sessions that never agree."""
    client, server = pair(plan)
    for _ in range(6):
        _give(server, [taken(client)], plan)
        _give(client, [taken(server)], plan)
    assert client.state == server.state == State.READY


COMMANDS = {"native": (str(NATIVE),), "python": PYTHON}
_PAIRS = [("native", "native"), ("python", "native"), ("native", "python")]


@pytest.fixture(params=_PAIRS, ids="-".join)
def two(
    request: pytest.FixtureRequest, make_carrier: MakeCarrier
) -> Iterator[tuple[CarrierHost, CarrierHost]]:
    """A client's carrier and a server's, one of them at least the native one."""
    if not Path(NATIVE).exists():
        pytest.skip("the native carrier is not built")
    client, server = (make_carrier(KEY, command=COMMANDS[kind], count=1024) for kind in request.param)
    yield client, server
    client.close()
    server.close()


def _attacks(name: str) -> Iterator[tuple[Attack, bool]]:
    yield Attack("nothing", 0), True
    # The first flight of TLS is long, and OpenSSL's own business: some of it will do.
    step = 7 if "tls" not in name else 47
    for from_client in (True, False):
        for at in range(0, 180, step):
            yield Attack("flip", at, 1000, at % 8), from_client
        for kind in ("drop", "repeat", "reorder"):
            for size, at in ((8, 0), (8, 1), (50, 0), (50, 1), (1000, 0)):
                if size < 1000 or kind != "reorder":  # of one segment there is no other order
                    yield Attack(kind, at, size), from_client


@pytest.mark.parametrize("name", ["zstd", "tls", "zstd-tls"])
def test_native_carriers(two: tuple[CarrierHost, CarrierHost], name: str) -> None:
    """The same of the native greeting, over sockets: each attack on a connection of its own."""
    plan, ready = NATIVE_PLANS[name], 0
    for attack, from_client in _attacks(name):
        between = Middle(*two, plan)
        try:
            between.pump(attack, from_client, between.settled)
            both = between.client_status.state == between.server_status.state == READY
            if both:
                ready += 1
                assert between.client_status.chunnels == between.server_status.chunnels
                _words_arrive(between, attack, from_client)
            assert both or attack.kind != "nothing", between.client_status.detail
            between.end()
            for status in (between.client_status, between.server_status):
                if status.state == READY:
                    ran = [c["type"] for c in status.chunnels]
                    assert ran == [c.type for c in Plan.decode(plan).chunnels], attack
        finally:
            between.close()
    assert ready >= 1
    assert {check["plan"] for check in two[1].checks} <= {plan}, "an altered plan got as far as the agent"


def _words_arrive(between: Middle, attack: Attack, from_client: bool) -> None:
    """What one end says is what the other hears, or nothing of it."""
    got = b""
    between.client.sendall(_WORDS["client"])
    between.server.setblocking(False)

    def heard() -> bool:
        nonlocal got
        try:
            data = between.server.recv(4096)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        got += data
        return not data or len(got) >= len(_WORDS["client"])

    between.pump(attack, from_client, heard)
    assert _WORDS["client"].startswith(got), (attack, got)
    assert got == _WORDS["client"] or attack.kind != "nothing"


def test_a_refusal_never_becomes_a_yes() -> None:
    """Whichever bit of it is flipped."""
    at = 0
    while True:
        client, server = pair(PLANS[0])
        server.network(taken(client))
        server.answer("not this one")
        refusal = bytearray(taken(server))
        if at == 8 * len(refusal):
            break
        refusal[at // 8] ^= 1 << at % 8
        client.network(bytes(refusal))
        client.network_end()
        assert client.state == State.REFUSED, at
        at += 1
    assert at > 100


def test_a_native_refusal_never_becomes_a_yes(two: tuple[CarrierHost, CarrierHost]) -> None:
    two[1].judge = lambda listener, plan: "not this one"
    for at in range(40):  # as far as behind "ok"
        between = Middle(*two, NATIVE_PLANS["zstd"])
        try:
            between.pump(Attack("flip", at, 1000, 0), False, between.settled)
            between.end()
            assert between.client_status.state == between.server_status.state == REFUSED, at
        finally:
            between.close()
