"""Clients that err or mean harm: their connection ends, nobody else notices, and nothing leaks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bertha_socket._native import lib
from bertha_socket.agent import client, handlers, limits, messages, serve
from bertha_socket.agent.messages import Op
from bertha_socket.negotiation.offer import Offer
from bertha_socket.reasons import Reason
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import Hung, RefusedError, Shim, entries, hello_body, listen, netlinks
from tests.harness.poll import eventually


@pytest.fixture
def watched(agent: Agent) -> Iterator[Agent]:
    """After the test the agent has no more descriptors, processes or listeners than before, and serves."""
    with agent.shim() as first:
        first.resolve_nothing()
    eventually(lambda: not agent.status()["processes"], "a clean start")
    before = at_rest(agent)
    yield agent
    eventually(lambda: not agent.status()["processes"], "the end of all processes")
    eventually(lambda: not agent.status()["listeners"], "the end of all listeners")
    try:
        eventually(lambda: agent.descriptors() == before + 3 * carriers(agent), f"{before} descriptors again")
    except AssertionError as error:
        raise AssertionError(f"{error}; there are {held(agent)}") from None
    assert entries(agent.path) == []
    assert agent.status()["agent"]["faults"] == 0, agent.status()["agent"]["last_fault"]


def carriers(agent: Agent) -> int:
    """Those that it was asked to start end with it; each has a pidfd, a socket and a page."""
    return len(psutil.Process(agent.process.pid).children())


def held(agent: Agent) -> list[str]:
    """What its descriptors are."""
    folder = Path(f"/proc/{agent.process.pid}/fd")
    with contextlib.suppress(FileNotFoundError):
        return sorted(str(path.readlink()) for path in folder.iterdir())
    return []


def at_rest(agent: Agent) -> int:
    """Its descriptors when no connection is left (each has a pidfd, where the kernel has those)."""
    agent.descriptors()
    folder = f"/proc/{agent.process.pid}/fd"

    def count() -> int:
        names = os.listdir(folder)
        try:
            busy = any(os.readlink(f"{folder}/{n}") == "anon_inode:[pidfd]" for n in names)
        except FileNotFoundError:
            return 0
        return 0 if busy else len(names)

    return eventually(count, "no connection left")


def ended(shim: Shim) -> bool:
    """Whether the agent has ended the connection."""
    try:
        return shim.sock.recv(1 << 17) == b""
    except ConnectionResetError:
        return True


_bodies = st.one_of(
    st.binary(max_size=120),
    st.sampled_from([hello_body(), bytes(8), bytes(16), bytes(40), bytes(104)]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    greet=st.booleans(),
    steps=st.lists(
        st.tuples(st.sampled_from([*Op, 0, 99]).filter(lambda o: o != Op.STOP), _bodies, st.integers(0, 6)),
        max_size=6,
    ),
)
@example(greet=True, steps=[(Op.CARRIER, bytes(8), 0)])
def test_any_sequence_of_messages(watched: Agent, greet: bool, steps: list[tuple[int, bytes, int]]) -> None:
    with Shim(watched.path) as shim, listen() as sock:
        if greet:
            shim.hello()
        route, diag = netlinks()
        event = os.eventfd(0, os.EFD_NONBLOCK)
        pool = [sock.fileno(), route.fileno(), diag.fileno(), event, 1, os.open(os.devnull, os.O_RDONLY)]
        try:
            for op, body, count in steps:
                try:
                    shim.send(op, body, tuple(pool[:count]))
                    if op != Op.UNLISTEN:
                        for fd in shim.receive().fds:
                            os.close(fd)
                except (Hung, BrokenPipeError, ConnectionResetError):
                    break
        finally:
            os.close(pool[-1])
            os.close(event)
            route.close()
            diag.close()
    assert client.is_serving(watched.path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_garbage_ends_the_connection(watched: Agent, data: bytes) -> None:
    with Shim(watched.path) as shim:
        shim.sock.send(data)
        assert ended(shim)


@pytest.mark.parametrize("size", [messages.MESSAGE_MAX + 1, 65536])
def test_a_message_too_long(watched: Agent, size: int) -> None:
    with watched.shim() as shim:
        shim.sock.send(
            messages.HEADER.pack(messages.MAGIC, messages.VERSION, Op.STATUS, 1, 0).ljust(size, b"\0")
        )
        assert ended(shim)


@pytest.mark.parametrize("count", [limits.DESCRIPTORS_PER_MESSAGE + 1, 253])
def test_too_many_descriptors(watched: Agent, count: int) -> None:
    with watched.shim() as shim, open(os.devnull) as file:
        header = messages.HEADER.pack(messages.MAGIC, messages.VERSION, Op.RESOLVE, 1, 0)
        socket.send_fds(shim.sock, [header + bytes(104)], [file.fileno()] * count)
        assert ended(shim)


def test_descriptors_that_a_request_does_not_take(watched: Agent) -> None:
    with open(os.devnull) as file:
        for op, size in ((Op.CONNECT, 40), (Op.RESOLVE, 104), (Op.STATUS, 0), (Op.BELL_GET, 8)):
            with watched.shim() as shim:
                shim.send(op, bytes(size), (file.fileno(),))
                assert ended(shim)


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x81\xa8chunnels\x01", b"\xff" * 16000])
def test_an_offer_that_is_none(watched: Agent, body: bytes) -> None:
    with watched.shim() as shim:
        shim.send(Op.OFFER, body)
        assert ended(shim)


def test_one_offer_and_only_before_listening(watched: Agent) -> None:
    offer = Offer().encode()
    with watched.shim() as shim:
        shim.send(Op.OFFER, offer)
        assert shim.receive().status == Reason.NONE
        shim.send(Op.OFFER, offer)
        assert ended(shim)


def test_nothing_before_hello(watched: Agent) -> None:
    sizes = {Op.CONNECT: 40, Op.LINK: 16, Op.UNLINK: 16, Op.BELL_GET: 8, Op.RESOLVE: 104, Op.UNLISTEN: 8}
    for op, size in sizes.items():
        with Shim(watched.path) as shim:
            shim.send(op, bytes(size))
            assert ended(shim)


def test_one_hello_only(watched: Agent) -> None:
    with watched.shim() as shim:
        shim.send(Op.HELLO, hello_body())
        assert ended(shim)


def test_another_layout_is_refused_and_may_try_again(watched: Agent) -> None:
    with Shim(watched.path) as shim:
        assert shim.ask(Op.HELLO, hello_body(layout=messages.LAYOUT_VERSION + 1)).status == Reason.VERSION
        shim.hello()


def test_a_client_that_never_reads(watched: Agent) -> None:
    with watched.shim() as rude, watched.shim() as polite:
        rude.sock.setblocking(False)
        sent = 0
        try:
            while sent < 100_000:
                rude.send(Op.RESOLVE, bytes(104))
                sent += 1
                if sent % 100 == 0:
                    polite.resolve_nothing()
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        polite.resolve_nothing()
        assert sent < 100_000

        def dropped() -> bool:
            return len(watched.status()["processes"]) == 1

        eventually(dropped, "the rude client's end")


def test_a_flood_does_not_keep_others_waiting(watched: Agent) -> None:
    """Each turn serves one message of each connection: the polite one's comes between two of the flood's."""
    with watched.shim() as flood, watched.shim() as polite:
        for _ in range(100):
            flood.send(Op.UNLISTEN, bytes(8))
        polite.resolve_nothing()
        flood.resolve_nothing()


@pytest.mark.slow
def test_a_client_that_says_nothing_is_dropped(watched: Agent) -> None:
    silent = [Shim(watched.path) for _ in range(5)]
    with watched.shim():
        for shim in silent:
            shim.sock.settimeout(limits.GREETING_SECONDS + 5)
            assert ended(shim)
            shim.close()


@pytest.mark.parametrize("kind", ["file", "pipe", "socket", "fifo"])
def test_a_table_must_be_memory(watched: Agent, kind: str, tmp_path: Path) -> None:
    """Reading anything else could wait for somebody."""
    if kind == "file":
        fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
        if os.statvfs(fd).f_fsid == 0:
            os.close(fd)
            pytest.skip("this file system is memory itself")
    elif kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
    elif kind == "fifo":
        os.mkfifo(tmp_path / "f")
        fd = os.open(tmp_path / "f", os.O_RDONLY | os.O_NONBLOCK)
    else:
        fd = socket.socket().detach()
    with Shim(watched.path) as shim:
        shim.send(Op.HELLO, hello_body(), (fd,))
        assert ended(shim)
    os.close(fd)


def _table(
    count: int, size: int, offset: int, used: int, version: int = messages.LAYOUT_VERSION, magic: int = 0
) -> bytes:
    return struct.pack("=IIIIQI36x", magic or lib.BERTHA_MAGIC_TABLE, version, count, size, offset, used)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"short",
        random.Random(64).randbytes(64),
        _table(1 << 20, 1 << 12, 64, 1 << 20),
        _table(1, 1, 64, 1),
        _table(1, 0, 64, 1),
        _table(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF),
        _table(10, 512, 1 << 40, 10),
        _table(10, 512, 64, 10, version=messages.LAYOUT_VERSION + 1),
        _table(10, 512, 64, 10, magic=1),
    ],
)
def test_a_table_that_makes_no_sense(watched: Agent, header: bytes) -> None:
    fd = os.memfd_create("table")
    os.write(fd, header + b"\xff" * 4000)
    with Shim(watched.path) as shim:
        shim.hello(fd)
        assert watched.status()["connections"] == []
        os.ftruncate(fd, 10)
        assert watched.status()["connections"] == []
    os.close(fd)


def test_a_table_full_of_noise_is_reported_and_hurts_nobody(watched: Agent) -> None:
    noise = random.Random(7)
    fd = os.memfd_create("table")
    records = b"".join(struct.pack("=II", lib.BERTHA_CONN_SHM, 1) + noise.randbytes(504) for _ in range(1000))
    os.write(fd, _table(1000, 512, 64, 0xFFFFFFFF) + records)
    with Shim(watched.path) as shim:
        shim.hello(fd, program='"\\\n\x01')
        found = watched.status()
        assert len(found["connections"]) == 1000
        assert found["processes"][0]["program"] == '"\\\n\x01'
    os.close(fd)


def test_the_number_of_bells_is_limited(watched: Agent) -> None:
    with watched.shim() as shim:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        statuses = [
            shim.ask(Op.BELL_NEW, bytes(8), (fd,)).status for _ in range(limits.BELLS_PER_PROCESS + 1)
        ]
        assert statuses[-1] != 0 and not any(statuses[:-1])
        os.close(fd)


def test_one_user_cannot_fill_the_directory(watched: Agent, other_uid: int) -> None:
    """The last of a process's listeners is refused; another process can still list its own."""
    socks = [listen() for _ in range(limits.LISTENERS_PER_PROCESS + 1)]
    with watched.shim(uid=other_uid) as greedy, watched.shim() as other, listen() as mine:
        for sock in socks[:-1]:
            os.close(greedy.listen(sock)[2])
        with pytest.raises(RefusedError, match="TABLE_FULL"):
            greedy.listen(socks[-1])
        os.close(other.listen(mine)[2])
    for sock in socks:
        sock.close()


def test_a_mistake_of_the_agents_own_costs_one_connection(room: Path) -> None:
    """An exception that nobody foresaw: the caller is hung up on, the others go on, STATUS tells."""
    path = str(room / "run" / "agent.sock")
    child = os.fork()
    if child == 0:
        try:

            def mistaken(*_: object) -> None:
                raise ZeroDivisionError("a mistake")

            handlers._HANDLERS[Op.RESOLVE] = mistaken
            os._exit(0 if serve.serve(path, 60, detached=False) else 3)
        finally:
            os._exit(1)
    try:
        eventually(lambda: client.is_serving(path), "the agent's socket")
        with Shim(path) as other:
            other.hello()
            for _ in range(2):
                with Shim(path) as shim:
                    shim.hello()
                    with pytest.raises(Hung):
                        shim.resolve_nothing()
            fd = os.eventfd(0, os.EFD_NONBLOCK)
            assert other.ask(Op.BELL_NEW, bytes(8), (fd,)).status == 0
            os.close(fd)
        found = client.agent_status(path)["agent"]
        assert found["faults"] == 2 and "ZeroDivisionError: a mistake" in found["last_fault"]
    finally:
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == 0


def test_one_user_cannot_take_all_descriptors(start_agent: StartAgent, other_uid: int) -> None:
    agent = start_agent(limit=200)
    with agent.shim(uid=other_uid) as greedy, agent.shim() as other:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        statuses = [greedy.ask(Op.BELL_NEW, bytes(8), (fd,)).status for _ in range(150)]
        assert statuses[-1] == Reason.NO_DESCRIPTOR and statuses[0] == 0
        assert statuses.count(0) < 100
        assert other.ask(Op.BELL_NEW, bytes(8), (fd,)).status == 0
        os.close(fd)


def test_status_of_another_user_shows_only_its_own(watched: Agent, other_uid: int) -> None:
    with watched.shim(program="mine"), watched.shim(uid=other_uid, program="theirs") as shim:
        (fd,) = shim.ask(Op.STATUS).fds
        found = json.loads(os.pread(fd, 1 << 20, 0))
        os.close(fd)
        assert [p["program"] for p in found["processes"]] == ["theirs"]
        assert len(watched.status()["processes"]) == 2
