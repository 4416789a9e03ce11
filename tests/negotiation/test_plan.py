"""Plans: their encoding, and the check of one that somebody shows."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bertha_socket.dag import Need, Scope
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedImplementation
from bertha_socket.negotiation.plan import PLAN_MAX, Omitted, Plan, PlannedChunnel, Refusal, acceptable
from bertha_socket.negotiation.rules import Rules
from tests.negotiation.strategies import ABLE, NAMES, TYPES, WIRES, compress, encrypt, offers

SERVER = Offer((compress(("level", 3)), encrypt()))
CLIENT = Offer(able=ABLE)


def agreed() -> Plan:
    plan = choose(CLIENT, SERVER)
    assert isinstance(plan, Plan)
    return plan


def changed(nth: int, **fields: object) -> Plan:
    plan = agreed()
    chunnels = list(plan.chunnels)
    chunnels[nth] = dataclasses.replace(chunnels[nth], **fields)  # type: ignore[arg-type]
    return Plan(tuple(chunnels))


@given(offers(), offers())
def test_comes_back_as_it_went(client: Offer, server: Offer) -> None:
    plan = choose(client, server)
    assume(isinstance(plan, Plan))
    assert isinstance(plan, Plan)
    data = plan.encode()
    assert len(data) <= PLAN_MAX
    assert Plan.decode(data) == plan
    assert Plan.decode(data).encode() == data


def test_the_digest_is_of_everything() -> None:
    plans = [
        agreed(),
        Plan(),
        changed(0, wire="lz4/1"),
        changed(0, args=()),
        changed(1, client="python"),
        dataclasses.replace(agreed(), omitted=(Omitted("x", "y"),)),
    ]
    assert len({p.digest for p in plans}) == len(plans)
    assert agreed().digest == agreed().digest
    assert len(Plan().digest) == 32


@pytest.mark.parametrize(
    ("plan", "side"),
    [
        (Plan(), "server"),
        (Plan(agreed().chunnels[:1]), "server"),
        (Plan(agreed().chunnels[::-1]), "server"),
        (changed(0, args=(("level", 4),)), "server"),
        (changed(0, args=()), "server"),
        (changed(0, args=(("level", 3.0),)), "server"),
        (changed(0, wire="gzip/1"), "server"),
        (changed(1, wire="none"), "server"),
        (changed(1, server="rot13"), "server"),
        (changed(1, client="rot13"), "client"),
        (changed(1, server=None, server_where=None), "server"),
        (changed(1, client=None, client_where=None), "server"),
        (changed(1, client=None, client_where=None), "client"),
        (changed(1, server_where="application"), "server"),
        (changed(1, client=None, client_where=None, server=None, server_where=None), "client"),
    ],
)
def test_a_plan_that_is_not_what_an_end_agrees_to(plan: Plan, side: str) -> None:
    refusal = acceptable(plan, SERVER if side == "server" else CLIENT, side)
    assert isinstance(refusal, Refusal)
    assert side in refusal.why


def test_rules_and_scopes_hold_for_a_plan_that_is_shown() -> None:
    strict = Offer(SERVER.chunnels, rules=Rules(require=("encrypt/python",)))
    assert acceptable(agreed(), strict, "server") is not None
    assert acceptable(changed(1, server="python", server_where="application"), strict, "server") is None
    near = Offer((compress(("level", 3)), encrypt(scope=Scope.APPLICATION)))
    python = {"server": "python", "server_where": "application"}
    assert acceptable(changed(1, **python), near, "server") is not None, "the client's runs too far away"
    both_near = {**python, "client": "python", "client_where": "application"}
    assert acceptable(changed(1, **both_near), near, "server") is None


@pytest.mark.parametrize("need", [Need.REQUIRE, Need.PREFER])
def test_what_is_not_offered_unasked_runs_as_it_was_asked_for(need: Need) -> None:
    """Somebody else's argument (a file, say) is not put in place of one that this end insists on."""
    alone = (OfferedImplementation("one", (), "either", "host"),)

    def tap(path: str) -> OfferedChunnel:
        return OfferedChunnel("tap", (("to", path),), need, None, alone, "either", firm=("to",))

    def shown(path: str) -> Plan:
        return Plan((PlannedChunnel("tap", (("to", path),), "none", "one", None, "host"),))

    own = Offer((tap("/mine"),))
    assert acceptable(shown("/mine"), own, "client") is None
    assert acceptable(shown("/theirs"), own, "client") is not None
    assert acceptable(shown("/theirs"), Offer(), "client") is not None
    found = choose(own, Offer((tap("/theirs"),)))
    assert isinstance(found, Refusal) if need is Need.REQUIRE else getattr(found, "chunnels", None) == ()


def test_required_twice_is_there_twice() -> None:
    twice = Offer((compress(), encrypt(), compress()))
    plan = choose(CLIENT, twice)
    assert isinstance(plan, Plan)
    for side, offer in (("server", twice), ("client", twice)):
        assert acceptable(plan, offer, side) is None
        assert acceptable(Plan(plan.chunnels[:2]), offer, side) is not None
        assert acceptable(Plan(plan.chunnels[1:]), offer, side) is not None


def test_the_plan_that_was_agreed_is_accepted() -> None:
    assert acceptable(agreed(), SERVER, "server") is None
    assert acceptable(agreed(), CLIENT, "client") is None


def test_a_plan_goes_stale() -> None:
    plan = agreed()
    assert acceptable(plan, Offer((compress(("level", 9)), encrypt())), "server") is not None
    assert acceptable(plan, Offer(SERVER.chunnels, rules=Rules(prohibit=("openssl",))), "server") is not None
    never = OfferedChunnel("compress", need=Need.PROHIBIT)
    assert acceptable(plan, Offer((never,), ABLE), "client") is not None
    assert acceptable(plan, Offer((encrypt(),), ABLE[:1]), "server") is None, (
        "it requires less, and can run more"
    )


def test_arguments_of_the_other_end_can_be_checked() -> None:
    seen = []

    def check(kind: str, args: object) -> str | None:
        seen.append((kind, args))
        return "level 3 is too much" if kind == "compress" else None

    refusal = acceptable(agreed(), CLIENT, "client", check)
    assert refusal is not None
    assert "level 3 is too much" in refusal.why
    assert seen == [("compress", {"level": 3})]


def test_a_client_that_insists_is_not_overruled() -> None:
    client = Offer((compress(("level", 3), firm=("level",)),), ABLE[1:])
    assert acceptable(changed(0, args=(("level", 3),)), client, "client") is None
    assert acceptable(changed(0, args=(("level", 4),)), client, "client") is not None
    bending = Offer((compress(("level", 1)),), ABLE[1:])
    assert acceptable(agreed(), bending, "client") is None


_implementation = st.none() | st.sampled_from((*NAMES, "alien"))
_planned = st.builds(
    lambda kind, args, wire, client, server, where: PlannedChunnel(
        kind, args, wire, client, server, where if client else None, where if server else None
    ),
    st.sampled_from(TYPES),
    st.sampled_from(((), (("a", 1),), (("level", 1),))),
    st.sampled_from(WIRES),
    _implementation,
    _implementation,
    st.sampled_from(("application", "host", "global")),
)


@given(offers(), st.lists(_planned, max_size=3).map(tuple), st.sampled_from(("client", "server")))
def test_whatever_is_accepted_is_no_weaker_than_required(
    own: Offer, chunnels: tuple[PlannedChunnel, ...], side: str
) -> None:
    """Any plan, from whomever; checked by the plain words of the contract, not by plan.py's functions."""
    if acceptable(Plan(chunnels), own, side) is not None:
        return
    for kind in TYPES:
        here = [c for c in chunnels if c.type == kind]
        required = [c for c in own.chunnels if c.type == kind and c.need is Need.REQUIRE]
        assert len(here) >= len(required)
        if any(c.type == kind and c.need is Need.PROHIBIT for c in own.chunnels):
            assert here == []
        for chunnel in here:
            for name in (chunnel.client, chunnel.server):
                assert name is None or not own.rules.prohibits(kind, name)
            mine = chunnel.implementation(side)
            listed = [i for e in own.entries(kind) for i in e.implementations if i.name == mine]
            assert mine is None or any(i.where == chunnel.where(side) for i in listed)
            if any(e.endpoints == "both" for e in own.entries(kind)):
                assert chunnel.client is not None and chunnel.server is not None
                assert any(chunnel.wire in i.wires and i.endpoints == "both" for i in listed)
        for wish in required:
            given_here = dict(wish.args)
            sure = wish.firm if side == "client" else tuple(given_here)
            assert any(all(repr(c.kwargs.get(n)) == repr(given_here[n]) for n in sure) for c in here)


def test_a_refusal_is_one_line_whatever_is_in_it() -> None:
    line = str(Refusal("x\n" * 99, "\x1b[2J" * 99, "é" * 99, "\u2028"))
    assert line.isprintable()
    assert len(line.encode()) <= 340
