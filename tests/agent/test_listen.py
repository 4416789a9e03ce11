"""LISTEN: who may list which address, and when it is unlisted."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from bertha_socket import keys
from bertha_socket.agent import memory, messages
from bertha_socket.agent.messages import CarrierKind, Op
from bertha_socket.reasons import Reason
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import RefusedError, Shim, claims_need, entries, find, in_namespace, listen, netlinks
from tests.harness import NamespaceTrio
from tests.harness.poll import eventually


def cookie(sock: socket.socket) -> int:
    return memory.netns_cookie(sock.fileno())


def gone(agent: Agent, host: str, port: int) -> None:
    eventually(lambda: not find(agent.path, host, port), f"{host}:{port} unlisted", 5)


def test_a_listening_socket_is_listed_with_its_claims(agent: Agent) -> None:
    with agent.shim() as shim, listen() as server:
        port = server.getsockname()[1]
        listener, bits, claims = shim.listen(server)
        assert bits & messages.IMPL_SHM
        (entry,) = find(agent.path, "127.0.0.1", port)
        assert entry.listener == listener and entry.netns == cookie(server)
        assert entry.flags == memory.LOOPBACK and entry.uid == os.geteuid()
        assert os.fstat(claims).st_size >= 4096 * 64
        os.close(claims)
        assert entries(agent.path) == [entry]


def test_a_bound_udp_socket_is_listed_as_one(agent: Agent) -> None:
    with agent.shim() as shim, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        _, bits, claims = shim.listen(udp)
        os.close(claims)
        assert bits & messages.IMPL_SHM
        (entry,) = find(agent.path, "127.0.0.1", udp.getsockname()[1])
        assert entry.flags == memory.LOOPBACK | memory.DATAGRAMS


def test_the_agent_keeps_no_copy_of_the_listening_socket(agent: Agent) -> None:
    with agent.shim() as shim:
        server = listen()
        address = server.getsockname()
        os.close(shim.listen(server)[2])
        server.close()
        with socket.socket() as late:
            assert late.connect_ex(address) != 0
        with socket.socket() as again:
            again.bind(address)


def test_what_is_no_listening_tcp_socket_is_refused(agent: Agent) -> None:
    with agent.shim() as shim, socket.socket() as bound, open(os.devnull) as file:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(RefusedError, match="REFUSED_BY_AGENT"):
            shim.listen(bound)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            with pytest.raises(RefusedError, match="REFUSED_BY_AGENT"):
                shim.listen(udp)
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("")
            unix.listen(1)
            with pytest.raises(RefusedError, match="REFUSED_BY_AGENT"):
                shim.listen(unix)
        route, diag = netlinks()
        with route, diag:
            fds = (file.fileno(), route.fileno(), diag.fileno())
            assert shim.ask(Op.LISTEN, bytes(8), fds).status == Reason.REFUSED_BY_AGENT
        assert entries(agent.path) == []


def test_a_socket_bound_to_a_device_is_refused(agent: Agent) -> None:
    with agent.shim() as shim, socket.socket() as server:
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        except PermissionError:
            pytest.skip("may not bind to a device")
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        with pytest.raises(RefusedError, match="REFUSED_BY_AGENT"):
            shim.listen(server)


def test_netlink_sockets_must_be_what_they_are_for(agent: Agent) -> None:
    with agent.shim() as shim, listen() as server:
        route, diag = netlinks()
        with route, diag:
            s, r, d = server.fileno(), route.fileno(), diag.fileno()
            for fds in ((s, d, r), (s, r, r), (s, s, d), (s, r, s)):
                assert shim.ask(Op.LISTEN, bytes(8), fds).status == Reason.REFUSED_BY_AGENT
    assert entries(agent.path) == []


def test_unlisten_after_close_unlists_at_once(agent: Agent) -> None:
    with agent.shim() as shim:
        server = listen()
        port = server.getsockname()[1]
        number, _, claims = shim.listen(server)
        os.close(claims)
        server.close()
        shim.unlisten(number)
        shim.resolve_nothing()
        assert entries(agent.path) == []
        assert not find(agent.path, "127.0.0.1", port)


def test_unlisten_before_close_unlists_soon(agent: Agent) -> None:
    with agent.shim() as shim:
        server = listen()
        port = server.getsockname()[1]
        number, _, claims = shim.listen(server)
        os.close(claims)
        shim.unlisten(number)
        server.close()
        gone(agent, "127.0.0.1", port)


def test_the_end_of_a_process_ends_its_listeners(agent: Agent) -> None:
    shim = agent.shim()
    server = listen()
    port = server.getsockname()[1]
    os.close(shim.listen(server)[2])
    server.close()
    shim.close()
    gone(agent, "127.0.0.1", port)


def test_a_killed_process_is_noticed_though_its_child_has_the_connection(agent: Agent) -> None:
    """A child that was forked past the shim still holds the connection to the agent."""
    code = (
        "import os, sys, time\n"
        "from tests.agent.shim import Shim, listen\n"
        "shim = Shim(sys.argv[1]); shim.hello(); server = listen()\n"
        "os.close(shim.listen(server)[2])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    server.close(); os.close(1); time.sleep(600)\n"
        "print(server.getsockname()[1], child, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, agent.path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port, child = map(int, process.stdout.readline().split())
        try:
            assert find(agent.path, "127.0.0.1", port)
            process.send_signal(signal.SIGKILL)
            gone(agent, "127.0.0.1", port)
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_a_forked_childs_socket_keeps_the_listener(agent: Agent) -> None:
    shim = agent.shim()
    with listen() as server:
        port = server.getsockname()[1]
        number, _, claims = shim.listen(server)
        shim.close()  # the parent has died; we play the child that has the socket
        with agent.shim() as other:
            other.resolve_nothing()
            (entry,) = find(agent.path, "127.0.0.1", port)
            assert entry.listener == number
            # Another process of the family may take it up again.
            again, _, more_claims = other.listen(server)
            assert again == number
            assert os.path.sameopenfile(claims, more_claims)
            os.close(more_claims)
            # And a client may connect meanwhile.
            other.connect(number, "127.0.0.1", port, cookie(server)).close()
    os.close(claims)
    gone(agent, "127.0.0.1", port)


def test_connect_to_an_orphan_that_is_gone_is_refused_and_unlists_it(agent: Agent) -> None:
    with agent.shim() as client:
        shim = agent.shim()
        server = listen()
        port = server.getsockname()[1]
        netns = cookie(server)
        number, _, claims = shim.listen(server)
        os.close(claims)
        shim.unlisten(number)  # the socket is still there: kept
        client.resolve_nothing()
        shim.resolve_nothing()
        assert find(agent.path, "127.0.0.1", port)
        server.close()
        with pytest.raises(RefusedError, match="NOT_LISTED"):
            client.connect(number, "127.0.0.1", port, netns)
        assert not find(agent.path, "127.0.0.1", port)
        shim.close()


def test_processes_that_share_an_address_share_a_listener(agent: Agent) -> None:
    with agent.shim() as one, agent.shim() as two, listen(reuse_port=True) as server:
        port = server.getsockname()[1]
        number, _, claims = one.listen(server)
        with listen(port=port, reuse_port=True) as second:
            same, _, more = two.listen(second)
            assert same == number and os.path.sameopenfile(claims, more)
            one.close()
            server.close()
            two.resolve_nothing()
            assert [e.listener for e in find(agent.path, "127.0.0.1", port)] == [number]
        two.unlisten(number)
        two.resolve_nothing()
        assert not find(agent.path, "127.0.0.1", port)
        os.close(claims)
        os.close(more)


def test_another_user_cannot_have_an_address_that_is_in_use(agent: Agent, other_uid: int) -> None:
    """It holds a listening socket of another port, or of the same by inheritance: both are seen through."""
    with agent.shim() as mine, agent.shim(uid=other_uid) as theirs, listen() as server:
        number, _, claims = mine.listen(server)
        os.close(claims)
        # The very same socket: a worker that has changed its user.
        same, _, claims = theirs.listen(server)
        os.close(claims)
        assert same == number
        port = server.getsockname()[1]
        (entry,) = find(agent.path, "127.0.0.1", port)
        assert entry.uid == os.geteuid()


_STATUS: Final = struct.Struct("=II616s400s")


def _served(shim: Shim, kind: CarrierKind, number: int) -> tuple[int, str]:
    """State and detail of a connection that a program gives to a carrier as that listener's; its client says
    what no carrier takes for a plan."""
    statuses = os.memfd_create("statuses", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(statuses, _STATUS.size)
    with shim.carrier(kind) as carrier, socket.create_server(("127.0.0.1", 0)) as door:
        socket.send_fds(carrier, [struct.pack("=IHHII", 0x52414342, 1, 1, 1, 1)], [statuses])
        client = socket.create_connection(door.getsockname())
        accepted, _ = door.accept()
        ours, theirs = socket.socketpair()
        with client, accepted, ours, theirs:
            head = struct.pack("=IHHIIQII", 0x52414342, 1, 2, 1, 1, number, 0, 0)
            socket.send_fds(carrier, [head], [accepted.fileno(), theirs.fileno()])
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")

            def told() -> bool:
                return os.pread(statuses, 4, 0) != bytes(4)

            eventually(told, "what became of it", 20)
    state, _, _, detail = _STATUS.unpack(os.pread(statuses, _STATUS.size, 0))
    os.close(statuses)
    return state, detail.split(b"\0")[0].decode()


@pytest.mark.parametrize("kind", [CarrierKind.NATIVE, CarrierKind.PYTHON], ids=lambda kind: kind.name)
def test_who_has_not_shown_the_socket_does_not_serve_with_its_key(
    agent: Agent, other_uid: int, tmp_path: Path, kind: CarrierKind
) -> None:
    """Its number stands in the directory, which everybody reads.  A worker that has changed its user has the
    socket."""
    material = keys.material(bytes(32))
    for name in material:
        (tmp_path / name).write_text(material[name])
    cert, key = tmp_path / "certificate", tmp_path / "key"
    policy = tmp_path / "policy.toml"
    policy.write_text(f"""[[rule]]\nside = "server"\ndag = 'encrypt(cert="{cert}", key="{key}")'\n""")
    with agent.shim(policy=str(policy)) as mine, agent.shim(uid=other_uid) as theirs, listen() as server:
        number, need, claims = mine.listen_with(server)
        os.close(claims)
        assert need == messages.DagNeed.REQUIRED
        state, why = _served(theirs, kind, number)
        assert state == 2 and "another user's" in why
        state, why = _served(mine, kind, number)
        assert state == 2 and "another user's" not in why
        same, _, claims = theirs.listen_with(server)
        os.close(claims)
        assert same == number
        state, why = _served(theirs, kind, number)
        assert state == 2 and "another user's" not in why


def test_the_latest_to_listen_has_the_address_though_another_users_entry_is_stale(
    agent: Agent, other_uid: int
) -> None:
    with agent.shim() as mine, agent.shim(uid=other_uid) as theirs:
        server = listen()
        port = server.getsockname()[1]
        old, _, claims = mine.listen(server)
        os.close(claims)
        server.close()  # nobody has told the agent
        with listen(port=port) as fresh:
            new, _, claims = theirs.listen(fresh)
            os.close(claims)
            assert new != old
            (entry,) = find(agent.path, "127.0.0.1", port)
            assert (entry.listener, entry.uid) == (new, other_uid)


def test_a_specific_address_goes_before_a_wildcard(agent: Agent) -> None:
    with agent.shim() as shim, listen("0.0.0.0", reuse_port=True) as wide:
        port = wide.getsockname()[1]
        wide_number, _, claims = shim.listen(wide)
        os.close(claims)
        assert [e.listener for e in find(agent.path, "127.0.0.1", port)] == [wide_number]
        with listen("127.0.0.1", port, reuse_port=True) as narrow:
            number, _, claims = shim.listen(narrow)
            os.close(claims)
            assert number != wide_number
            assert [e.listener for e in find(agent.path, "127.0.0.1", port)] == [number]
        shim.unlisten(number)
        shim.resolve_nothing()
        assert [e.listener for e in find(agent.path, "127.0.0.1", port)] == [wide_number]


def test_v4_mapped_is_v4(agent: Agent) -> None:
    with agent.shim() as shim, listen("::ffff:127.0.0.1", v6only=False) as server:
        port = server.getsockname()[1]
        os.close(shim.listen(server)[2])
        assert find(agent.path, "127.0.0.1", port)


def test_another_loopback_address_is_listed_as_itself(agent: Agent) -> None:
    with agent.shim() as shim, listen("127.0.0.7") as server:
        os.close(shim.listen(server)[2])
        (entry,) = entries(agent.path)
        assert (entry.addr, entry.flags) == ("127.0.0.7", memory.LOOPBACK)


@pytest.mark.parametrize(
    ("host", "v6only", "families"),
    [("0.0.0.0", None, "4"), ("::", False, "46"), ("::", True, "6")],
)
def test_a_wildcard_is_listed_under_every_address(
    agent: Agent, host: str, v6only: bool | None, families: str
) -> None:
    with agent.shim() as shim, listen(host, v6only=v6only) as server:
        os.close(shim.listen(server)[2])
        found = {e.addr: e for e in entries(agent.path)}
        assert ("127.0.0.1" in found) == ("4" in families)
        assert all((":" in a) <= ("6" in families) for a in found)
        if "6" in families and socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
            with open("/proc/net/if_inet6") as file:
                assert ("::1" in found) == any(line.startswith("0" * 31 + "1 ") for line in file)
        assert len({e.listener for e in found.values()}) == 1


@pytest.mark.net
def test_two_namespaces_have_their_own_addresses(agent: Agent, netns: NamespaceTrio) -> None:
    servers = {
        name: in_namespace(name, lambda: listen("0.0.0.0", 7100))
        for name in (netns.server.name, netns.client.name, netns.trap.name)
    }
    with agent.shim() as shim:
        ids = {}
        for name, server in servers.items():
            ids[name], _, claims = shim.listen(server, name)
            os.close(claims)
        assert len(set(ids.values())) == 3
        assert len(find(agent.path, "127.0.0.1", 7100)) == 3
        assert {e.listener for e in find(agent.path, netns.client.address, 7100)} == {ids[netns.client.name]}
        # The trap has the server's address too; both are listed, told apart by their namespaces.
        both = find(agent.path, netns.server.address, 7100)
        assert {e.listener for e in both} == {ids[netns.server.name], ids[netns.trap.name]}
        assert {e.netns for e in both} == {
            cookie(servers[netns.server.name]),
            cookie(servers[netns.trap.name]),
        }
    for server in servers.values():
        server.close()
    eventually(lambda: not entries(agent.path), "all unlisted", 5)


@pytest.mark.net
def test_a_wildcards_entries_follow_the_namespaces_addresses(agent: Agent, netns: NamespaceTrio) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", "-n", netns.trap.name, "addr", *words, "dev", "lo"], check=True, timeout=10)

    with in_namespace(netns.trap.name, lambda: listen("0.0.0.0", 7300)) as server, agent.shim() as shim:
        os.close(shim.listen(server, netns.trap.name)[2])
        for _ in range(2):
            assert not find(agent.path, "10.99.0.1", 7300)
            ip("add", "10.99.0.1/32")
            eventually(lambda: find(agent.path, "10.99.0.1", 7300), "the new address")
            ip("del", "10.99.0.1/32")
            gone(agent, "10.99.0.1", 7300)
            assert find(agent.path, netns.trap.address, 7300)
            os.close(shim.listen(server, netns.trap.name)[2])  # with other netlink sockets


@pytest.mark.net
@pytest.mark.parametrize("others", ["", '[[rule]]\nrequire = ["tcp"]\n'], ids=["listed", "plain"])
def test_an_address_that_comes_later_has_its_rule(
    start_agent: StartAgent, room: Path, netns: NamespaceTrio, others: str
) -> None:
    agent = start_agent(BERTHA_AGENT_PORT="0")
    policy = room / "p.toml"
    policy.write_text('[[rule]]\nside = "server"\naddress = "10.98.0.0/16"\ndag = "compress()"\n' + others)

    def ip(word: str) -> None:
        words = ["ip", "-n", netns.trap.name, "addr", word, "10.98.0.1/32", "dev", "lo"]
        subprocess.run(words, check=True, timeout=10)

    with in_namespace(netns.trap.name, lambda: listen("0.0.0.0", 7301)) as server:
        with agent.shim(policy=str(policy)) as shim:
            claims = shim.listen(server, netns.trap.name)[2]
            assert claims_need(claims)[0] == messages.DagNeed.NONE
            ip("add")
            try:
                eventually(
                    lambda: claims_need(claims)[0] == messages.DagNeed.REQUIRED, "the rule's chunnel", 5
                )
            finally:
                ip("del")
            eventually(lambda: claims_need(claims)[0] == messages.DagNeed.NONE, "nothing to negotiate", 5)
            os.close(claims)


@pytest.mark.net
def test_netlink_of_another_namespace_proves_nothing(agent: Agent, netns: NamespaceTrio) -> None:
    with agent.shim() as shim, listen("0.0.0.0") as server:
        assert shim.try_listen(server, netns.trap.name).status == Reason.REFUSED_BY_AGENT


@pytest.mark.net
def test_resolve_tells_the_server_from_the_trap(agent: Agent, netns: NamespaceTrio) -> None:
    real = in_namespace(netns.server.name, lambda: listen("0.0.0.0", 7200))
    trap = in_namespace(netns.trap.name, lambda: listen("0.0.0.0", 7200))
    address = (netns.server.address, 7200)
    with agent.shim() as shim, real, trap:
        real_id, _, c1 = shim.listen(real, netns.server.name)
        trap_id, _, c2 = shim.listen(trap, netns.trap.name)
        os.close(c1)
        os.close(c2)
        with in_namespace(netns.client.name, lambda: socket.create_connection(address, 5)) as connection:
            for order in ([real_id, trap_id], [trap_id, real_id], [real_id]):
                assert shim.resolve(connection, order) == real_id
            assert shim.resolve(connection, [trap_id]) == 0
            assert shim.resolve(connection, [real_id, real_id]) == real_id
            assert shim.resolve(connection, []) == 0
            assert shim.resolve(connection, [12345]) == 0


def test_resolve_does_not_take_a_listener_for_the_connection(agent: Agent) -> None:
    """A look-up without a connection finds the listening socket, which says nothing."""
    with agent.shim() as shim, listen() as server, listen() as other:
        number, _, claims = shim.listen(server)
        os.close(claims)
        with socket.create_connection(other.getsockname()) as connection:
            body = messages.RESOLVE.pack(
                b"\0" * 10 + b"\xff\xff\x7f\0\0\1",
                b"\0" * 10 + b"\xff\xff\x7f\0\0\1",
                connection.getsockname()[1],
                server.getsockname()[1],
                1,
                number,
                *([0] * 7),
            )
            assert messages.RESOLVE_REPLY.unpack(shim.ask(Op.RESOLVE, body).body) == (0,)
