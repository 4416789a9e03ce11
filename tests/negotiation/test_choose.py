"""What is chosen: a table of cases, a brute-force reference, and what must hold for any two offers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket.dag import Need, Scope
from bertha_socket.negotiation.choose import Alternative, Policy, Wish, choose, without_a_plan
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedImplementation, OfferedType
from bertha_socket.negotiation.plan import PLAN_MAX, WHY_MAX, Plan, PlannedChunnel, Refusal, acceptable
from bertha_socket.negotiation.rules import Rules
from tests.negotiation import reference
from tests.negotiation.strategies import ABLE, ENCRYPT, both, compress, encrypt, offers


def planned(client: Offer, server: Offer) -> Plan:
    found = choose(client, server)
    assert isinstance(found, Plan), str(found)
    return found


def refused(client: Offer, server: Offer) -> Refusal:
    found = choose(client, server)
    assert isinstance(found, Refusal)
    return found


# -- cases --------------------------------------------------------------------------------------------------


def test_an_empty_client_inherits_the_servers_dag() -> None:
    plan = planned(Offer(able=ABLE), Offer((compress(("level", 3)), encrypt())))
    assert [(c.type, c.wire, c.client, c.server) for c in plan.chunnels] == [
        ("compress", "zstd/1", "native", "native"),
        ("encrypt", "tls1.3", "openssl", "openssl"),
    ]
    assert plan.chunnels[0].kwargs == {"level": 3}
    assert plan.omitted == ()


def test_a_server_without_a_dag_serves_the_clients() -> None:
    plan = planned(Offer((encrypt(),)), Offer(able=ABLE))
    assert [c.type for c in plan.chunnels] == ["encrypt"]


def test_nobody_wants_anything() -> None:
    assert planned(Offer(able=ABLE), Offer(able=ABLE)) == Plan()


def test_different_implementations_meet_in_a_common_wire() -> None:
    client = Offer((compress(),))
    server = Offer(able=(OfferedType("compress", (both("other", "lz4/1"),), "both", 60),))
    chunnel = planned(client, server).chunnels[0]
    assert (chunnel.client, chunnel.server, chunnel.wire) == ("native", "other", "lz4/1")


def test_the_refusal_names_the_chunnel_and_both_ends_alternatives() -> None:
    client = Offer(able=(OfferedType("compress", (both("mine", "lz4/1"),), "both", 60),))
    server = Offer(
        (OfferedChunnel("compress", implementations=(both("theirs", "zstd/1"),), endpoints="both"),)
    )
    line = str(refused(client, server))
    assert line == (
        "compress cannot be had: no wire in common; "
        "client has mine@host (lz4/1), server has theirs@host (zstd/1)"
    )


@pytest.mark.parametrize(
    ("client", "server", "why"),
    [
        (Offer(), Offer((encrypt(),)), "no implementation at the client"),
        (Offer((encrypt(),)), Offer(), "no implementation at the server"),
        (Offer((OfferedChunnel("what"),)), Offer(), "no implementation at either end"),
        (
            Offer((OfferedChunnel("encrypt", need=Need.PROHIBIT),), ABLE),
            Offer((encrypt(),)),
            "the client prohibits it",
        ),
        (
            Offer((encrypt(),)),
            Offer((OfferedChunnel("encrypt", need=Need.PROHIBIT),)),
            "the server prohibits it",
        ),
        (
            Offer((), ABLE, Rules(prohibit=("openssl", "python"))),
            Offer((encrypt(),)),
            "rules leave no implementation",
        ),
        (
            Offer((), ABLE, Rules(require=("encrypt/gnutls",))),
            Offer((encrypt(),)),
            "rules leave no implementation",
        ),
        (
            Offer((compress(("level", 1), firm=("level",)),)),
            Offer((compress(("level", 2)),)),
            "client and server insist on different values of 'level'",
        ),
    ],
)
def test_why_refused(client: Offer, server: Offer, why: str) -> None:
    assert refused(client, server).why == why


def test_a_preferred_chunnel_that_cannot_be_had_is_left_out_and_told() -> None:
    server = Offer((compress(need=Need.PREFER), encrypt()))
    plan = planned(Offer(able=ABLE[1:]), server)
    assert [c.type for c in plan.chunnels] == ["encrypt"]
    (left,) = plan.omitted
    why = "no implementation at the client; client has nothing, server has "
    assert str(left).startswith(f"compress: {why}native@host (")
    assert plan.left_out == f"left out: {left}"


def test_what_was_left_out_is_told_within_the_room_that_there_is() -> None:
    """Names alone where wires would be too much; the reason is cut before what both ends have is."""
    many = tuple(both(f"implementation-{i}", "a-wire-with-a-long-name/1") for i in range(4))
    able = (OfferedType("compress", many, "both"),)
    server = Offer((OfferedChunnel("compress", need=Need.PREFER, implementations=many),))
    (left,) = planned(Offer((), able, Rules(prohibit=("compress/*",))), server).omitted
    assert left.why.startswith("rules leave no implementation; client has implementation-0, implementation")
    assert len(left.why.encode()) <= WHY_MAX and "@" not in left.why
    found = choose(Offer(able=ABLE), Offer((encrypt(Need.PREFER),)), policy=_says("why " * 100))
    assert isinstance(found, Plan)
    assert found.omitted[0].why.endswith("...; client has openssl, python, server has openssl, python")
    assert len(found.omitted[0].why.encode()) <= WHY_MAX


def _says(words: str) -> Policy:
    def policy(wish: Wish, alternatives: Sequence[Alternative]) -> Alternative | None:
        raise ValueError(words)

    return policy


def test_what_was_left_out_is_no_reason_to_refuse() -> None:
    """Where telling of all would make the plan too long, less is told, and the connection is there."""
    text = "x" * 3000
    branchy = [OfferedChunnel("compress", need=Need.PREFER) for _ in range(31)]
    secret = dataclasses.replace(encrypt(), args=(("a", text), ("b", text)))
    plan = planned(Offer(able=ABLE[1:]), Offer((*branchy, secret)))
    assert [c.type for c in plan.chunnels] == ["encrypt"]
    assert len(plan.omitted) == 31 and len(plan.encode()) <= PLAN_MAX


@pytest.mark.parametrize("side", ["client", "server"])
def test_who_brings_no_plan_goes_without_what_is_preferred(side: str) -> None:
    own = Offer((compress(need=Need.PREFER), encrypt()))
    (left,) = without_a_plan(own, side, "nobody is there").omitted
    other = "server" if side == "client" else "client"
    assert left.type == "compress"
    assert left.why.startswith("nobody is there; ") and f"{other} has nothing" in left.why


def test_avoided_gives_way_to_required_alone() -> None:
    avoiding = Offer((OfferedChunnel("encrypt", need=Need.AVOID, implementations=ENCRYPT),), ABLE)
    assert planned(avoiding, Offer((encrypt(Need.PREFER),))).chunnels == ()
    assert [c.type for c in planned(avoiding, Offer((encrypt(),))).chunnels] == ["encrypt"]


def test_scope_leaves_the_near_implementations() -> None:
    plan = planned(Offer(able=ABLE), Offer((encrypt(scope=Scope.APPLICATION),)))
    assert [(c.client, c.server) for c in plan.chunnels] == [("python", "python")]
    assert plan.chunnels[0].client_where == "application"


def test_arguments_are_united_and_the_servers_win() -> None:
    client = Offer((compress(("level", 1), ("threads", 2)),))
    plan = planned(client, Offer((compress(("level", 9)),)))
    assert plan.chunnels[0].kwargs == {"level": 9, "threads": 2}


def test_numbers_of_other_types_are_other_arguments() -> None:
    client = Offer((compress(("level", True), firm=("level",)),))
    assert "insist" in refused(client, Offer((compress(("level", 1)),))).why


@pytest.mark.parametrize(
    ("rules", "client", "server"),
    [
        (Rules(prefer=("python",)), "python", "openssl"),
        (Rules(avoid=("openssl",)), "python", "openssl"),
        (Rules(require=("encrypt/python",)), "python", "openssl"),
        (Rules(prohibit=("openssl",)), "python", "python"),
        (Rules(prefer=("compress/python",)), "openssl", "openssl"),
    ],
)
def test_rules_of_the_client(rules: Rules, client: str, server: str) -> None:
    chunnel = planned(Offer((), ABLE, rules), Offer((encrypt(),))).chunnels[0]
    assert (chunnel.client, chunnel.server) == (client, server)


SHARD = (OfferedImplementation("push", (), "client", "application", 10, "python"),)
XDP = (OfferedImplementation("xdp", (), "server", "host", 100, "native"),)


def test_the_clients_implementation_comes_before_the_servers() -> None:
    """The paper's figure 5: client push where the client has it, the server's acceleration elsewhere."""
    server = Offer((OfferedChunnel("shard", implementations=XDP, endpoints="either"),))
    pushing = Offer(able=(OfferedType("shard", SHARD, "either"),))
    assert [(c.client, c.server) for c in planned(pushing, server).chunnels] == [("push", None)]
    assert [(c.client, c.server) for c in planned(Offer(), server).chunnels] == [(None, "xdp")]


def test_hardware_comes_before_software() -> None:
    nic = (both("soft", "tls1.3"), both("nic", "tls1.3", priority=1000))
    able = (OfferedType("encrypt", nic, "both", 80),)
    assert planned(Offer(able=able), Offer((encrypt(),))).chunnels[0].client == "nic"


def test_an_end_cannot_claim_that_the_other_need_not_take_part() -> None:
    alone = (OfferedImplementation("magic", (), "server", "host", 1000, "native"),)
    server = Offer((OfferedChunnel("encrypt", implementations=alone, endpoints="server"),))
    assert isinstance(choose(Offer((encrypt(),)), server), Refusal)
    forged = Plan((PlannedChunnel("encrypt", (), "none", None, "magic", None, "host"),))
    assert acceptable(forged, Offer((encrypt(),)), "client") is not None
    assert acceptable(forged, Offer(able=ABLE), "client") is not None


# -- an operator's function ---------------------------------------------------------------------------------


def test_a_policy_function_picks_among_what_is_possible() -> None:
    seen: list[tuple[Wish, Sequence[Alternative]]] = []

    def slowest(wish: Wish, alternatives: Sequence[Alternative]) -> Alternative | None:
        seen.append((wish, alternatives))
        return alternatives[-1]

    plan = choose(Offer(able=ABLE), Offer((encrypt(),)), policy=slowest)
    assert isinstance(plan, Plan)
    assert (plan.chunnels[0].client, plan.chunnels[0].server) == ("python", "python")
    assert [(w.type, w.required, len(a)) for w, a in seen] == [("encrypt", True, 4)]


def _raises(wish: Wish, alternatives: Sequence[Alternative]) -> Alternative | None:
    raise ZeroDivisionError("no\nway")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (_raises, "the policy function failed (ZeroDivisionError: no?way)"),
        (lambda wish, alternatives: None, "the policy function wants none of the alternatives"),
        (
            lambda wish, alternatives: Alternative(None, None, "none"),
            "the policy function returned something that is none of the alternatives",
        ),
        (
            lambda wish, alternatives: 7,
            "the policy function returned something that is none of the alternatives",
        ),
    ],
)
def test_a_policy_function_that_fails_never_makes_a_connection_plain(function: object, why: str) -> None:
    refusal = choose(Offer(able=ABLE), Offer((encrypt(),)), policy=function)  # type: ignore[arg-type]
    assert isinstance(refusal, Refusal)
    assert refusal.why == why
    left = choose(Offer(able=ABLE), Offer((encrypt(Need.PREFER),)), policy=function)  # type: ignore[arg-type]
    assert isinstance(left, Plan)
    (omitted,) = left.omitted
    assert omitted.why.startswith(f"{why}; client has openssl")


# -- any two offers -----------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(offers(), offers())
def test_equals_the_brute_force_reference(client: Offer, server: Offer) -> None:
    wanted = {slot: reference.decide(client, server, *slot) for slot in reference.slots(client, server)}
    found = choose(client, server)
    if "refused" in wanted.values():
        assert isinstance(found, Refusal)
        assert found.chunnel in {slot[0] for slot, outcome in wanted.items() if outcome == "refused"}
        return
    assert isinstance(found, Plan)
    expected = sorted(repr(p) for p in wanted.values() if p is not None)
    assert sorted(repr(c) for c in found.chunnels) == expected
    omitted = sorted(slot[0] for slot, outcome in wanted.items() if outcome is None)
    assert sorted(o.type for o in found.omitted) == omitted


@given(offers(), offers())
def test_both_ends_come_to_the_same(client: Offer, server: Offer) -> None:
    """Each end has its own offer, and the other's as it arrived."""
    at_client = choose(client, Offer.decode(server.encode()))
    at_server = choose(Offer.decode(client.encode()), server)
    assert at_client == at_server
    if isinstance(at_client, Plan):
        assert isinstance(at_server, Plan)
        assert at_client.encode() == at_server.encode()
        assert at_client.digest == at_server.digest


def _mirrored(offer: Offer) -> Offer:
    """The offer of an end that has changed sides: what only a client could run, only a server can."""
    sides = {"client": "server", "server": "client"}

    def turned(found: tuple[OfferedImplementation, ...]) -> tuple[OfferedImplementation, ...]:
        return tuple(dataclasses.replace(i, endpoints=sides.get(i.endpoints, i.endpoints)) for i in found)

    return Offer(
        tuple(dataclasses.replace(c, implementations=turned(c.implementations)) for c in offer.chunnels),
        tuple(dataclasses.replace(t, implementations=turned(t.implementations)) for t in offer.able),
        offer.rules,
    )


@given(offers(), offers())
def test_whether_there_is_a_plan_does_not_hang_on_who_is_the_client(one: Offer, other: Offer) -> None:
    here, there = choose(one, other), choose(_mirrored(other), _mirrored(one))
    assert isinstance(here, Plan) == isinstance(there, Plan)
    if isinstance(here, Plan) and isinstance(there, Plan):
        assert sorted(c.type for c in here.chunnels) == sorted(c.type for c in there.chunnels)


@given(offers(), offers(), st.randoms(use_true_random=False))
def test_the_order_of_listing_changes_nothing(client: Offer, server: Offer, rng: Random) -> None:
    def shuffled(found: tuple[OfferedImplementation, ...]) -> tuple[OfferedImplementation, ...]:
        return tuple(rng.sample(found, len(found)))

    def mixed(offer: Offer) -> Offer:
        able = tuple(dataclasses.replace(t, implementations=shuffled(t.implementations)) for t in offer.able)
        chunnels = tuple(
            dataclasses.replace(c, implementations=shuffled(c.implementations)) for c in offer.chunnels
        )
        return Offer(chunnels, tuple(rng.sample(able, len(able))), offer.rules)

    again = choose(mixed(client), mixed(server))
    found = choose(client, server)
    if isinstance(found, Refusal):
        assert isinstance(again, Refusal)
        assert (again.chunnel, again.why) == (found.chunnel, found.why)
    else:
        assert again == found


@given(offers(), offers())
def test_each_end_accepts_what_is_chosen(client: Offer, server: Offer) -> None:
    plan = choose(client, server)
    if isinstance(plan, Plan):
        assert acceptable(plan, client, "client") is None
        assert acceptable(plan, server, "server") is None


@given(offers(), offers())
def test_nothing_prohibited_runs(client: Offer, server: Offer) -> None:
    plan = choose(client, server)
    if not isinstance(plan, Plan):
        return
    for chunnel in plan.chunnels:
        for offer in (client, server):
            assert not offer.speaks(chunnel.type, Need.PROHIBIT)
            for name in (chunnel.client, chunnel.server):
                assert name is None or not offer.rules.prohibits(chunnel.type, name)


@given(offers(), offers())
def test_a_refusal_is_one_short_line(client: Offer, server: Offer) -> None:
    refusal = choose(client, server)
    if isinstance(refusal, Refusal):
        line = str(refusal)
        assert line.isprintable()
        assert len(line.encode()) <= 340
        assert refusal.chunnel in line
        assert "client has" in line and "server has" in line


def test_the_work_is_the_sum_of_the_alternatives() -> None:
    """Twelve chunnels of four alternatives each: 48 looked at, not four to the twelfth."""
    seen = 0

    def count(wish: Wish, alternatives: Sequence[Alternative]) -> Alternative | None:
        nonlocal seen
        seen += len(alternatives)
        return alternatives[0]

    two = (both("a", "zstd/1"), both("b", "zstd/1"))
    dag = tuple(OfferedChunnel(f"t{n}", implementations=two, endpoints="both") for n in range(12))
    able = tuple(OfferedType(c.type, two, "both") for c in dag)
    assert isinstance(choose(Offer(able=able), Offer(dag), policy=count), Plan)
    assert seen == 12 * 4


@pytest.mark.timeout(30)  # it takes a tenth of a second, and took minutes before there were limits
def test_the_worst_offers_that_fit_take_bounded_work() -> None:
    """Everything at its limit, with patterns made to be slow."""
    wires = tuple(f"w{n}" for n in range(8))
    found = tuple(OfferedImplementation(f"i{n}", wires) for n in range(8))
    evil = "a*" * 30
    rules = Rules(avoid=tuple(f"{evil}b{n}/{evil}" for n in range(32)), prohibit=(f"{evil}/{evil}b",) * 32)

    def worst(name: str) -> Offer:
        kinds = tuple(f"{'a' * 50}{name}{n:02}" for n in range(16))
        return Offer(
            tuple(OfferedChunnel(k, (), implementations=found, endpoints="both") for k in kinds), (), rules
        )

    one = Offer.decode(worst("x").encode())
    assert isinstance(choose(one, one), Plan)
    assert isinstance(choose(one, Offer.decode(worst("y").encode())), Refusal)


def test_a_union_of_more_chunnels_than_a_plan_may_have() -> None:
    found = (both("a", "w/1"),)

    def many(name: str) -> Offer:
        asked = tuple(
            OfferedChunnel(f"{name}{n}", implementations=found, endpoints="both") for n in range(20)
        )
        other = {"x": "y", "y": "x"}[name]
        return Offer(asked, tuple(OfferedType(f"{other}{n}", found, "both") for n in range(20)))

    assert "40 chunnels, more than 32" in str(choose(many("x"), many("y")))
