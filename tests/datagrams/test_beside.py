"""A UDP socket that the native carrier has, and which speaks by chunnels that are not in C as well."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bertha_socket.agent.client import agent_status
from tests.datagrams.conftest import Pair
from tests.datagrams.test_accidents import Asker, MakeAsker
from tests.datagrams.test_accidents import make_asker as make_asker
from tests.datagrams.test_calls import start_echo
from tests.datagrams.test_implementations import carriers_of
from tests.harness import Connection, Host, connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_PYTHON = Path(sys.executable).name
#: python -c TALKER ADDRESS: a line "PORT TEXT" is sent there, all by one socket, and what comes is printed.
_TALKER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(1.0)
for line in sys.stdin:
    port, text = line.split()
    sock.sendto(text.encode(), (sys.argv[1], int(port)))
    try:
        print(sock.recv(1000).decode(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
sock.close()
"""
#: python -c FLOOD ADDRESS PORT: who asks for so many datagrams gets them, as fast as the socket takes them.
_FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], int(sys.argv[2])))
print("bound", flush=True)
while True:
    data, name = sock.recvfrom(100)
    for i in range(int(data)):
        sock.sendto(b"%06d" % i + bytes(1000), name)
"""
#: python -c COUNT ADDRESS PORT COUNT: asks for them, and says how many have come in order.
_COUNT = """
import socket, sys
count = int(sys.argv[3])
for _ in range(5):  # an agent that has no time to answer makes a socket plain
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(b"%d" % count)
    got = 0
    try:
        while got < count and sock.recv(2000) == b"%06d" % got + bytes(1000):
            got += 1
    except TimeoutError:
        pass
    sock.close()
    if got:
        break
print(got)
"""
_MORE = "http2() |> encrypt() |> reliable()"


def _rule(side: str, dag: str, **more: object) -> str:
    lines = ["[[rule]]", f'side = "{side}"', 'proto = "udp"', f'dag = "{dag}"']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items())]) + "\n"


class Talker:
    """One socket that sends to several ports."""

    def __init__(self, host: Host, address: str) -> None:
        reader, self._feed = os.pipe()
        with open(reader, "rb") as source:
            self.program = host.spawn([sys.executable, "-u", "-c", _TALKER, address], stdin=source)
        self._count = 0

    def ask(self, port: int, text: str) -> str:
        os.write(self._feed, f"{port} {text}\n".encode())
        self._count += 1
        eventually(lambda: len(self.program.text().splitlines()) >= self._count, "an answer", 30)
        return self.program.text().splitlines()[-1].rpartition("|")[2]

    def asks_until_answered(self, port: int, text: str) -> None:
        eventually(lambda: self.ask(port, text) == text, f"an answer to {text}", 60)

    def end(self) -> None:
        os.close(self._feed)
        self.program.wait(20)


def _lines(host: Host) -> list[Connection]:
    return [c for c in connections(host.finish(), program=_PYTHON) if c.rx_bytes > 0]


def _types(connection: Connection) -> list[str]:
    return [c["type"] for c in connection.raw["chunnels"]]


def _each_by_its_own(pair: Pair) -> None:
    """One client by chunnels in C, one by others."""
    found = {c.raw["carried_by"]: c for c in _lines(pair.client)}
    assert _types(found["native"]) == ["reliable", "local_or_remote"], found
    assert _types(found["python"]) == ["http2", "encrypt", "reliable", "local_or_remote"], found


def test_a_client_that_wants_more_than_the_server(pair: Pair, make_asker: MakeAsker) -> None:
    """Who speaks with it by chunnels in C loses nothing when one comes for whom they are not enough."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, pair.address, port)
    first = make_asker(port)
    assert carriers_of(pair.server) == {"native"}
    pair.client.set_policy(_rule("client", _MORE))
    second = make_asker(port)
    assert carriers_of(pair.server) == {"native", "python"}
    for i in range(20):
        assert first.ask(f"first {i}") == f"first {i}"
        assert second.ask(f"second {i}") == f"second {i}"
    live = agent_status(str(pair.server.agent_path))["connections"]
    (server,) = [c for c in live if c["proto"] == "udp" and c["local"].endswith(f":{port}")]
    assert (server["carried_by"], server["beside"]) == ("native", "python"), server
    first.end()
    second.end()
    _each_by_its_own(pair)


@pytest.mark.parametrize("dag", ["reliable()", _MORE])
def test_a_server_that_sends_faster_than_it_can_be_sent(pair: Pair, dag: str) -> None:
    """It waits, by the native carrier and by the one beside it: nothing is lost, and all comes in order."""
    pair.dictate("reliable()", proto="udp")
    pair.client.set_policy(_rule("client", dag))
    port = free_port()
    server = pair.server.spawn([sys.executable, "-c", _FLOOD, pair.address, port])
    eventually(lambda: "bound" in server.text(), "the server's socket")
    command = [sys.executable, "-c", _COUNT, pair.address, port, 6000]
    assert pair.client.run(command, timeout=100).split() == ["6000"]
    assert carriers_of(pair.server) == ({"native"} if dag == "reliable()" else {"native", "python"})


def _two_servers(pair: Pair) -> tuple[int, int]:
    """Their ports: of one by chunnels that are in C, and of one by others."""
    plain, more = free_port(), free_port()
    rules = _rule("server", "reliable()", port=plain) + _rule("server", _MORE, port=more)
    pair.server.set_policy(rules)
    for port in (plain, more):
        start_echo(pair.server, pair.address, port)
    return plain, more


def test_a_socket_that_speaks_with_two_servers(pair: Pair) -> None:
    plain, more = _two_servers(pair)
    talker = Talker(pair.client, pair.address)
    for port in (plain, more):
        talker.asks_until_answered(port, "first")
    for i in range(20):
        assert talker.ask(plain, f"plain-{i}") == f"plain-{i}"
        assert talker.ask(more, f"more-{i}") == f"more-{i}"
    talker.end()
    (found,) = _lines(pair.client)
    assert (found.raw["carried_by"], found.raw["beside"]) == ("native", "python")
    assert not found.plain
    assert carriers_of(pair.server) == {"native", "python"}


def test_the_other_way_round(pair: Pair) -> None:
    """The carrier in Python can do all that the native one can: nothing stands beside it."""
    plain, more = _two_servers(pair)
    talker = Talker(pair.client, pair.address)
    for port in (more, plain):
        talker.asks_until_answered(port, "first")
    for i in range(5):
        assert talker.ask(more, f"more-{i}") == f"more-{i}"
        assert talker.ask(plain, f"plain-{i}") == f"plain-{i}"
    talker.end()
    (found,) = _lines(pair.client)
    assert found.raw["carried_by"] == "python" and "beside" not in found.raw


def _kill(host: Host, kind: str) -> None:
    assert host.agent is not None
    carriers = agent_status(str(host.agent_path))["agent"]["carriers"]
    (pid,) = [c["pid"] for c in carriers if c["kind"] == kind]
    os.kill(pid, signal.SIGKILL)


def _both(pair: Pair, make_asker: MakeAsker) -> tuple[Asker, Asker]:
    """Two clients of one server: by chunnels in C, and by others."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, pair.address, port)
    first = make_asker(port)
    pair.client.set_policy(_rule("client", _MORE))
    second = make_asker(port)
    for asker in (first, second):
        assert asker.ask("one") == "one"
    return first, second


def test_the_one_beside_is_killed(pair: Pair, make_asker: MakeAsker) -> None:
    """What runs in C is not touched, and the program gets another one."""
    first, second = _both(pair, make_asker)
    _kill(pair.server, "python")
    assert first.ask("two") == "two"
    second.asks_until_answered("two")
    for asker in (first, second):
        assert asker.ask("three") == "three"
        asker.end()
    _each_by_its_own(pair)


def test_the_native_one_is_killed(pair: Pair, make_asker: MakeAsker) -> None:
    first, second = _both(pair, make_asker)
    _kill(pair.server, "native")
    for asker in (first, second):
        asker.asks_until_answered("two")
    for asker in (first, second):
        assert asker.ask("three") == "three"
        asker.end()
    _each_by_its_own(pair)


def test_the_client_s_is_killed(pair: Pair) -> None:
    plain, more = _two_servers(pair)
    talker = Talker(pair.client, pair.address)
    for port in (plain, more):
        talker.asks_until_answered(port, "one")
    for kind in ("python", "native"):
        _kill(pair.client, kind)
        for port in (more, plain):
            talker.asks_until_answered(port, kind)
            assert talker.ask(port, "again") == "again"
    talker.end()
    (found,) = _lines(pair.client)
    assert (found.raw["carried_by"], found.raw["beside"]) == ("native", "python")
