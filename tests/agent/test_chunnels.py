"""Chunnels of listeners and clients, as one agent and two agents negotiate them."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.agent import limits, memory, messages
from bertha_socket.agent.carriers import native_path
from bertha_socket.agent.messages import CarrierKind, DagNeed, Verdict
from bertha_socket.agent.plans import wire_bound
from bertha_socket.reasons import Reason
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import (
    Hung,
    RefusedError,
    claims_need,
    claims_spin,
    entries,
    find,
    in_namespace,
    listen,
)
from tests.harness import NamespaceTrio, eventually

LOCAL = "127.0.0.1"


def write_policy(room: Path, name: str, *rules: str) -> str:
    path = room / name
    path.write_text("\n".join(f"[[rule]]\n{rule}\n" for rule in rules))
    path.chmod(0o644)
    return str(path)


def server_rule(dag: str, more: str = "") -> str:
    return f"side = 'server'\ndag = '{dag}'\n{more}"


def client_rule(dag: str, more: str = "") -> str:
    return f"side = 'client'\ndag = '{dag}'\n{more}"


@pytest.mark.parametrize(
    ("dag", "need"),
    [
        ("compress()", DagNeed.REQUIRED),
        ("prefer compress()", DagNeed.MAYBE),
        ("prefer compress() |> count()", DagNeed.REQUIRED),
        ("local_or_remote()", DagNeed.NONE),
        ("prohibit compress()", DagNeed.NONE),
    ],
)
def test_a_listener_says_what_its_policy_wants(agent: Agent, room: Path, dag: str, need: DagNeed) -> None:
    policy = write_policy(room, "server.toml", server_rule(dag))
    with agent.shim(policy=policy) as shim, listen() as sock:
        _, found, claims = shim.listen_with(sock)
        os.close(claims)
        assert found == need
        (entry,) = find(agent.path, LOCAL, sock.getsockname()[1])
        assert bool(entry.flags & memory.DAG) is (need != DagNeed.NONE)


@pytest.mark.parametrize(
    ("more", "carrier"),
    [
        ("", CarrierKind.NATIVE),
        ("prohibit = ['*/native']", CarrierKind.PYTHON),
        ("require = ['*/native']", CarrierKind.NATIVE),
        ("require = ['reliable/python']", CarrierKind.PYTHON),
        ("prefer = ['reliable/python']", CarrierKind.PYTHON),
        ("avoid = ['frame/native']", CarrierKind.PYTHON),
    ],
)
def test_a_udp_socket_goes_where_its_rule_says(
    agent: Agent, room: Path, more: str, carrier: CarrierKind
) -> None:
    """It is given away before anybody has asked for anything."""
    if native_path() is None:
        pytest.skip("the native carrier is not built here")
    rule = server_rule("frame() |> reliable()", f"proto = 'udp'\n{more}")
    policy = write_policy(room, "server.toml", rule)
    with agent.shim(policy=policy) as shim, socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((LOCAL, 0))
        _, _, claims = shim.listen_with(sock)
        assert claims_need(claims) == (DagNeed.REQUIRED, carrier)
        os.close(claims)


def test_tcp_only_with_chunnels_is_listed_all_the_same(agent: Agent, room: Path) -> None:
    policy = write_policy(room, "server.toml", server_rule("compress()", "prohibit = ['shm', 'unix']"))
    with agent.shim(policy=policy) as shim, listen() as sock:
        listener, need, claims = shim.listen_with(sock)
        os.close(claims)
        assert need == DagNeed.REQUIRED
        assert [e.flags & memory.DAG for e in entries(agent.path)] == [memory.DAG]
        netns = memory.netns_cookie(sock.fileno())
        with agent.shim() as client, pytest.raises(RefusedError, match="CHUNNEL_REFUSED"):
            client.connect(listener, LOCAL, sock.getsockname()[1], netns)


def test_a_plan_on_one_host(agent: Agent, room: Path) -> None:
    policy = write_policy(room, "server.toml", server_rule("compress(level=3)"))
    with agent.shim(policy=policy) as server, agent.shim() as client, listen() as sock:
        _, _, claims = server.listen_with(sock)
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.PLAN and found.types() == ["compress"], found
        assert found.valid_ms > 0
        assert claims_need(claims)[0] == DagNeed.REQUIRED
        os.close(claims)


def test_a_client_brings_chunnels(agent: Agent, room: Path) -> None:
    policy = write_policy(room, "client.toml", client_rule("compress()"))
    with agent.shim() as server, agent.shim(policy=policy) as client, listen() as sock:
        _, need, claims = server.listen_with(sock)
        assert need == DagNeed.NONE
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.PLAN and found.types() == ["compress"], found
        assert claims_need(claims)[0] == DagNeed.MAYBE
        os.close(claims)


@pytest.mark.parametrize(
    ("mine", "theirs", "client", "server"),
    [(9, 5, 5, 5), (4, 5, 4, 5), (None, 0, 0, 0), (None, None, None, None)],
)
def test_spinning_is_bounded_on_one_host(
    agent: Agent,
    room: Path,
    mine: int | None,
    theirs: int | None,
    client: int | None,
    server: int | None,
) -> None:
    """The client's by both ends' rules; a server knows its own before anybody comes."""

    def bound(spin_us: int | None) -> str:
        return "" if spin_us is None else f"spin_us = {spin_us}"

    serves = write_policy(room, "server.toml", server_rule("compress()", bound(theirs)))
    asks = write_policy(room, "client.toml", client_rule("", bound(mine)))
    with agent.shim(policy=serves) as there, agent.shim(policy=asks) as here, listen() as sock:
        _, _, claims = there.listen_with(sock)
        found = here.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.PLAN
        assert found.spin_us == wire_bound(client)
        assert claims_spin(claims) == wire_bound(server)
        os.close(claims)


def test_who_gets_chunnels_later_is_bounded_too(agent: Agent, room: Path) -> None:
    """A listener without a DAG, of whose addresses one is bounded: it cannot tell what comes by which."""
    serves = write_policy(
        room, "server.toml", "side = 'server'\naddress = '127.0.0.1'\nspin_us = 6", "side = 'server'"
    )
    asks = write_policy(room, "client.toml", client_rule("compress()"))
    with agent.shim(policy=serves) as there, agent.shim(policy=asks) as here, listen("0.0.0.0") as sock:
        _, need, claims = there.listen_with(sock)
        assert need == DagNeed.NONE
        assert here.negotiate(LOCAL, sock.getsockname()[1]).spin_us == 6
        assert claims_need(claims)[0] == DagNeed.MAYBE and claims_spin(claims) == 6
        os.close(claims)


def test_what_cannot_be_had_is_refused(agent: Agent, room: Path) -> None:
    wants = write_policy(room, "client.toml", client_rule("compress()"))
    forbids = write_policy(room, "server.toml", server_rule("prohibit compress()"))
    with agent.shim(policy=forbids) as server, agent.shim(policy=wants) as client, listen() as sock:
        _, _, claims = server.listen_with(sock)
        port = sock.getsockname()[1]
        found = client.negotiate(LOCAL, port)
        assert found.verdict == Verdict.REFUSED and not found.plan
        assert f"{LOCAL}:{port}" in found.detail and "compress" in found.detail
        assert claims_need(claims)[0] == DagNeed.NONE
        os.close(claims)


def test_nobody_to_ask(agent: Agent, room: Path) -> None:
    """Loopback is not asked; who requires nothing is plain."""
    wants = write_policy(room, "client.toml", client_rule("compress()"))
    with agent.shim() as plain, agent.shim(policy=wants) as strict:
        assert plain.negotiate(LOCAL, 9).verdict == Verdict.PLAIN
        found = strict.negotiate(LOCAL, 9)
        assert found.verdict == Verdict.REFUSED and "required chunnel compress" in found.detail


def test_a_dag_that_makes_no_sense_refuses(agent: Agent, room: Path) -> None:
    """Wrong arguments are found when they are used at the latest: never plain."""
    wrong = write_policy(room, "client.toml", client_rule('compress(level="many")'))
    with agent.shim() as server, agent.shim(policy=wrong) as client, listen() as sock:
        _, _, claims = server.listen_with(sock)
        os.close(claims)
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        if found.verdict == Verdict.PLAIN:  # the policy file itself was refused
            assert "client.toml" in found.detail
        else:
            assert found.verdict == Verdict.REFUSED


def test_bad_descriptors(agent: Agent) -> None:
    body = messages.NEGOTIATE.pack(bytes(16), 1, 0, 300, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, listen() as listening:
        for fd in (0, udp.fileno(), listening.fileno()):
            with agent.shim() as shim:
                assert shim.ask(messages.Op.NEGOTIATE, body, (fd,)).status == Reason.REFUSED_BY_AGENT


# -- chunnels that a policy brings itself -----------------------------------------------------------------

_ROT = """
from bertha_socket.chunnels import Pipe

class Rot(Pipe):
    name = "rot"
    wire = "rot/1"
"""


def own_chunnel(room: Path, text: str = _ROT, dag: str = "rot()") -> str:
    (room / "rot.py").write_text(text)
    policy = room / "own.toml"
    policy.write_text(f'[[chunnel]]\nname = "rot"\nsource = "rot.py:Rot"\n[[rule]]\ndag = "{dag}"\n')
    return str(policy)


def test_a_policys_own_chunnel(agent: Agent, room: Path) -> None:
    policy = own_chunnel(room)
    with agent.shim(policy=policy) as server, agent.shim(policy=policy) as client, listen() as sock:
        _, need, claims = server.listen_with(sock)
        assert need == DagNeed.REQUIRED
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.PLAN and found.types() == ["rot"], found
        assert found.carrier == CarrierKind.AUTHORS
        assert claims_need(claims) == (DagNeed.REQUIRED, CarrierKind.AUTHORS)
        os.close(claims)
        with client.carrier(CarrierKind.AUTHORS):
            (carrier,) = agent.status()["agent"]["carriers"]
            assert (carrier["kind"], carrier["uid"]) == ("authors", os.geteuid())
        with agent.shim() as stranger:  # has no such chunnel
            found = stranger.negotiate(LOCAL, sock.getsockname()[1])
            assert found.verdict == Verdict.REFUSED and "rot" in found.detail


@pytest.mark.parametrize("text", ["1/0", "import os; os._exit(0)", "while True: pass", "class Rot: pass"])
def test_a_chunnel_that_cannot_be_loaded(agent: Agent, room: Path, text: str) -> None:
    """Required all the same: nobody gets in, and the agent and others go on."""
    with agent.shim(policy=own_chunnel(room, text)) as server, agent.shim() as client, listen() as sock:
        _, need, claims = server.listen_with(sock)
        os.close(claims)
        assert need == DagNeed.REQUIRED
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.REFUSED and "rot" in found.detail, found
    assert agent.status()["agent"]["faults"] == 0


# -- two hosts --------------------------------------------------------------------------------------------


class Pair:
    """Two agents, each in a namespace of its own."""

    def __init__(self, start: StartAgent, netns: NamespaceTrio, room: Path, **environment: str) -> None:
        self.netns = netns
        self.address = netns.server.address
        self.server = start(room / "s" / "agent.sock", netns=netns.server, **environment)
        self.client = start(room / "c" / "agent.sock", netns=netns.client, **environment)

    def listen(self, port: int = 0) -> socket.socket:
        return in_namespace(self.netns.server.name, lambda: listen("0.0.0.0", port))

    def ask(self, shim: Any, port: int, **more: Any) -> Any:
        return shim.negotiate(self.address, port, netns=self.netns.client.name, **more)


@pytest.fixture
def pair(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> Pair:
    return Pair(start_agent, netns, room)


@pytest.mark.net
def test_between_two_hosts(pair: Pair, room: Path) -> None:
    policy = write_policy(room, "server.toml", server_rule("compress(level=3)"))
    with pair.server.shim(policy=policy) as server, pair.client.shim() as client, pair.listen() as sock:
        _, _, claims = server.listen_with(sock, pair.netns.server.name)
        port = sock.getsockname()[1]
        found = pair.ask(client, port)
        assert found.verdict == Verdict.PLAN and found.types() == ["compress"], found
        again = pair.ask(client, port)
        assert again.plan == found.plan and again.valid_ms <= found.valid_ms
        assert pair.server.status()["agent"]["answered"] == 1
        assert pair.ask(client, port, fresh=True).plan == found.plan
        assert pair.server.status()["agent"]["answered"] == 2
        destinations = pair.client.status()["agent"]["destinations"]
        assert [d["destination"] for d in destinations] == [f"{pair.address}:{port}"]
        os.close(claims)


@pytest.mark.net
def test_each_hosts_spinning_is_its_own_affair(pair: Pair, room: Path) -> None:
    """Also of an answer that is remembered, and of one that was waited for."""
    serves = write_policy(room, "server.toml", server_rule("compress()", "spin_us = 3"))
    asks = write_policy(room, "client.toml", client_rule("", "spin_us = 7"))
    with pair.server.shim(policy=serves) as there, pair.listen() as sock:
        _, _, claims = there.listen_with(sock, pair.netns.server.name)
        port = sock.getsockname()[1]
        with pair.client.shim(policy=asks) as bounded, pair.client.shim() as free:
            assert [pair.ask(bounded, port).spin_us for _ in range(2)] == [7, 7]
            assert pair.ask(free, port).spin_us == wire_bound(None)
        assert claims_spin(claims) == 3
        os.close(claims)


@pytest.mark.net
def test_a_remote_client_brings_chunnels(pair: Pair, room: Path) -> None:
    policy = write_policy(room, "client.toml", client_rule("compress()"))
    with pair.server.shim() as server, pair.client.shim(policy=policy) as client, pair.listen() as sock:
        _, need, claims = server.listen_with(sock, pair.netns.server.name)
        assert need == DagNeed.NONE
        assert pair.ask(client, sock.getsockname()[1]).verdict == Verdict.PLAN
        assert claims_need(claims)[0] == DagNeed.MAYBE
        os.close(claims)


@pytest.mark.net
def test_a_host_asks_itself(pair: Pair) -> None:
    """Its own address, where nobody is registered: it answers itself, in the same loop."""
    with pair.server.shim() as shim:
        found = shim.negotiate(pair.address, 9, netns=pair.netns.server.name)
        assert found.verdict == Verdict.PLAIN and "listens there" in found.detail, found
    assert pair.server.status()["agent"]["faults"] == 0


@pytest.mark.net
def test_nobody_listens_there(pair: Pair, room: Path) -> None:
    policy = write_policy(room, "client.toml", client_rule("compress()"))
    with pair.client.shim() as plain, pair.client.shim(policy=policy) as strict:
        found = pair.ask(plain, 9)
        assert found.verdict == Verdict.PLAIN and "bertha-run" in found.detail
        found = pair.ask(strict, 9)
        assert found.verdict == Verdict.REFUSED and "compress" in found.detail


@pytest.mark.net
def test_a_host_without_an_agent_is_remembered(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path
) -> None:
    agent = start_agent(room / "c" / "agent.sock", netns=netns.client)
    policy = write_policy(room, "client.toml", client_rule("compress()"))
    for address in (netns.server.address, "10.254.254.254"):  # refuses; has no route
        with agent.shim() as plain, agent.shim(policy=policy) as strict:
            found = plain.negotiate(address, 80, netns=netns.client.name)
            assert found.verdict == Verdict.PLAIN and found.valid_ms <= 1000, found
            assert strict.negotiate(address, 81, netns=netns.client.name).verdict == Verdict.REFUSED
    known = agent.status()["agent"]["destinations"]
    assert {d["destination"] for d in known} == {netns.server.address, "10.254.254.254"}
    assert all(d["seconds"] > 30 for d in known), known


@pytest.mark.net
def test_keys_must_be_the_same(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> None:
    names = []
    for name in ("one", "other"):
        path = room / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(os.urandom(32))
        names.append(str(path))
    one = start_agent(room / "s" / "agent.sock", netns=netns.server, BERTHA_CLUSTER_KEY=names[0])
    same = start_agent(room / "c" / "agent.sock", netns=netns.client, BERTHA_CLUSTER_KEY=names[0])
    other = start_agent(room / "d" / "agent.sock", netns=netns.client, BERTHA_CLUSTER_KEY=names[1])
    none = start_agent(room / "e" / "agent.sock", netns=netns.client)
    policy = write_policy(room, "server.toml", server_rule("encrypt()"))
    wants = write_policy(room, "client.toml", client_rule("encrypt()"))
    with one.shim(policy=policy) as server:
        with in_namespace(netns.server.name, lambda: listen("0.0.0.0")) as sock:
            _, need, claims = server.listen_with(sock, netns.server.name)
            os.close(claims)
            assert need == DagNeed.REQUIRED
            where = (netns.server.address, sock.getsockname()[1])
            with same.shim() as shim:
                assert shim.negotiate(*where, netns=netns.client.name).types() == ["encrypt"]
            for agent in (other, none):
                with agent.shim() as shim:
                    found = shim.negotiate(*where, netns=netns.client.name)
                    assert found.verdict != Verdict.PLAN and "key" in found.detail, found
                with agent.shim(policy=wants) as shim:
                    found = shim.negotiate(*where, netns=netns.client.name)
                    assert found.verdict == Verdict.REFUSED and "key" in found.detail, found


def test_a_carrier_is_started_and_shared(agent: Agent) -> None:
    with agent.shim() as one, agent.shim() as two:
        first = one.carrier(CarrierKind.PYTHON)
        second = two.carrier(CarrierKind.PYTHON)
        with first, second:
            (carrier,) = agent.status()["agent"]["carriers"]
            assert carrier["kind"] == "python" and carrier["shims"] == 2


def test_no_end_of_carriers(agent: Agent) -> None:
    with agent.shim() as shim, contextlib.ExitStack() as stack:
        for _ in range(limits.CARRIERS_PER_PROCESS):
            stack.enter_context(shim.carrier(CarrierKind.PYTHON))
        with pytest.raises(RefusedError, match="TABLE_FULL"):
            shim.carrier(CarrierKind.PYTHON)
        with agent.shim() as another, another.carrier(CarrierKind.PYTHON):
            pass  # it is that process's limit


def test_what_carriers_write_to_is_memory(agent: Agent) -> None:
    body = messages.CARRIER.pack(CarrierKind.PYTHON, 0)
    with agent.shim() as shim, pytest.raises(Hung), open("/dev/null") as file:
        shim.ask(messages.Op.CARRIER, body, (file.fileno(),))
    before = agent.descriptors()
    fd = os.memfd_create("carried", os.MFD_ALLOW_SEALING)
    with agent.shim() as shim:
        for _ in range(3):
            reply = shim.ask(messages.Op.CARRIER, body, (fd,))
            assert reply.status == 0
            os.close(reply.fds[0])
    os.close(fd)
    # The carrier's control socket, its pidfd and the page that both have stay.
    eventually(lambda: agent.descriptors() <= before + 3, "the end of the process's descriptors")


@pytest.mark.net
@pytest.mark.parametrize("says", ["", "allow_users = ['*']\n"], ids=["default", "named"])
def test_another_users_namespace_decides_only_for_who_names_him(
    agent: Agent, room: Path, netns: NamespaceTrio, other_uid: int, says: str
) -> None:
    """Anybody may make a namespace, and give it the address that a client reaches on another host."""
    theirs = write_policy(room, "s.toml", server_rule("compress()", "allow_users = ['*']\n"))
    mine = write_policy(room, "c.toml", client_rule("prefer compress()", says))
    address = netns.trap.address  # which the client would reach elsewhere, where nobody listens
    with (
        agent.shim(uid=other_uid, policy=theirs) as server,
        agent.shim(policy=mine) as client,
        agent.shim(uid=other_uid, policy=mine) as same,
        in_namespace(netns.trap.name, lambda: listen(address)) as sock,
    ):
        os.close(server.listen_with(sock, netns.trap.name)[2])
        port = sock.getsockname()[1]
        assert same.negotiate(address, port, netns=netns.client.name).verdict == Verdict.PLAN
        found = client.negotiate(address, port, netns=netns.client.name)
        assert found.verdict == (Verdict.PLAN if says else Verdict.PLAIN)


@pytest.mark.parametrize("key", [True, False])
def test_mirror_for_another_user(start_agent: StartAgent, room: Path, other_uid: int, key: bool) -> None:
    """It writes files, so that it runs in a carrier of the program's user, who does not get the key."""
    (room / "key").touch(mode=0o600)
    (room / "key").write_bytes(os.urandom(32))
    agent = start_agent(BERTHA_CLUSTER_KEY=str(room / "key")) if key else start_agent()
    policy = write_policy(room, "client.toml", client_rule(f'mirror("{room}/copy")'))
    with agent.shim() as server, listen() as sock:
        _, _, claims = server.listen_with(sock)
        os.close(claims)
        for uid in (os.geteuid(), other_uid):
            with agent.shim(uid=uid, policy=policy) as client:
                found = client.negotiate(LOCAL, sock.getsockname()[1])
            if key and uid == other_uid:
                assert found.verdict == Verdict.REFUSED and "mirror cannot be had" in found.detail
            else:
                assert (found.verdict, found.types()) == (Verdict.PLAN, ["mirror"]), found
