"""Somebody between two agents who drops, repeats, reorders, alters and forges what they say.

With a cluster key: an end that has an answer has the answer that was given to the question it asked.
Without: what both ends accept in the end is one plan that has all that either requires (docs/negotiation.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import msgpack
from hypothesis import given, note, settings
from hypothesis import strategies as st

from bertha_socket.dag import Need
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.machine import (
    NO_LISTENER,
    Answer,
    Asked,
    Event,
    Failed,
    Initiator,
    Responder,
)
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import Plan, PlannedChunnel, Refusal, acceptable
from tests.negotiation.strategies import offers

KEY: Final = b"k" * 32
ADDRESS: Final = ("10.0.0.2", 6379)
Tamper = Callable[[bytes], bytes]


def frames(data: bytes) -> list[bytes]:
    """The frames in what one end has sent."""
    found = []
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def recorded(key: bytes | None) -> list[bytes]:
    """Frames of both directions of an earlier conversation under the same key, about no chunnels at all."""
    initiator, responder = Initiator(*ADDRESS, Offer(), key), Responder(key)
    sent = initiator.outgoing()
    responder.receive(sent)
    assert responder.event() is not None
    responder.answer(Plan())
    return frames(sent) + frames(responder.outgoing())


@st.composite
def tampers(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """What is done to one flight of messages: (what, where, how)."""
    kinds = st.sampled_from(("flip", "drop", "repeat", "swap", "old", "cut", "other", "add"))
    return draw(st.lists(st.tuples(kinds, st.integers(0, 999), st.integers(0, 2**16)), max_size=4))


def tamper(flight: bytes, plan: list[tuple[str, int, int]], old: list[bytes], seen: list[bytes]) -> bytes:
    """A flight after somebody was at it.  `old`: an earlier conversation; `seen`: this one so far."""
    parts = frames(flight)
    for what, where, how in plan:
        parts = [p for p in parts if p]  # what was cut to nothing
        if not parts:
            break
        at = where % len(parts)
        if what == "flip":
            changed = bytearray(parts[at])
            changed[how // 8 % len(changed)] ^= 1 << how % 8
            parts[at] = bytes(changed)
        elif what == "drop":
            del parts[at]
        elif what == "repeat":
            parts.insert(at, parts[at])
        elif what == "swap":
            other = how % len(parts)
            parts[at], parts[other] = parts[other], parts[at]
        elif what == "old":
            parts[at] = old[how % len(old)]
        elif what == "other" and seen:
            parts[at] = seen[how % len(seen)]
        elif what == "add":
            parts.insert(at, old[how % len(old)])
        elif what == "cut":
            parts[at] = parts[at][: how % len(parts[at])]
    return b"".join(parts)


def converse(
    client: Offer, key: bytes | None, decide: Callable[[Asked], Answer], to_server: Tamper, to_client: Tamper
) -> tuple[Asked | None, Event | None]:
    """What the responder was asked and what the initiator was told, with somebody in the middle."""
    initiator, responder = Initiator(*ADDRESS, client, key), Responder(key)
    responder.receive(to_server(initiator.outgoing()))
    asked = responder.event()
    if isinstance(asked, Asked):
        responder.answer(decide(asked))
    initiator.receive(to_client(responder.outgoing()) or b"")
    if not initiator.finished:
        initiator.receive(b"")  # no more comes; an agent's deadline does the same
    return asked if isinstance(asked, Asked) else None, initiator.event()


def required_by(offer: Offer) -> list[str]:
    return sorted(c.type for c in offer.chunnels if c.need is Need.REQUIRE)


@settings(max_examples=300)
@given(offers(2), offers(2), tampers(), tampers())
def test_with_a_key_an_answer_is_the_answer_to_this_question(
    client: Offer, server: Offer, first: list[tuple[str, int, int]], second: list[tuple[str, int, int]]
) -> None:
    given_out: list[Answer] = []

    def decide(asked: Asked) -> Answer:
        given_out.append(choose(asked.offer, server))
        return given_out[-1]

    old = recorded(KEY)
    seen: list[bytes] = []

    def to_server(flight: bytes) -> bytes:
        seen.extend(frames(flight))
        return tamper(flight, first, old, seen)

    def to_client(flight: bytes) -> bytes:
        seen.extend(frames(flight))
        return tamper(flight, second, old, seen)

    asked, told = converse(client, KEY, decide, to_server, to_client)
    note(f"asked {asked}, told {told}")
    if told is None or isinstance(told, Failed):
        return  # no agreement: plain if nobody requires anything, else refused (the ends see to that)
    assert asked == Asked(*ADDRESS, client), "what was answered is what was asked"
    assert told == given_out[0], "and the answer is the one that was given"
    if isinstance(told, Plan):
        assert acceptable(told, server, "server") is None
        assert set(required_by(client)) | set(required_by(server)) <= {c.type for c in told.chunnels}


@settings(max_examples=200)
@given(offers(2), offers(2), tampers(), tampers())
def test_without_a_key_accidents_are_found_all_the_same(
    client: Offer, server: Offer, first: list[tuple[str, int, int]], second: list[tuple[str, int, int]]
) -> None:
    """Nobody forges here; what was flipped, lost, repeated or of another conversation makes no agreement."""

    def decide(asked: Asked) -> Answer:
        return choose(asked.offer, server)

    old = recorded(None)
    _, told = converse(
        client,
        None,
        decide,
        lambda flight: tamper(flight, first, old, []),
        lambda flight: tamper(flight, second, old, []),
    )
    if not (told is None or isinstance(told, Failed)):
        assert told == choose(client, server)


# -- a forger who knows all there is to know -------------------------------------------------------------


@st.composite
def forged(draw: st.DrawFn, answer: Answer) -> Answer:
    """Any answer, mostly a plan that was tampered with."""
    if not isinstance(answer, Plan) or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from((Plan(), NO_LISTENER, Refusal("x", "y"))))
    chunnels = list(answer.chunnels)
    for _ in range(draw(st.integers(1, 3))):
        if not chunnels:
            break
        at = draw(st.integers(0, len(chunnels) - 1))
        c = chunnels[at]
        changes: list[list[PlannedChunnel]] = [
            [],
            [dataclasses.replace(c, wire="none")],
            [dataclasses.replace(c, wire="lz4/1")],
            [dataclasses.replace(c, args=())],
            [dataclasses.replace(c, client=None, client_where=None)],
            [dataclasses.replace(c, server=None, server_where=None)],
            [PlannedChunnel(c.type)],
            [dataclasses.replace(c, client="python", client_where="host")],
            [c, c],
        ]
        chunnels[at : at + 1] = draw(st.sampled_from(changes))
    return Plan(tuple(draw(st.permutations(chunnels))))


@settings(max_examples=300)
@given(offers(2), offers(2), st.data())
def test_without_a_key_what_both_accept_has_all_that_either_requires(
    client: Offer, server: Offer, data: st.DataObject
) -> None:
    """The forger answers in the server's agent's place; the client then shows its plan to the server."""
    answer = data.draw(forged(choose(client, server)))
    initiator, forger = Initiator(*ADDRESS, client), Responder()
    forger.receive(initiator.outgoing())
    assert isinstance(forger.event(), Asked)
    forger.answer(answer)
    initiator.receive(forger.outgoing())
    told = initiator.event()
    if not isinstance(told, Plan):
        return
    shown = (
        told.encode()
    )  # the start of the connection: the server takes the very bytes that the client shows
    plan = Plan.decode(shown)
    assert plan == told
    if acceptable(plan, server, "server") is not None:
        return
    for offer, side in ((client, "client"), (server, "server")):
        kinds = [c.type for c in plan.chunnels]
        for kind in set(required_by(offer)):
            assert kinds.count(kind) >= required_by(offer).count(kind)
        for chunnel in plan.chunnels:
            assert not offer.speaks(chunnel.type, Need.PROHIBIT)
            for name in (chunnel.client, chunnel.server):
                assert name is None or not offer.rules.prohibits(chunnel.type, name)
            if any(e.endpoints == "both" for e in offer.entries(chunnel.type)):
                assert chunnel.client is not None and chunnel.server is not None, side


@given(offers(2), offers(2), offers(2))
def test_with_a_key_nobody_else_answers(client: Offer, server: Offer, other: Offer) -> None:
    """A forger without the key: the client has no agreement, whatever is forged."""
    for key in (None, b"j" * 32):
        initiator, forger = Initiator(*ADDRESS, client, KEY), Responder(key)
        sent = initiator.outgoing()
        forger.receive(sent)
        assert isinstance(forger.event(), Failed)
        answering = Responder(key)
        own = Initiator(*ADDRESS, other, key)
        answering.receive(own.outgoing())
        assert isinstance(answering.event(), Asked)
        answering.answer(choose(other, server))
        initiator.receive(answering.outgoing())
        assert isinstance(initiator.event(), Failed)


def test_a_message_of_a_later_version_has_fields_that_the_mac_covers() -> None:
    """An unknown field is ignored by its reader, and still nobody can put one in."""
    initiator = Initiator(*ADDRESS, Offer(), KEY)
    hello = frames(initiator.outgoing())[0]
    body = msgpack.packb({**msgpack.unpackb(hello[36:]), "more": 1})
    responder = Responder(KEY)
    responder.receive((32 + len(body)).to_bytes(4, "big") + hello[4:36] + body)
    failed = responder.event()
    assert isinstance(failed, Failed)
    assert "altered" in failed.why


def test_errors_are_one_class() -> None:
    assert issubclass(NegotiationError, OSError)
