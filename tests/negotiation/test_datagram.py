"""A conversation in two datagrams: what fits, and what strangers send."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.negotiation import datagram
from bertha_socket.negotiation.datagram import QUESTION_SIZE
from bertha_socket.negotiation.machine import NO_LISTENER, Asked, Initiator, Responder
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import Plan, PlannedChunnel

KEY = b"k" * 32


def some(count: int = 1) -> Plan:
    return Plan(
        tuple(
            PlannedChunnel(
                "compress", (("level", os.urandom(40).hex()),), "zstd/1", "zstd", "zstd", "host", "host"
            )
            for _ in range(count)
        )
    )


def exchange(asking: Initiator, answering: Responder, answer: Plan | object) -> bytes | None:
    """The answer's datagram."""
    sent = datagram.question(asking.outgoing())
    assert sent is not None and len(sent) == QUESTION_SIZE
    frames = datagram.asked(sent)
    assert frames is not None
    answering.receive(frames)
    event = answering.event()
    assert isinstance(event, Asked) and answering.alone
    answering.answer(answer)  # type: ignore[arg-type]
    return datagram.answer(answering.outgoing())


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("answer", [NO_LISTENER, some()])
def test_there_and_back(key: bytes | None, answer: object) -> None:
    asking = Initiator("10.0.0.1", 80, Offer(), key)
    back = exchange(asking, Responder(key), answer)
    assert back is not None and len(back) <= QUESTION_SIZE
    frames = datagram.answered(back)
    assert frames is not None
    asking.receive(frames)
    assert asking.event() is not None and asking.clean


def test_no_answer_is_longer_than_its_question() -> None:
    assert exchange(Initiator("10.0.0.1", 80, Offer()), Responder(), some(30)) is None
    assert datagram.answer(os.urandom(QUESTION_SIZE)) is None
    assert datagram.answer(bytes(100_000)) is None


def test_what_is_too_long_is_not_sent() -> None:
    assert datagram.question(os.urandom(QUESTION_SIZE)) is None
    assert datagram.question(bytes(5000)) is None, "the other end would not unpack it"


def test_what_grows_is_not_unpacked() -> None:
    bomb = b"\xbeBRA?" + zlib.compress(bytes(100_000))
    assert datagram.asked(bomb.ljust(QUESTION_SIZE, b"\0")) is None
    assert datagram.answered(b"\xbeBRA!" + zlib.compress(bytes(1_000_000))) is None


def test_a_question_is_padded_or_not_answered() -> None:
    sent = datagram.question(b"words")
    assert sent is not None and datagram.asked(sent) == b"words"
    assert datagram.asked(sent[:-1]) is None and datagram.asked(sent + b"\0") is None
    assert datagram.answered(sent) is None, (
        "an answer that comes back is no question, and the other way round"
    )
    answer = datagram.answer(b"words")
    assert answer is not None and datagram.answered(answer) == b"words"
    assert datagram.asked(answer.ljust(QUESTION_SIZE, b"\0")) is None


@given(st.binary(max_size=1300), st.sampled_from([b"", b"\xbeBRA?", b"\xbeBRA!", b"\xbeBRA!\x78\x9c"]))
def test_garbage(data: bytes, before: bytes) -> None:
    whole = before + data
    for read in (datagram.asked, datagram.answered):
        assert read(whole) is None or isinstance(read(whole), bytes)
    datagram.asked(whole[:QUESTION_SIZE].ljust(QUESTION_SIZE, b"\0"))


@pytest.mark.parametrize("key", [None, KEY])
def test_the_same_question_again(key: bytes | None) -> None:
    """To the letter, whatever has become of the first; each takes its own answer."""
    first = Initiator("10.0.0.1", 80, Offer(), key)
    second = first.again()
    words = first.outgoing()
    assert second.outgoing() == words and first.again().outgoing() == words
    first.receive(b"\0" * 100)
    assert first.finished and not second.finished
    third = first.again()
    assert third.outgoing() == words
    answering = Responder(key)
    answering.receive(words)
    answering.event()
    answering.answer(NO_LISTENER)
    said = answering.outgoing()
    for machine in (second, third):
        machine.receive(said)
        assert machine.event() is NO_LISTENER and machine.clean
    assert first.event() is not NO_LISTENER


def test_a_question_has_a_name() -> None:
    """By which it is known when it comes by another way."""
    asking = Initiator("10.0.0.1", 80, Offer())
    names = []
    for machine in (asking, asking.again(), Initiator("10.0.0.1", 80, Offer())):
        answering = Responder()
        answering.receive(machine.outgoing())
        names.append(answering.question)
    assert names[0] == names[1] != names[2]
