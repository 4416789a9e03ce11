"""The session without sockets: any bytes, in any pieces, at any moment, end in a state, never in a fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket import keys
from bertha_socket.carrier import preamble
from bertha_socket.carrier.session import Mode, Session, State
from bertha_socket.chunnels import Context
from tests.carrier.host import chunnel, plan_of

KEY = bytes(32)
MATERIAL = keys.material(KEY)
PLANS = [
    plan_of(chunnel("compress", "zstd/1")),
    plan_of(chunnel("encrypt", "tls1.3")),
    plan_of(chunnel("compress", "lz4/1"), chunnel("encrypt", "tls1.3")),
    plan_of(chunnel("frame", "u32be/1"), chunnel("compress", "zstd/1")),
]


def session(side: str, mode: Mode, plan: bytes = b"", key: bytes | None = KEY) -> Session:
    found = Session(mode, Context(side, MATERIAL if key else None), key, plan)
    found.start()
    return found


def pair(plan: bytes) -> tuple[Session, Session]:
    return session("client", Mode.PLAN, plan), session("server", Mode.REQUIRED)


def taken(source: Session) -> bytes:
    """What it has sent."""
    data = b"".join(source.to_network)
    source.to_network.clear()
    source.network_size = 0
    return data


def move(source: Session, target: Session, sizes: Iterator[int] | None = None) -> bool:
    """Gives what one has sent to the other; whether there was something."""
    data = taken(source)
    moved = bool(data)
    while data:
        size = next(sizes) if sizes is not None else len(data)
        target.network(data[:size])
        data = data[size:]
        if target.question is not None:
            target.answer(None)
    return moved


def talk(client: Session, server: Session) -> None:
    while move(client, server) | move(server, client):
        pass


@pytest.mark.parametrize("plan", PLANS)
def test_both_agree(plan: bytes) -> None:
    client, server = pair(plan)
    talk(client, server)
    assert client.state == server.state == State.READY
    client.program(b"hello")
    client.program_end()
    talk(client, server)
    assert b"".join(server.to_program) == b"hello"
    assert client.network_ended and not server.program_ended
    server.network_end()
    assert server.program_ended


@pytest.mark.parametrize("plan", PLANS)
def test_all_that_comes_before_the_agents_word(plan: bytes) -> None:
    """Several pieces and the end, while the plan is being asked about."""
    client, server = pair(plan)
    if b"tls1.3" in plan:
        talk(client, server)
    for word in (b"one", b"two", b"three"):
        client.program(word)
    client.program_end()
    pieces = list(client.to_network)
    client.to_network.clear()
    for piece in pieces:
        server.network(piece)
    server.network_end()
    if server.question is not None:
        server.answer(None)
    assert not server.detail, server.detail
    assert b"".join(server.to_program) == b"onetwothree"
    assert server.program_ended


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from(list(Mode)), st.sampled_from(PLANS), st.data())
def test_any_bytes(data: bytes, mode: Mode, plan: bytes, draw: st.DataObject) -> None:
    """From a stranger, at the start."""
    client = mode == Mode.PLAN
    target = session("client" if client else "server", mode, plan if client else b"")
    start = draw.draw(st.sampled_from([b"", b"\xbeBRT", b"\xbeBRT\x00\x00\x00\x10", b"\x16\x03\x01"]))
    for at in range(0, len(data) + len(start), 100):
        target.network((start + data)[at : at + 100] or b"x")
        assert target.question is None or not client
    target.network_end()
    assert target.state in (State.REFUSED, State.PLAIN, State.PENDING)
    assert not target.traceback
    if target.state == State.REFUSED:
        assert target.detail
        assert not target.to_program, "a refused connection gave something to the program"


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(PLANS), st.integers(0, 10_000), st.integers(0, 7), st.booleans(), st.integers(1, 5000))
def test_one_flipped_bit(plan: bytes, at: int, bit: int, from_client: bool, size: int) -> None:
    """Wherever it is, nothing is made up; with encryption, nothing altered is passed on.  (test_middle.py has
    the other attacks.)"""
    client, server = pair(plan)
    greeting = len(b"".join(client.to_network))
    if from_client:
        client.program(b"the words of the client")
    source, target = (client, server) if from_client else (server, client)
    if not from_client:
        move(client, server)
        greeting = len(b"".join(server.to_network))
        if server.wants_program:
            server.program(b"the words of the server")
    data = bytearray(taken(source))
    if data:
        at %= len(data)
        data[at] ^= 1 << bit
    for start in range(0, len(data), size):
        target.network(bytes(data[start : start + size]))
        if target.question is not None:
            target.answer(None if target.question == plan else "another plan")
    talk(client, server)
    for end in (client, server):
        assert not end.traceback, end.traceback
        if end.state == State.READY:
            assert end.recipe is not None and end.recipe.plan.encode() == plan
    if client.state == server.state == State.READY:
        assert client.chunnels == server.chunnels
    if b"tls1.3" in plan or at < greeting:  # behind it only encrypt protects the bytes
        assert b"the words of the client".startswith(b"".join(server.to_program))
        assert b"the words of the server".startswith(b"".join(client.to_program))


def test_an_altered_plan_is_refused() -> None:
    """By somebody in the middle, who has no key."""
    client, server = pair(PLANS[0])
    sent = b"".join(client.to_network)
    assert b"level" not in sent
    hello = preamble.Reader().feed(sent)
    assert hello is not None
    weaker = plan_of()
    fields = preamble.read_hello(hello)
    forged = preamble.client_preamble(weaker, fields.nonce, None)
    server.network(forged)
    assert server.state == State.REFUSED
    assert "cluster key" in server.detail
    server = session("server", Mode.REQUIRED)
    server.network(preamble.client_preamble(weaker, fields.nonce, b"x" * 32))
    assert server.state == State.REFUSED


def test_a_yes_for_another_connection_is_no_yes() -> None:
    first, first_server = pair(PLANS[0])
    move(first, first_server)
    yes = b"".join(first_server.to_network)
    second, _ = pair(PLANS[0])
    second.network(yes)
    assert second.state == State.REFUSED
    assert not second.to_program


def test_a_silent_other_end_is_given_up() -> None:
    for end in (session("client", Mode.PLAN, PLANS[0]), session("server", Mode.REQUIRED)):
        due = end.deadline()
        assert due is not None
        end.tick(due)
        assert end.state == State.REFUSED and "10 s" in end.detail


def test_the_refusal_is_one_line_that_fits() -> None:
    client, server = pair(PLANS[2])
    while not server.question:
        data = b"".join(client.to_network)
        client.to_network.clear()
        server.network(data)
        if not server.question:
            move(server, client)
    server.answer("no\n" * 1000)
    move(server, client)
    for end in (client, server):
        assert end.state == State.REFUSED
        assert "\n" not in end.detail and len(end.detail.encode()) < 400


def test_context_is_not_shared() -> None:
    assert "counts" in {f.name for f in dataclasses.fields(Context)}
    assert Context().counts is not Context().counts
