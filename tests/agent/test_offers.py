"""Which carrier runs what, and which plans a listener's carrier accepts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bertha_socket import keys, policy
from bertha_socket.agent import memory, offers, operator, plans
from bertha_socket.agent.addresses import from_text
from bertha_socket.agent.authors import NOTHING
from bertha_socket.agent.messages import CarrierKind, DagNeed
from bertha_socket.agent.model import Listener
from bertha_socket.agent.offers import Choice, Offers, carrier_of, carrier_of_datagrams, pick
from bertha_socket.agent.secrets import Secrets
from bertha_socket.agent.sockets import Listening
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedImplementation, OfferedType
from bertha_socket.negotiation.plan import Plan, Refusal
from bertha_socket.negotiation.rules import Rules
from tests.agent.shim import claims_need

HERE = from_text("10.0.0.1")
NATIVE = OfferedImplementation("quick", ("x/1",), "both", "host", 100, "native")
PYTHON = OfferedImplementation("slow", ("x/1",), "both", "host", 10, "python")


def offer(*implementations: OfferedImplementation, kinds: tuple[str, ...] = ("a",)) -> Offer:
    return Offer(tuple(OfferedChunnel(k, implementations=implementations, endpoints="both") for k in kinds))


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow` is one of our own implementations."""
    monkeypatch.setattr(offers, "_is_builtin", lambda kind, name: name == "slow")


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("client", "server", "carriers"),
    [
        ((NATIVE, PYTHON), (NATIVE, PYTHON), (CarrierKind.NATIVE, CarrierKind.NATIVE)),
        ((NATIVE, PYTHON), (PYTHON,), (CarrierKind.NATIVE, CarrierKind.PYTHON)),
        ((PYTHON,), (NATIVE,), (CarrierKind.PYTHON, CarrierKind.NATIVE)),
        ((PYTHON,), (PYTHON,), (CarrierKind.PYTHON, CarrierKind.PYTHON)),
    ],
)
def test_as_little_python_as_will_do(
    client: tuple[OfferedImplementation, ...],
    server: tuple[OfferedImplementation, ...],
    carriers: tuple[CarrierKind, CarrierKind],
) -> None:
    found = pick(offer(*client), offer(*server))
    assert isinstance(found, Choice)
    assert (found.client, found.server) == carriers
    assert carrier_of(found.plan, offer(*client), "client") == carriers[0]


def test_one_carrier_runs_all_of_an_end() -> None:
    """`b` is there in Python alone, so `a` is run in Python too."""
    both = offer(NATIVE, PYTHON).chunnels + offer(PYTHON, kinds=("b",)).chunnels
    found = pick(Offer(both), Offer(both))
    assert isinstance(found, Choice)
    assert [(c.type, c.client, c.server) for c in found.plan.chunnels] == [
        ("a", "slow", "slow"),
        ("b", "slow", "slow"),
    ]
    apart = offer(NATIVE).chunnels + offer(PYTHON, kinds=("b",)).chunnels
    assert isinstance(pick(Offer(apart), Offer(both)), Refusal)


def test_others_code_runs_apart() -> None:
    found = pick(offer(PYTHON), offer(NATIVE, PYTHON))
    assert isinstance(found, Choice)
    assert (found.client, found.server) == (CarrierKind.AUTHORS, CarrierKind.NATIVE)
    assert carrier_of(found.plan, offer(PYTHON), "client") == CarrierKind.AUTHORS


@pytest.mark.usefixtures("ours")
def test_a_udp_socket_whose_chunnels_are_in_python_has_a_carrier_for_all_that_may_be_asked_for() -> None:
    own = OfferedImplementation("own", ("x/1",), "both", "host", 10, "python")
    found = pick(offer(PYTHON), offer(PYTHON))
    assert isinstance(found, Choice)
    assert carrier_of_datagrams(found.plan, offer(PYTHON), "client") == CarrierKind.PYTHON
    assert carrier_of_datagrams(found.plan, offer(PYTHON, own), "server") == CarrierKind.AUTHORS
    able = replace(offer(PYTHON), able=(OfferedType("b", implementations=(own,)),))
    assert carrier_of_datagrams(found.plan, able, "server") == CarrierKind.AUTHORS


@pytest.mark.usefixtures("ours")
def test_a_udp_socket_whose_chunnels_are_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end's own implementation counts, and whether the native carrier is there."""
    in_c = OfferedImplementation("native", ("brel/1",), "both", "host", 100, "python")
    slow = OfferedImplementation("python", ("brel/1",), "both", "host", 10, "python")
    monkeypatch.setattr(offers, "native_path", lambda: "there")
    monkeypatch.setattr(offers, "native_probe", lambda kind: lambda: None)
    found = pick(offer(in_c, kinds=("reliable",)), offer(slow, kinds=("reliable",)))
    assert isinstance(found, Choice)
    both = offer(in_c, slow, kinds=("reliable",))
    assert carrier_of_datagrams(found.plan, both, "client") == CarrierKind.NATIVE
    assert carrier_of_datagrams(found.plan, both, "server") == CarrierKind.AUTHORS  # `ours` has `slow` alone
    monkeypatch.setattr(offers, "native_path", lambda: None)
    assert carrier_of_datagrams(found.plan, both, "client") == CarrierKind.AUTHORS


@pytest.mark.usefixtures("ours")
def test_a_preferred_chunnel_is_worth_python() -> None:
    prefers = replace(offer(PYTHON, kinds=("b",)).chunnels[0], need=offers.Need.PREFER)
    both = Offer((*offer(NATIVE, PYTHON).chunnels, prefers))
    found = pick(both, both)
    assert isinstance(found, Choice) and len(found.plan.chunnels) == 2
    assert (found.client, found.server) == (CarrierKind.PYTHON, CarrierKind.PYTHON)


def test_what_no_carrier_runs_with_the_others_is_left_out_and_told() -> None:
    """And not as if there were no implementation."""
    prefers = replace(offer(PYTHON, kinds=("b",)).chunnels[0], need=offers.Need.PREFER)
    both = Offer((*offer(NATIVE).chunnels, prefers))
    found = pick(both, both)
    assert isinstance(found, Choice) and [c.type for c in found.plan.chunnels] == ["a"]
    ends = "client has slow@host (x/1), server has slow@host (x/1)"
    assert found.plan.left_out == f"left out: b: no carrier runs it together with the others; {ends}"


@pytest.mark.usefixtures("ours")
def test_what_an_end_prefers_comes_first() -> None:
    prefers = replace(offer(NATIVE, PYTHON), rules=Rules(prefer=("a/slow",)))
    found = pick(prefers, offer(NATIVE, PYTHON))
    assert isinstance(found, Choice)
    assert (found.client, found.server) == (CarrierKind.PYTHON, CarrierKind.NATIVE)


@pytest.mark.usefixtures("ours")
def test_an_operators_choice(tmp_path: Path) -> None:
    path = tmp_path / "choice.py"
    path.write_text("def slowest(wish, alternatives):\n    return alternatives[-1]\n")
    found = pick(offer(NATIVE, PYTHON), offer(NATIVE, PYTHON), operator.load(f"{path}:slowest"))
    assert isinstance(found, Choice)
    assert (found.client, found.server) == (CarrierKind.PYTHON, CarrierKind.PYTHON)
    path.write_text("def none(wish, alternatives):\n    return 1 / 0\n")
    found = pick(offer(NATIVE), offer(NATIVE), operator.load(f"{path}:none"))
    assert isinstance(found, Refusal) and "ZeroDivisionError" in str(found)


def test_an_operators_choice_that_is_not_there(tmp_path: Path) -> None:
    assert operator.from_environment({}) is None
    path = tmp_path / "bad.py"
    path.write_text("number = 1\nraise_ = None\n")
    for source in ("", "x", "no_such_module_at_all:f", f"{path}:number", f"{path}:missing", "/none.py:f"):
        with pytest.raises(operator.OperatorError, match="BERTHA_CHOICE"):
            operator.load(source)


# -- listeners --------------------------------------------------------------------------------------------


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keys, "SYSTEM_PATH", str(tmp_path / "cluster.key"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("BERTHA_CLUSTER_KEY", raising=False)


@pytest.fixture
def listener(no_key: None) -> Iterator[Listener]:
    """At 10.0.0.1 and 10.0.0.2, without a policy."""
    where = Listening(from_text("0.0.0.0"), 80, False, 1, 1)
    subject = plans.make_subject("server", "/bin/server", ("server",), os.geteuid(), "")
    space: object = None
    made = Listener(5, os.geteuid(), 1, where, memory.make_claims(5), space, subject, policy.EMPTY)  # type: ignore[arg-type]
    made.entries = {HERE: 0, from_text("10.0.0.2"): 1}
    yield made
    os.close(made.claims_fd)


class _Listeners:
    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def lately(self, number: int) -> Listener | None:
        return self._listener if number == self._listener.id else None


class _Registry:
    def __init__(self, listener: Listener) -> None:
        self.listeners = _Listeners(listener)


def client_offer(made: Offers, dag: str) -> Offer:
    rules = policy.parse(f"[[rule]]\ndag = '{dag}'") if dag else policy.EMPTY
    subject = plans.make_subject("client", "/bin/client", ("client",), os.geteuid(), "")
    who = offers.Who(rules, subject, os.geteuid(), NOTHING)
    return made._offer(who, "client", HERE, 80, "tcp")


def test_settled_by_the_strictest_address(listener: Listener) -> None:
    made = Offers(Secrets())
    made.settle(listener)
    assert (listener.need, claims_need(listener.claims_fd)[0]) == (DagNeed.NONE, 0)
    texts = [
        ("prefer compress()", "10.0.0.1", DagNeed.MAYBE),
        ("compress()", "10.0.0.2", DagNeed.REQUIRED),
        ("compress()", "10.0.0.3", DagNeed.NONE),
    ]
    for dag, address, need in texts:
        listener.policy = policy.parse(f"[[rule]]\ndag = '{dag}'\naddress = '{address}'")
        made.settle(listener)
        assert listener.need == need
        assert claims_need(listener.claims_fd)[0] == need


def test_what_clients_brought_stays(listener: Listener) -> None:
    made = Offers(Secrets())
    made.settle(listener)
    found = made.choose(client_offer(made, "compress()"), listener, HERE)
    assert isinstance(found, Choice)
    assert claims_need(listener.claims_fd) == (DagNeed.MAYBE, found.server)
    made.settle(listener)
    assert listener.need == DagNeed.MAYBE


def test_the_carrier_is_the_one_that_can_do_it_all(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener.policy = policy.parse("[[rule]]\ndag = 'compress()'")
    for path, kind in ((None, CarrierKind.PYTHON), ("/bin/true", CarrierKind.NATIVE)):
        monkeypatch.setattr(offers, "native_path", lambda path=path: path)
        made = Offers(Secrets())
        monkeypatch.setattr(made, "_probe", lambda kind, implementation: None)
        made.settle(listener)
        assert (listener.carrier, claims_need(listener.claims_fd)[1]) == (kind, kind)
        found = made.choose(client_offer(made, ""), listener, HERE)
        assert isinstance(found, Choice) and (found.client, found.server) == (kind, kind)


def test_judging_plans(listener: Listener) -> None:
    made = Offers(Secrets())
    listener.policy = policy.parse("[[rule]]\ndag = 'compress(level=3)'")
    made.settle(listener)
    judge = made.judge_for(_Registry(listener))  # type: ignore[arg-type]
    found = made.choose(client_offer(made, ""), listener, HERE)
    assert isinstance(found, Choice)
    good = found.plan
    assert judge(5, good.encode()) is None
    assert judge(6, good.encode()) is not None
    for bad in (
        Plan(),
        Plan((replace(good.chunnels[0], args=(("level", 9),)),)),
        Plan((replace(good.chunnels[0], server="nobody"),)),
        Plan((replace(good.chunnels[0], server=None, server_where=None),)),
        Plan((replace(good.chunnels[0], args=(*good.chunnels[0].args, ("more", 1))),)),
    ):
        why = judge(5, bad.encode())
        assert why is not None and "compress" in why, bad
    for data in (b"", b"junk", good.encode()[:-1]):
        assert judge(5, data) is not None
    listener.policy = policy.parse("[[rule]]\ndag = 'compress(level=4)'")
    assert judge(5, good.encode()) is not None, "the plan has gone stale"


def test_encrypt_needs_a_key(listener: Listener, tmp_path: Path) -> None:
    made = Offers(Secrets())
    listener.policy = policy.parse("[[rule]]\ndag = 'encrypt()'")
    made.settle(listener)
    assert listener.need == DagNeed.REQUIRED  # and nobody gets in
    refusal = made.choose(client_offer(made, ""), listener, HERE)
    assert isinstance(refusal, Refusal) and keys.NO_KEY in str(refusal)
    keys.make(keys.default_path())
    found = made.choose(client_offer(made, ""), listener, HERE)
    assert isinstance(found, Choice) and [c.type for c in found.plan.chunnels] == ["encrypt"]


def test_a_rule_that_makes_no_sense_lets_nobody_in(listener: Listener) -> None:
    made = Offers(Secrets())
    listener.policy = policy.parse('[[rule]]\ndag = \'encrypt(cert="/none", key="/none")\'')
    made.settle(listener)
    assert listener.need == DagNeed.REQUIRED
    found = made.choose(client_offer(made, ""), listener, HERE)
    assert isinstance(found, Refusal) and "/none" in str(found)
