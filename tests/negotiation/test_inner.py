"""Chunnels in the sub-DAGs of `branch` are negotiated like any others, each once."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket.chunnels import all_types
from bertha_socket.dag import parse
from bertha_socket.negotiation._codec import NegotiationError, pack
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.offer import Offer, offer_of
from bertha_socket.negotiation.plan import Plan, PlannedChunnel, Refusal, acceptable, walk
from bertha_socket.negotiation.rules import Rules
from tests.negotiation.strategies import offers

TYPES = [t for t in all_types() if t.name not in ("local_or_remote", "tcp", "udp")]
DAG = 'branch(by=payload[0], choices=[compress(level=1), prefer count("x") |> limit(rate=10)])'


def offer(dag: str = "", rules: Rules | None = None, without: tuple[str, ...] = ()) -> Offer:
    """In Python, as an agent would restrict it, and without some types."""
    made = offer_of(parse(dag), [t for t in TYPES if t.name not in without], rules)
    return made.only("python")


def planned(client: Offer, server: Offer) -> Plan:
    found = choose(client, server)
    assert isinstance(found, Plan), found
    assert Plan.decode(found.encode()) == found
    assert acceptable(found, client, "client") is None
    assert acceptable(found, server, "server") is None
    return found


@pytest.mark.parametrize("dictates", ["client", "server", "both"])
def test_each_is_in_the_plan(dictates: str) -> None:
    client, server = (offer(DAG if dictates in (side, "both") else "") for side in ("client", "server"))
    assert Offer.decode(server.encode()) == server and Offer.decode(client.encode()) == client
    (branch,) = planned(client, server).chunnels
    compress, count, limit = branch.inner
    assert compress is not None and count is not None and limit is not None
    assert (compress.type, compress.client, compress.server) == ("compress", "python", "python")
    assert compress.wire.startswith("zstd") and dict(compress.args) == {"level": 1}
    assert count.type == "count" and limit.type == "limit"


def test_a_preferred_one_that_cannot_be_had_is_left_out_and_named() -> None:
    found = planned(offer(), offer(DAG, Rules(prohibit=("count/*",))))
    assert found.chunnels[0].inner[1] is None
    why = "in choices[1] of branch: rules leave no implementation"
    ends = "client has python@host, server has python@host"
    assert [str(o) for o in found.omitted] == [f"count: {why}; {ends}"]


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    "how", [{"rules": Rules(prohibit=("compress/python",))}, {"without": ("compress",)}, {"dag": 1}]
)
def test_a_required_one_that_cannot_be_had_is_a_refusal_that_names_it(
    side: str, how: dict[str, object]
) -> None:
    spoiler = offer("prohibit compress()") if "dag" in how else offer("", **how)  # type: ignore[arg-type]
    client, server = (spoiler, offer(DAG)) if side == "client" else (offer(DAG), spoiler)
    found = choose(client, server)
    assert isinstance(found, Refusal)
    assert found.chunnel == "branch" and "compress in choices[0]" in found.why
    # A branch that is only preferred goes as a whole.
    preferred = offer("prefer " + DAG)
    again = choose(*((spoiler, preferred) if side == "client" else (preferred, spoiler)))
    assert isinstance(again, Plan) and not again.chunnels


def test_what_is_avoided_or_prohibited_within_does_not_run() -> None:
    text = "branch(by=payload[0], choices=[prohibit compress() |> avoid count() |> limit(rate=1)])"
    (branch,) = planned(offer(), offer(text)).chunnels
    assert [c and c.type for c in branch.inner] == [None, None, "limit"]


def test_branches_within_branches() -> None:
    inner = "branch(by=payload[1], choices=[compress(), frame()])"
    text = f"branch(by=payload[0], choices=[{inner}, count()])"
    found = planned(offer(), offer(text))
    assert [c.type for c in walk(found.chunnels)] == ["branch", "branch", "compress", "frame", "count"]
    refused = choose(offer(without=("frame",)), offer(text))
    assert isinstance(refused, Refusal)
    assert "branch in choices[0]: frame in choices[1]" in refused.why


def test_size_grows_with_the_sum() -> None:
    def size(n: int) -> int:
        return len(offer(f"branch(by=payload[0], choices=[{', '.join(['compress()'] * n)}])").encode())

    step = size(2) - size(1)
    assert abs(size(16) - size(1) - 15 * step) <= 15  # the length fields of msgpack


def test_a_plan_that_was_altered_within_is_not_accepted() -> None:
    text = "branch(by=payload[0], choices=[compress(), count()])"
    client, server = offer(), offer(text)
    plan = planned(client, server)
    (branch,) = plan.chunnels
    compress, count = branch.inner
    assert compress is not None and count is not None

    def changed(*inner: PlannedChunnel | None) -> Refusal | None:
        other = Plan((dataclasses.replace(branch, inner=inner),))
        return acceptable(Plan.decode(other.encode()), server, "server")

    assert changed(compress, count) is None
    assert changed(None, count) is not None  # a required one is gone
    assert changed() is not None
    assert changed(compress) is not None
    assert changed(count, compress) is not None  # others than in the arguments
    assert changed(dataclasses.replace(compress, args=(("level", 9),)), count) is None  # its own default
    assert changed(dataclasses.replace(compress, server=None, server_where=None), count) is not None
    assert changed(dataclasses.replace(compress, wire="other/1"), count) is not None
    strict = offer(text, Rules(prohibit=("count/python",)))
    assert acceptable(plan, strict, "server") is not None
    wary = offer("prohibit count()")
    found = acceptable(plan, wary, "client")
    assert found is not None and "count in choices[1]: the type is prohibited" in found.why


def test_too_deep_and_too_many() -> None:
    def nested(deep: int) -> dict[str, object]:
        inner = [nested(deep - 1)] if deep else []
        return {
            "type": "branch",
            "args": {},
            "wire": "none",
            "inner": inner,
            "client": None,
            "server": None,
            "client_where": None,
            "server_where": None,
        }

    with pytest.raises(NegotiationError, match="more than 8 sub-DAGs"):
        Plan.decode(pack({"v": 1, "chunnels": [nested(9)], "omitted": []}))
    (chunnel,) = offer("branch(by=payload[0], choices=[prohibit count()])").chunnels
    wide = Offer((dataclasses.replace(chunnel, inner=chunnel.inner * 129),))
    with pytest.raises(NegotiationError, match="at most 128"):
        Offer.decode(wide.encode())
    deep = chunnel
    for _ in range(9):
        deep = dataclasses.replace(chunnel, inner=(deep,))
    with pytest.raises(NegotiationError, match="more than 8 sub-DAGs"):
        Offer.decode(Offer((deep,)).encode())
    assert Plan.decode(pack({"v": 1, "chunnels": [nested(7)], "omitted": []}))


_CHOICES = st.lists(
    st.sampled_from(["compress()", "prefer compress()", "count()", "prefer limit(rate=5)", "avoid count()"]),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(_CHOICES, st.sampled_from(["require", "prefer"]), offers(), st.booleans())
def test_both_ends_accept_what_was_chosen(choices: list[str], need: str, other: Offer, swap: bool) -> None:
    """With any other end: what comes out is accepted by both, and runs nothing that either prohibits."""
    own = offer(f"{need} branch(by=payload[0], choices=[{', '.join(choices)}])".replace("require ", ""))
    client, server = (own, other) if swap else (other, own)
    found = choose(client, server)
    if isinstance(found, Refusal):
        return
    assert acceptable(found, client, "client") is None
    assert acceptable(found, server, "server") is None
    for chunnel in walk(found.chunnels):
        for name in (chunnel.client, chunnel.server):
            for end in (client, server):
                assert name is None or not end.rules.prohibits(chunnel.type, name)
