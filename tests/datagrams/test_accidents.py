"""Carriers and agents that are killed: programs go on, lose datagrams at worst, and never hang."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.datagrams.conftest import Pair
from tests.datagrams.test_calls import start_echo
from tests.harness import Host, connections, eventually, free_port
from tests.harness.directory import listed_ports

pytestmark = [pytest.mark.program, pytest.mark.net]

_PYTHON = Path(sys.executable).name
_ASKER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for line in sys.stdin:
    if line.startswith("new"):
        sock.close()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(1.0)
        sock.connect((sys.argv[1], int(sys.argv[2])))
    try:
        sock.send(line.strip().encode())
        said = sock.recv(100).rpartition(b"|")[2].decode()
    except OSError as error:
        said = f"{type(error).__name__}"
    print(said, flush=True)
sock.close()
"""


class Asker:
    """A client that asks on one socket whenever it is told to."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        reader, writer = os.pipe()
        self._feed = writer
        with open(reader, "rb") as source:
            self.program = host.spawn([sys.executable, "-u", "-c", _ASKER, address, port], stdin=source)
        self._count = 0
        # An agent that has no time to answer makes a socket plain, and this server answers none of those.
        eventually(lambda: self.ask("new") == "new", "an answer to the first datagram", 90)

    def ask(self, text: str) -> str:
        os.write(self._feed, text.encode() + b"\n")
        self._count += 1
        eventually(lambda: len(self.program.text().splitlines()) >= self._count, "an answer", 30)
        return self.program.text().splitlines()[-1]

    def asks_until_answered(self, text: str) -> None:
        eventually(lambda: self.ask(text) == text, f"an answer to {text}", 60)

    def end(self) -> None:
        self.close()
        self.program.wait(20)

    def close(self) -> None:
        if self._feed >= 0:
            os.close(self._feed)
            self._feed = -1


MakeAsker = Callable[[int], Asker]


@pytest.fixture
def make_asker(pair: Pair) -> Iterator[MakeAsker]:
    """`make_asker(port)`: on the client's host, for the server's."""
    made: list[Asker] = []

    def make(port: int) -> Asker:
        made.append(Asker(pair.client, pair.address, port))
        return made[-1]

    yield make
    for asker in made:
        asker.close()


def _carriers(host: Host) -> list[psutil.Process]:
    assert host.agent is not None
    found = psutil.Process(host.agent.pid).children()
    return [p for p in found if "--control" in p.cmdline()]


def test_carriers_are_killed(pair: Pair, make_asker: MakeAsker) -> None:
    """The shim notices, and gives the socket to another one: the server's too, which only ever answers."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, pair.address, port)
    asker = make_asker(port)
    assert asker.ask("one") == "one"
    for host in (pair.server, pair.client):
        (carrier,) = _carriers(host)
        carrier.send_signal(signal.SIGKILL)
        asker.asks_until_answered("two")
        assert asker.ask("three") == "three"
    asker.end()
    _by_reliable(pair.client, 1)


def _by_reliable(host: Host, least: int) -> None:
    """Whatever of the host's programs has had an answer; this server answers nobody else."""
    found = [c for c in connections(host.finish(), program=_PYTHON) if c.rx_bytes > 0]
    assert len(found) >= least, found
    for c in found:
        assert not c.plain
        assert [chunnel["type"] for chunnel in c.raw["chunnels"]] == ["reliable", "local_or_remote"], c


def test_agents_are_killed(pair: Pair, make_asker: MakeAsker) -> None:
    """What has been agreed on goes on without them; their successors are told of the sockets."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, pair.address, port)
    asker = make_asker(port)
    assert asker.ask("one") == "one"
    for host in (pair.server, pair.client):
        assert host.agent is not None
        host.agent.process.kill()
        host.agent.process.wait(10)
    assert asker.ask("two") == "two"
    for host in (pair.server, pair.client):
        host.start_agent()
    directory = Path(f"{pair.server.agent_path}.dir")
    eventually(lambda: port in listed_ports(directory), "the echo in the directory", 30)
    asker.asks_until_answered("three")
    late = make_asker(port)
    assert late.ask("four") == "four"
    for each in (asker, late):
        each.end()
    _by_reliable(pair.client, 2)


def test_without_an_agent_a_required_chunnel_serves_nobody(pair: Pair) -> None:
    pair.dictate("reliable()", proto="udp")
    assert pair.server.agent is not None
    pair.server.stop(pair.server.agent)
    command = [sys.executable, Path(__file__).parent / "echo_udp.py", pair.address, free_port()]
    program = pair.server.spawn(command, run_options=("--no-agent",))
    program.wait(20, check=False)
    assert "PermissionError" in program.text()
    (refused,) = connections(pair.server.connlog(), program=_PYTHON)
    assert "agent" in (refused.reason or ""), refused


def test_what_strangers_send_into_a_session(pair: Pair, make_asker: MakeAsker) -> None:
    """Bytes of nobody's, envelopes of nobody's sessions, and HELLOs without sense: the echo goes on."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    echo = start_echo(pair.server, pair.address, port)
    asker = make_asker(port)
    assert asker.ask("one") == "one"
    script = (
        "import os, random, socket, struct, sys\n"
        "random.seed(1)\n"
        "MAP = b'\\x82\\xa1v\\x01\\xa4plan'\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "    for i in range(3000):\n"
        "        head = struct.pack('>4sBQ', b'\\xbeBRD', random.randrange(7), random.getrandbits(64))\n"
        "        data = random.randbytes(random.randrange(300))\n"
        "        sock.sendto(random.choice((data, head + data, head + MAP + data)),\n"
        "                    (sys.argv[1], int(sys.argv[2])))\n"
    )
    pair.client.run([sys.executable, "-c", script, pair.address, port], shim=False)
    assert asker.ask("two") == "two"

    def told() -> bool:  # the carrier says it now and then, and the program's line has what it said last
        bertha = Path(sys.executable).with_name("bertha")
        return "datagrams dropped" in pair.server.run([bertha, "ps", "--json"], shim=False)

    eventually(told, "the carrier has told of what it dropped")
    assert asker.ask("quit") == "TimeoutError"
    asker.end()
    echo.wait(20)
    (found,) = connections(pair.server.finish(), program=_PYTHON)
    assert "datagrams dropped" in (found.reason or ""), found
    assert found.rx_bytes % len("new") == len("onetwoquit") % len("new"), found
