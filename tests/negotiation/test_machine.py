"""Two agents' conversation, without a network: what each says, hears, and makes of mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.negotiation import messages
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.machine import (
    NO_LISTENER,
    TRANSITIONS,
    Answer,
    Asked,
    Failed,
    Initiator,
    Responder,
    State,
)
from bertha_socket.negotiation.messages import HELLO_MAX, MAC_SIZE
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import Plan, PlannedChunnel, Refusal
from tests.negotiation.strategies import ABLE, compress, encrypt

KEY = b"k" * 32
OTHER = b"o" * 32
CLIENT = Offer(able=ABLE)
SERVER = Offer((compress(("level", 3)), encrypt()))


def agreed() -> Plan:
    plan = choose(CLIENT, SERVER)
    assert isinstance(plan, Plan)
    return plan


def met(key: bytes | None = KEY) -> tuple[Initiator, Responder]:
    """Two ends, the question asked and heard."""
    initiator, responder = Initiator("10.0.0.2", 6379, CLIENT, key), Responder(key)
    responder.receive(initiator.outgoing())
    assert responder.event() == Asked("10.0.0.2", 6379, CLIENT)
    return initiator, responder


keys = pytest.mark.parametrize("key", [KEY, None], ids=["keyed", "unkeyed"])


@keys
@pytest.mark.parametrize(
    "answer",
    [agreed(), Plan(), Refusal("encrypt", "no", "a", "b"), NO_LISTENER],
    ids=["plan", "plain", "no", "none"],
)
def test_one_round_trip(key: bytes | None, answer: Answer) -> None:
    initiator, responder = met(key)
    assert responder.outgoing() == b"", "it says nothing before it has its answer"
    assert not responder.finished
    responder.answer(answer)
    initiator.receive(responder.outgoing())
    assert initiator.event() == answer
    assert initiator.event() is None
    assert initiator.finished and responder.finished
    assert (initiator.state, responder.state) == (State.DONE, State.DONE)
    assert initiator.outgoing() == responder.outgoing() == b""


@keys
@given(data=st.data())
def test_pieces_of_any_size(key: bytes | None, data: st.DataObject) -> None:
    initiator, responder = Initiator("10.0.0.2", 6379, CLIENT, key), Responder(key)
    _in_pieces(responder, initiator.outgoing(), data)
    assert responder.event() == Asked("10.0.0.2", 6379, CLIENT)
    responder.answer(agreed())
    _in_pieces(initiator, responder.outgoing(), data)
    assert initiator.event() == agreed()


def _in_pieces(machine: Initiator | Responder, sent: bytes, data: st.DataObject) -> None:
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        machine.receive(sent[:size])
        sent = sent[size:]


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (KEY, None, "the client's host has a cluster key and the server's has none: copy the key there"),
        (None, KEY, "the server's host has a cluster key and the client's has none: copy the key there"),
        (KEY, OTHER, "the keys differ: compare 'bertha key show-id' on both hosts"),
    ],
)
def test_another_key_is_told_at_both_ends(ours: bytes | None, theirs: bytes | None, why: str) -> None:
    initiator, responder = Initiator("10.0.0.2", 6379, CLIENT, ours), Responder(theirs)
    responder.receive(initiator.outgoing())
    heard = responder.event()
    assert isinstance(heard, Failed) and why in heard.why and not heard.told
    initiator.receive(responder.outgoing())
    told = initiator.event()
    assert isinstance(told, Failed) and why in told.why and told.told
    assert initiator.finished and responder.finished


@keys
def test_the_end_comes_too_early(key: bytes | None) -> None:
    initiator, responder = met(key)
    for machine in (initiator, responder):
        machine.receive(b"")
        failed = machine.event()
        assert isinstance(failed, Failed)
        assert "without an answer" in failed.why
        assert machine.finished
        machine.receive(b"x")
        assert machine.event() is None, "it is over"
    responder.answer(agreed())
    assert responder.outgoing() == b"", "nobody is there to be answered"


def test_an_agent_answers_once_and_when_asked() -> None:
    with pytest.raises(NegotiationError, match="out of turn"):
        Responder(KEY).answer(NO_LISTENER)
    _, responder = met()
    responder.answer(NO_LISTENER)
    with pytest.raises(NegotiationError, match="out of turn"):
        responder.answer(NO_LISTENER)


def test_a_question_too_many() -> None:
    initiator = Initiator("10.0.0.2", 6379, CLIENT, KEY)
    responder = Responder(KEY)
    asked = initiator.outgoing()
    responder.receive(asked + asked)
    assert isinstance(responder.event(), Asked)
    failed = responder.event()
    assert isinstance(failed, Failed)
    assert "not its turn" in failed.why


def test_a_plan_that_the_client_does_not_agree_to_is_no_plan() -> None:
    initiator, responder = met()
    responder.answer(Plan((PlannedChunnel("encrypt", (), "rot13", "rot13", "rot13", "host", "host"),)))
    initiator.receive(responder.outgoing())
    found = initiator.event()
    assert isinstance(found, Refusal)
    assert found.chunnel == "encrypt"


def test_a_plan_that_is_too_long_becomes_a_refusal() -> None:
    initiator, responder = met()
    text = "x" * 4000
    responder.answer(Plan((PlannedChunnel("compress", (("a", text), ("b", text), ("c", text))),)))
    initiator.receive(responder.outgoing())
    found = initiator.event()
    assert isinstance(found, Refusal)
    assert "shorten" in found.why


def test_an_offer_that_is_too_long_is_told_at_once() -> None:
    long = compress(*((f"a{n}", "x" * 4000) for n in range(20)))
    with pytest.raises(NegotiationError, match="shorten the DAG's arguments"):
        Initiator("10.0.0.2", 6379, Offer((long,)))


@given(st.binary(min_size=1, max_size=80))
def test_strangers(data: bytes) -> None:
    """Whatever they send, there is a Failed or the wait for more, and little is kept."""
    for machine in (Responder(KEY), Responder(), Initiator("10.0.0.2", 1, CLIENT, KEY)):
        machine.receive(data)
        event = machine.event()
        assert event is None or isinstance(event, Failed)
        assert machine.finished == (event is not None)


@pytest.mark.parametrize("size", [0, MAC_SIZE, MAC_SIZE + HELLO_MAX + 1, 2**32 - 1])
def test_a_stranger_cannot_make_us_wait_for_much(size: int) -> None:
    responder = Responder(KEY)
    responder.receive(size.to_bytes(4, "big"))
    failed = responder.event()
    assert isinstance(failed, Failed)
    assert "not an agent of ours" in failed.why


def test_a_web_server_in_place_of_the_agent() -> None:
    initiator = Initiator("10.0.0.2", 6379, CLIENT, KEY)
    initiator.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    failed = initiator.event()
    assert isinstance(failed, Failed)
    assert "not an agent of ours" in failed.why


def test_what_was_said_is_not_accepted_as_an_answer() -> None:
    """Sent back to where it came from: the directions differ."""
    initiator = Initiator("10.0.0.2", 6379, CLIENT, KEY)
    initiator.receive(initiator.outgoing())
    assert isinstance(initiator.event(), Failed)


def test_what_a_responder_says_is_not_what_an_initiator_says() -> None:
    """Even where nothing was said before, so that only the direction tells them apart."""
    one, other = Responder(KEY), Responder(KEY)
    one.receive(bytes(4))
    other.receive(one.outgoing())
    failed = other.event()
    assert isinstance(failed, Failed)
    assert "altered" in failed.why


@keys
def test_an_answer_to_another_question(key: bytes | None) -> None:
    """Recorded once, played back later: the nonces differ."""
    _, responder = met(key)
    responder.answer(agreed())
    recorded = responder.outgoing()
    again = Initiator("10.0.0.2", 6379, CLIENT, key)
    again.receive(recorded)
    assert isinstance(again.event(), Failed)


@keys
def test_a_question_that_is_played_back_gives_nothing_but_an_answer(key: bytes | None) -> None:
    initiator = Initiator("10.0.0.2", 6379, CLIENT, key)
    recorded = initiator.outgoing()
    answers = []
    for nonce in (b"1" * 16, b"2" * 16):
        responder = Responder(key, nonce)
        responder.receive(recorded)
        assert isinstance(responder.event(), Asked)
        responder.answer(agreed())
        answers.append(responder.outgoing())
    assert answers[0] != answers[1]
    initiator.receive(answers[1])
    assert initiator.event() == agreed(), "the first answer to arrive; both are genuine and for this question"


def test_the_same_question_is_never_the_same_bytes() -> None:
    one, other = (Initiator("10.0.0.2", 6379, CLIENT, KEY).outgoing() for _ in range(2))
    assert one != other


def test_the_key_is_not_in_what_is_said() -> None:
    initiator, responder = Initiator("10.0.0.2", 6379, CLIENT, KEY), Responder(KEY)
    said = initiator.outgoing()
    responder.receive(said)
    responder.answer(agreed())
    assert KEY not in said + responder.outgoing()


# -- the table ----------------------------------------------------------------------------------------------


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.SILENT, State.LISTENING} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert len(State) == len(State.__members__), "no state is an alias of another"
    left = {state for state, _, _ in TRANSITIONS}
    assert left == set(State) - {State.DONE, State.FAILED}


def test_the_table_has_every_kind_of_message() -> None:
    assert {kind for _, _, kind in TRANSITIONS} == set(messages.Kind)
