"""CONNECT and LINK, bells and mailboxes: what a pair of processes gets of one another, and who may not."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bertha_socket.agent import limits, memory, messages
from bertha_socket.agent.client import AgentError
from bertha_socket.agent.messages import Op
from bertha_socket.reasons import Reason
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import Hung, Link, RefusedError, Shim, find, hello_body, in_namespace, listen
from tests.harness import NamespaceTrio
from tests.harness.poll import eventually


@dataclass
class Served:
    """A listener that `server` has registered."""

    agent: Agent
    server: Shim
    sock: socket.socket
    listener: int
    claims: int

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    @property
    def netns(self) -> int:
        return memory.netns_cookie(self.sock.fileno())

    def connect(self, client: Shim) -> Link:
        return client.connect(self.listener, "127.0.0.1", self.port, self.netns)


@pytest.fixture
def served(agent: Agent) -> Iterator[Served]:
    server, sock = agent.shim(program="server"), listen()
    listener, _, claims = server.listen(sock)
    yield Served(agent, server, sock, listener, claims)
    server.close()
    sock.close()
    os.close(claims)


def test_both_ends_get_the_same_memory(served: Served) -> None:
    with served.agent.shim(program="client") as client:
        mine = served.connect(client)
        assert (mine.listener, mine.index) == (served.listener, 1)
        assert mine.plan == messages.WirePlan(messages.IMPL_SHM, messages.UINT32_MAX, 0, 0)
        assert os.path.sameopenfile(mine.claims, served.claims)
        theirs = served.server.link(served.listener, 1)
        assert theirs.plan == mine.plan and theirs.index == 1
        os.pwrite(mine.fd, b"hello", 1 << 20)
        assert os.pread(theirs.fd, 5, 1 << 20) == b"hello"
        mine.close()
        theirs.close()


def test_links_are_numbered_for_each_listener(served: Served) -> None:
    with served.agent.shim() as one, served.agent.shim() as two:
        links = [served.connect(shim) for shim in (one, two, one)]
        assert [link.index for link in links] == [1, 2, 3]
        for link in links:
            link.close()


def test_a_dead_clients_link_says_so_and_is_forgotten(served: Served) -> None:
    client = served.agent.shim()
    link = served.connect(client)
    theirs = served.server.link(served.listener, link.index)
    assert not link.dead()
    client.close()
    eventually(theirs.dead, "the link's dead word")
    with pytest.raises(RefusedError, match="NOT_LISTED"):
        served.server.link(served.listener, link.index)
    link.close()
    theirs.close()


def test_a_link_that_its_client_gives_up_is_forgotten(served: Served) -> None:
    with served.agent.shim() as client:
        link = served.connect(client)
        theirs = served.server.link(served.listener, link.index)
        body = messages.LINK.pack(link.listener, link.index, 0)
        assert client.ask(Op.UNLINK, body).status == Reason.NONE
        assert theirs.dead()
        assert client.ask(Op.UNLINK, body).status == Reason.NOT_LISTED
        with pytest.raises(RefusedError, match="NOT_LISTED"):
            served.server.link(served.listener, link.index)
        another = served.connect(client)
        assert another.index == link.index + 1
        for one in (link, theirs, another):
            one.close()


def test_a_link_outlives_its_listening_socket(served: Served) -> None:
    """`accept; close(listener); recv`: what was claimed before can be tied afterwards."""
    with served.agent.shim() as client:
        link = served.connect(client)
        served.sock.close()
        served.server.unlisten(served.listener)
        served.server.link(served.listener, link.index).close()
        with pytest.raises(RefusedError, match="NOT_LISTED"):
            client.connect(served.listener, "127.0.0.1", 1, 1)
        link.close()


def test_a_stopped_listener_is_forgotten_with_its_last_process(served: Served) -> None:
    with served.agent.shim() as client:
        link = served.connect(client)
        served.sock.close()
        served.server.close()
        eventually(lambda: not served.agent.status()["listeners"], "listener forgotten")
        assert served.agent.status()["links"] == []
        link.close()


def test_what_is_not_listed_cannot_be_connected_to(served: Served) -> None:
    with served.agent.shim() as client:
        wrong = [
            (served.listener + 1, "127.0.0.1", served.port, served.netns),
            (served.listener, "127.0.0.2", served.port, served.netns),
            (served.listener, "127.0.0.1", served.port ^ 1, served.netns),
            (served.listener, "127.0.0.1", served.port, served.netns + 1),  # loopback of another namespace
            (0, "127.0.0.1", served.port, served.netns),
        ]
        for question in wrong:
            with pytest.raises(RefusedError, match="NOT_LISTED"):
                client.connect(*question)
        with pytest.raises(RefusedError, match="NOT_LISTED"):
            served.server.link(served.listener, 1)


def test_a_process_has_a_limited_number_of_links(start_agent: StartAgent) -> None:
    agent = start_agent(limit=4096)
    with agent.shim() as server, listen() as sock, agent.shim() as client:
        listener, _, claims = server.listen(sock)
        os.close(claims)
        port, netns = sock.getsockname()[1], memory.netns_cookie(sock.fileno())
        for _ in range(limits.LINKS_PER_PROCESS):
            client.connect(listener, "127.0.0.1", port, netns).close()
        with pytest.raises(RefusedError, match="LINK_FULL"):
            client.connect(listener, "127.0.0.1", port, netns)
        with agent.shim() as other:
            other.connect(listener, "127.0.0.1", port, netns).close()
        client.close()
        eventually(lambda: not agent.status()["links"], "links forgotten")
        assert agent.descriptors() < 40


def test_no_descriptor_left_is_a_status(start_agent: StartAgent) -> None:
    agent = start_agent(limit=40)
    with agent.shim() as server, listen() as sock, agent.shim() as client:
        listener, _, claims = server.listen(sock)
        os.close(claims)
        port, netns = sock.getsockname()[1], memory.netns_cookie(sock.fileno())
        links: list[Link] = []
        with pytest.raises(RefusedError, match="NO_DESCRIPTOR"):  # noqa: PT012
            while len(links) < 60:
                links.append(client.connect(listener, "127.0.0.1", port, netns))
        assert links
        # A message whose descriptors did not fit is answered as well, and nothing hangs.
        with listen() as another:
            assert server.try_listen(another).status in (Reason.NO_DESCRIPTOR, Reason.NO_MEMORY)
        late = [Shim(agent.path) for _ in range(10)]
        with pytest.raises((Hung, BrokenPipeError)):  # noqa: PT012
            for shim in late:
                shim.hello()  # at last it is turned away: the connection ends instead of waiting
        for shim in late:
            shim.close()
        client.close()

        def forgotten() -> bool:
            try:
                return not agent.status()["links"]
            except AgentError:  # it has not seen all of them go, and turns us away like those before
                return False

        eventually(forgotten, "links forgotten")
        with agent.shim() as fresh:
            fresh.connect(listener, "127.0.0.1", port, netns).close()
        for link in links:
            link.close()


# -- users --------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def test_users_share_memory_by_default_through_a_system_agent_only(served: Served, other_uid: int) -> None:
    """The tests' agent is root's wherever another user can be had."""
    with served.agent.shim(uid=other_uid) as stranger:
        link = served.connect(stranger)
        with pytest.raises(RefusedError, match="OTHER_USER"):
            stranger.link(served.listener, link.index)
        link.close()


@pytest.mark.parametrize(
    ("client_says", "server_says", "allowed"),
    [("them", "them", True), ("them", "", True), ("them", "root2", False), ("root2", "them", False)],
)
def test_a_policy_says_which_users_share_memory(
    agent: Agent, room: Path, other_uid: int, client_says: str, server_says: str, allowed: bool
) -> None:
    def rule(says: str, them: int) -> str:
        users = {"them": [them], "root2": [other_uid - 7]}
        return f"[[rule]]\nallow_users = {users[says]}\n" if says else ""

    theirs = write(room / "client.toml", rule(client_says, os.geteuid()))
    mine = write(room / "server.toml", rule(server_says, other_uid))
    with (
        agent.shim(policy=mine) as server,
        agent.shim(uid=other_uid, policy=theirs) as client,
        listen() as sock,
    ):
        listener, _, claims = server.listen(sock)
        os.close(claims)
        question = (listener, "127.0.0.1", sock.getsockname()[1], memory.netns_cookie(sock.fileno()))
        if allowed:
            client.connect(*question).close()
        else:
            with pytest.raises(RefusedError, match="OTHER_USER"):
                client.connect(*question)


def test_servers_are_told_whose_claims_come_by_a_link(served: Served, other_uid: int) -> None:
    """Anybody can write any connection's addresses into a link: another user has to prove that one is his."""
    users = os.stat("/proc/self/ns/user").st_ino
    for uid, proof in ((os.geteuid(), messages.Proof.NONE), (other_uid, messages.Proof.NEEDED)):
        with served.agent.shim(uid=uid) as client:
            link = served.connect(client)
            told = served.server.link(served.listener, link.index)
            assert told.claimant == messages.Claimant(users, uid, proof)
            told.close()
            link.close()


@pytest.mark.net
@pytest.mark.parametrize(
    ("client_says", "server_says", "allowed"),
    [("", "", False), ("them", "", False), ("", "them", False), ("them", "them", True)],
)
def test_users_of_two_namespaces_share_memory_only_where_both_say_so(
    agent: Agent,
    room: Path,
    netns: NamespaceTrio,
    other_uid: int,
    client_says: str,
    server_says: str,
    allowed: bool,
) -> None:
    """Anybody may make a namespace, and give it the address that a client reaches on another host."""

    def rule(says: str, them: int) -> str:
        return f"[[rule]]\nallow_users = [{them}]\n" if says else ""

    mine = write(room / "client.toml", rule(client_says, other_uid))
    theirs = write(room / "server.toml", rule(server_says, os.geteuid()))
    address = netns.server.address
    with (
        agent.shim(uid=other_uid, policy=theirs) as server,
        agent.shim(policy=mine) as client,
        in_namespace(netns.server.name, lambda: listen(address)) as sock,
        in_namespace(netns.client.name, socket.socket) as probe,
    ):
        listener, _, claims = server.listen(sock, netns.server.name)
        os.close(claims)
        question = (listener, address, sock.getsockname()[1], memory.netns_cookie(probe.fileno()))
        if allowed:
            client.connect(*question).close()
        else:
            with pytest.raises(RefusedError, match="OTHER_USER"):
                client.connect(*question)
        with agent.shim(uid=other_uid, policy=theirs) as same:
            same.connect(*question).close()


def test_a_worker_of_another_user_gets_a_link_by_the_socket_it_holds(served: Served, other_uid: int) -> None:
    """nginx: the master listens as root, the worker serves as nobody."""
    with served.agent.shim(uid=other_uid) as worker, served.agent.shim() as client:
        link = served.connect(client)
        with pytest.raises(RefusedError, match="OTHER_USER"):
            worker.link(served.listener, link.index)  # has not shown the socket
        os.close(worker.listen(served.sock)[2])
        worker.link(served.listener, link.index).close()
        link.close()


def test_a_worker_that_cannot_read_its_masters_policy(agent: Agent, room: Path, other_uid: int) -> None:
    """It serves what its master has; on its own it may not be anything."""
    policy = write(room / "p.toml", '[[rule]]\nside = "server"\nspin_us = 5\n')
    Path(policy).chmod(0o600)
    with agent.shim(policy=policy) as master, agent.shim(uid=other_uid, policy=policy) as worker:
        with listen() as sock, listen() as another:
            number, _, claims = master.listen(sock)
            os.close(claims)
            same, _, claims = worker.listen(sock)
            os.close(claims)
            assert same == number
            with pytest.raises(RefusedError, match="POLICY"):
                worker.listen(another)


# -- policy -------------------------------------------------------------------------------------------


def test_the_policy_decides_about_the_plan(agent: Agent, room: Path) -> None:
    policy = write(
        room / "p.toml",
        '[[rule]]\nprogram = "quick"\nspin_us = 5\nring_size = 262144\n'
        '[[rule]]\nprogram = "mailer"\nprohibit = ["shm"]\n'
        '[[rule]]\nprogram = "loner"\nside = "client"\nrequire = ["tcp"]\n'
        '[[rule]]\nprogram = "server"\nspin_us = 20\n',
    )
    with agent.shim(program="server", policy=policy) as server, listen() as sock:
        listener, bits, claims = server.listen(sock)
        assert bits == messages.IMPL_SHM | messages.IMPL_UNIX | messages.IMPL_TCP
        os.close(claims)
        question = (listener, "127.0.0.1", sock.getsockname()[1], memory.netns_cookie(sock.fileno()))

        def plan(program: str) -> messages.WirePlan:
            with agent.shim(program=program, exe=f"/bin/{program}", argv=(), policy=policy) as client:
                link = client.connect(*question)
                link.close()
                return link.plan

        assert plan("quick") == (messages.IMPL_SHM, 5, 262144, 0)
        assert plan("other") == (messages.IMPL_SHM, 20, 0, 0)
        assert plan("mailer") == (messages.IMPL_UNIX, 20, 0, Reason.SHM_PROHIBITED)
        with pytest.raises(RefusedError, match="POLICY"):
            plan("loner")


def test_a_plan_for_unix_brings_a_mailbox(agent: Agent, room: Path) -> None:
    policy = write(room / "p.toml", '[[rule]]\nprohibit = ["shm"]\n')
    with agent.shim(policy=policy) as server, listen() as sock, agent.shim() as client:
        listener, bits, claims = server.listen(sock)
        os.close(claims)
        assert bits == messages.IMPL_UNIX | messages.IMPL_TCP
        port, netns = sock.getsockname()[1], memory.netns_cookie(sock.fileno())
        link = client.connect(listener, "127.0.0.1", port, netns)
        ends = [server.link(listener, link.index) for _ in range(2)]
        with socket.socket(fileno=link.mailbox) as mine, socket.socket(fileno=ends[0].mailbox) as theirs:
            theirs.settimeout(5)
            mine.send(b"one")
            assert theirs.recv(10) == b"one"
            mine.send(b"two")
            with socket.socket(fileno=ends[1].mailbox) as same:
                assert same.recv(10) == b"two"
            mine.close()
            assert theirs.recv(10) == b""  # the agent keeps no copy of the client's end
        for each in (link, *ends):
            each.mailbox = -1
            each.close()


@pytest.mark.parametrize(
    ("rule", "why"), [('prohibit = ["shm", "unix"]', "SHM_PROHIBITED"), ('require = ["tcp"]', "POLICY")]
)
def test_a_listener_that_wants_plain_tcp_is_not_listed(agent: Agent, room: Path, rule: str, why: str) -> None:
    policy = write(room / "p.toml", f"[[rule]]\n{rule}\n")
    with agent.shim(policy=policy) as server, listen() as sock:
        with pytest.raises(RefusedError, match=why):
            server.listen(sock)
        assert not find(agent.path, "127.0.0.1", sock.getsockname()[1])


@pytest.mark.parametrize("content", [b"[[rule]]\nprogam = 'x'\n", b"\xff\xfe", b"[[rule"])
def test_a_wrong_policy_negotiates_nothing_and_says_why(agent: Agent, room: Path, content: bytes) -> None:
    path = room / "p.toml"
    path.write_bytes(content)
    with agent.shim(policy=str(path)) as shim, listen() as sock:
        with pytest.raises(RefusedError, match="POLICY_UNREAD"):
            shim.listen(sock)
        (process,) = agent.status()["processes"]
        assert str(path) in process["policy_error"]


def test_a_changed_policy_file_is_read_again(agent: Agent, room: Path) -> None:
    path = room / "p.toml"
    write(path, "")
    with listen() as sock:
        with agent.shim(policy=str(path)) as shim:
            os.close(shim.listen(sock)[2])
        write(path, '[[rule]]\nrequire = ["tcp"]\n')
        with agent.shim(policy=str(path)) as shim, pytest.raises(RefusedError, match="POLICY"):
            shim.listen(sock)


def test_a_users_policy_is_read_with_that_users_rights(agent: Agent, room: Path, other_uid: int) -> None:
    secret = room / "secret.toml"
    write(secret, "").encode()
    secret.chmod(0o600)
    fifo = room / "fifo"
    os.mkfifo(fifo, 0o644)
    missing = room / "missing.toml"
    for path, why in ((secret, "Permission denied"), (fifo, "not a regular file"), (missing, "No such file")):
        with agent.shim(uid=other_uid, policy=str(path)) as shim, listen() as sock:
            with pytest.raises(RefusedError, match="POLICY_UNREAD"):
                shim.listen(sock)
            (process,) = agent.status()["processes"]
            assert why in process["policy_error"], process


def test_many_users_policies_at_once(agent: Agent, room: Path, other_uid: int) -> None:
    """More than may be read at once: each HELLO is answered, and no child is left."""
    path = write(room / "p.toml", "")
    shims = [Shim(agent.path, other_uid) for _ in range(24)]
    for i, shim in enumerate(shims):
        shim.send(Op.HELLO, hello_body(policy=path + "x" * (i % 12)))
    for i, shim in enumerate(shims):
        assert shim.receive().status == 0
        with listen() as sock:
            assert shim.try_listen(sock).status == (Reason.POLICY_UNREAD if i % 12 else 0)
        shim.close()
    eventually(lambda: not agent.status()["processes"], "the processes' end")
    with open(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children") as file:
        eventually(lambda: file.seek(0) or not file.read().split(), "the children's end")


# -- bells --------------------------------------------------------------------------------------------


def test_a_bell_rings_at_its_owner(served: Served) -> None:
    with served.agent.shim() as client:
        number, mine = client.new_bell()
        assert number != 0
        theirs = served.server.get_bell(number)
        os.eventfd_write(theirs, 3)
        assert os.eventfd_read(mine) == 3
        os.close(mine)
        os.close(theirs)


def test_a_bell_is_only_for_those_who_share_a_link(agent: Agent, room: Path, other_uid: int) -> None:
    allow = write(room / "allow.toml", '[[rule]]\nallow_users = ["*"]\n')
    third = other_uid - 1
    with (
        agent.shim(uid=other_uid, policy=allow) as client,
        agent.shim(uid=third, policy=allow) as server,
        listen() as sock,
    ):
        listener, _, claims = server.listen(sock)
        os.close(claims)
        number, fd = client.new_bell()
        server_number, server_fd = server.new_bell()
        with pytest.raises(RefusedError, match="NOT_LISTED"):
            server.get_bell(number)
        port, netns = sock.getsockname()[1], memory.netns_cookie(sock.fileno())
        link = client.connect(listener, "127.0.0.1", port, netns)
        with pytest.raises(RefusedError, match="NOT_LISTED"):
            server.get_bell(number)  # has not taken the link yet
        theirs = server.link(listener, link.index)
        for got in (server.get_bell(number), client.get_bell(server_number)):
            os.close(got)
        for each in (link, theirs):
            each.close()
        os.close(fd)
        os.close(server_fd)


def test_a_bell_must_be_an_eventfd_that_does_not_block(agent: Agent) -> None:
    with agent.shim() as shim:
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        blocking = os.eventfd(0, 0)
        for fd in (read_end, write_end, blocking):
            assert shim.ask(Op.BELL_NEW, bytes(8), (fd,)).status == Reason.REFUSED_BY_AGENT
            os.close(fd)
        for number in (0, 1, 0xFFFFFFFF):
            with pytest.raises(RefusedError, match="NOT_LISTED"):
                shim.get_bell(number)


def test_bells_end_with_their_owner(agent: Agent) -> None:
    with agent.shim() as other:
        owner = agent.shim()
        number, fd = owner.new_bell()
        os.close(other.get_bell(number))
        owner.close()
        os.close(fd)

        def refused() -> bool:
            try:
                os.close(other.get_bell(number))
            except RefusedError:
                return True
            return False

        eventually(refused, "the bell's end")


def test_numbers_are_not_guessable(served: Served) -> None:
    """Not a sequence: neither bells nor listeners."""
    with served.agent.shim() as shim:
        numbers = []
        for _ in range(16):
            number, fd = shim.new_bell()
            os.close(fd)
            numbers.append(number)
        assert len(set(numbers)) == 16
        gaps = {b - a for a, b in itertools.pairwise(numbers)}
        assert len(gaps) > 10
        assert max(numbers) > 1 << 24
    assert served.listener > 1 << 32
