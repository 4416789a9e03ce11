"""Offers: made of a DAG and of what a host has; their size and their encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given

from bertha_socket.dag import Chunnel, Need, Scope, parse
from bertha_socket.negotiation._codec import NegotiationError
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.offer import OFFER_MAX, Offer, OfferedType, offer_of
from bertha_socket.negotiation.plan import Plan
from bertha_socket.negotiation.rules import Rules
from tests.negotiation.strategies import both, offers


@dataclass
class Parameter:
    name: str
    agree: str = "server"


@dataclass
class Runs:
    """An implementation, as bertha_socket.chunnels has them."""

    name: str
    found: tuple[str, ...] = ("w/1",)
    where: str = "host"
    endpoints: str = "both"
    priority: int = 100
    carrier: str = "native"

    def wires(self, args: Mapping[str, Any]) -> Sequence[str]:
        return tuple(w for w in self.found if args.get("algorithm") in (None, w))


@dataclass
class Kind:
    """A chunnel type, as bertha_socket.chunnels has them."""

    name: str
    implementations: tuple[Runs, ...]
    parameters: tuple[Parameter, ...] = ()
    endpoints: str = "both"
    needed: tuple[str, ...] = ()
    dictated: bool = True

    def bind(self, chunnel: Chunnel) -> dict[str, Any]:
        found = dict(zip((p.name for p in self.parameters), chunnel.args, strict=False)) | dict(
            chunnel.kwargs
        )
        for name in self.needed:
            if name not in found:
                raise OSError(22, f"{self.name}: argument {name} is missing")
        return found


SQUEEZE = Kind(
    "squeeze",
    (Runs("slow", ("z/1",), priority=10, carrier="python"), Runs("fast", ("z/1", "y/1"))),
    (Parameter("algorithm", "equal"), Parameter("level"), Parameter("file", "own")),
)
HIDE = Kind("hide", (Runs("ssl"), Runs("gnu", priority=50)))


def test_of_a_dag() -> None:
    offer = offer_of(parse('squeeze("z/1", level=3, file="/x") |> prefer hide()@host'), [HIDE, SQUEEZE])
    squeeze, hide = offer.chunnels
    assert squeeze.args == (("algorithm", "z/1"), ("level", 3)), "named, sorted; this host's own stay here"
    assert squeeze.firm == ("algorithm",)
    assert [(i.name, i.wires) for i in squeeze.implementations] == [("fast", ("z/1",)), ("slow", ("z/1",))]
    assert (squeeze.need, squeeze.scope, squeeze.endpoints) == (Need.REQUIRE, None, "both")
    assert (hide.need, hide.scope) == (Need.PREFER, Scope.HOST)
    assert [t.type for t in offer.able] == ["hide", "squeeze"]
    assert [i.wires for i in offer.able[1].implementations] == [("z/1", "y/1"), ("z/1",)]


def test_without_a_dag_it_offers_what_it_can_run() -> None:
    server = offer_of(parse("squeeze() |> hide()"), [HIDE, SQUEEZE])
    plan = choose(offer_of(parse(""), [HIDE, SQUEEZE]), server)
    assert isinstance(plan, Plan)
    assert [c.type for c in plan.chunnels] == ["squeeze", "hide"]


def test_what_must_not_be_dictated_is_not_offered_unasked() -> None:
    tap = Kind("tap", (Runs("one"),), dictated=False)
    assert offer_of(parse(""), [tap]).able == ()
    assert offer_of(parse("tap()"), [tap]).chunnels[0].implementations != ()
    refused = choose(offer_of(parse(""), [tap]), offer_of(parse("tap()"), [tap]))
    assert "no implementation at the client" in str(refused)


def test_only_what_the_probes_found_and_one_carrier() -> None:
    offer = offer_of(parse("squeeze()"), [SQUEEZE, HIDE], usable=lambda kind, i: i.name != "ssl")
    assert [i.name for t in offer.able for i in t.implementations] == ["gnu", "fast", "slow"]
    python = offer.only("python")
    assert [i.name for c in python.chunnels for i in c.implementations] == ["slow"]
    assert python.rules == offer.rules


def test_a_type_that_needs_arguments_is_offered_all_the_same() -> None:
    kind = Kind("split", (Runs("one"),), (Parameter("by"),), needed=("by",))
    assert [i.name for i in offer_of(parse(""), [kind]).able[0].implementations] == ["one"]
    with pytest.raises(OSError, match="argument by is missing"):
        offer_of(parse("split()"), [kind])


def test_a_type_that_nobody_here_knows_is_offered_without_implementations() -> None:
    offer = offer_of(parse('mystery(1, k="v")'), [HIDE])
    assert offer.chunnels[0].args == (("0", 1), ("k", "v"))
    assert offer.chunnels[0].implementations == ()
    assert "no implementation at either end" in str(choose(offer, Offer()))


def test_a_required_name_is_about_its_own_type() -> None:
    offer = offer_of(parse("squeeze() |> hide()"), [SQUEEZE, HIDE], Rules(require=("gnu",)))
    assert offer.rules.require == ("hide/gnu",)
    plan = choose(offer, offer)
    assert isinstance(plan, Plan)
    assert [(c.client, c.server) for c in plan.chunnels] == [("fast", "fast"), ("gnu", "gnu")]


def test_a_required_name_that_is_unknown_forbids_rather_too_much() -> None:
    offer = offer_of(parse("hide()"), [HIDE], Rules(require=("tpm",)))
    assert not isinstance(choose(offer, offer), Plan)


def test_an_operators_priorities_change_what_is_offered() -> None:
    offer = offer_of(parse("hide()"), [HIDE], Rules(priorities=(("hide/gnu", 1000),)))
    plan = choose(offer, offer)
    assert isinstance(plan, Plan)
    assert plan.chunnels[0].client == "gnu"


@pytest.mark.parametrize("pattern", ["", "a b", "a?", "a/b/c", "ä", "x" * 131, "a\n"])
def test_rules_that_are_none(pattern: str) -> None:
    with pytest.raises(NegotiationError, match="is no rule"):
        offer_of(parse(""), [], Rules(prohibit=(pattern,)))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "not a number that can be agreed on"),
        (float("inf"), "not a number that can be agreed on"),
        (2**64, "beyond 64 bits"),
        ("x" * 4097, "a text of 4097 characters"),
        ((((((((((((((((((1,),),),),),),),),),),),),),),),),), "nested more than 16 deep"),
        ((0,) * 1025, "more than 1024 values"),
        (object(), "object is not an argument"),
    ],
)
def test_arguments_that_cannot_be_negotiated(value: Any, problem: str) -> None:
    dag = parse("hide()")
    wrong = type(dag)((Chunnel("hide", (), (("x", value),)),))
    with pytest.raises(NegotiationError, match=problem):
        offer_of(wrong, [HIDE])


@given(offers())
def test_comes_back_as_it_went(offer: Offer) -> None:
    data = offer.encode()
    assert Offer.decode(data) == offer
    assert Offer.decode(data).encode() == data


def test_a_dag_and_an_expression_are_arguments() -> None:
    offer = offer_of(parse("hide(to=[squeeze(level=1), hide() |> squeeze()], x=hide())"), [HIDE, SQUEEZE])
    assert Offer.decode(offer.encode()) == offer
    assert hash(offer) == hash(Offer.decode(offer.encode()))


def _size(types: int, each: int) -> int:
    found = tuple(both(f"i{n:02}", "w/1") for n in range(each))
    return len(Offer(able=tuple(OfferedType(f"t{n:02}", found, "both") for n in range(types))).encode())


def test_the_size_grows_with_the_sum_of_the_alternatives() -> None:
    one = _size(1, 3) - _size(1, 2)
    assert _size(1, 8) - _size(1, 7) == one, "an implementation costs the same, however many there are"
    kind = _size(3, 4) - _size(2, 4)
    assert _size(14, 4) - _size(13, 4) == kind, "so does a type"
    assert _size(14, 8) == 14 * 8 * one + _size(14, 0)


def test_what_hosts_have_is_small() -> None:
    assert _size(13, 3) < 6000 < OFFER_MAX


def test_an_offer_that_is_too_long_is_told() -> None:
    text = "x" * 4000
    dag = parse(" |> ".join(f'hide(a="{text}")' for _ in range(2)))
    offer = Offer(offer_of(dag, [HIDE]).chunnels * 10)
    with pytest.raises(NegotiationError, match="shorten the DAG's arguments"):
        offer.encode()
