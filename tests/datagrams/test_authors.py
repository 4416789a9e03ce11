"""An author's chunnel, from a policy file or a package, beneath UDP programs that know nothing of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bertha_socket.agent.client import agent_status
from tests.chunnels.test_authors import known
from tests.chunnels.test_authors_programs import installed as installed
from tests.datagrams.conftest import Capture, Pair
from tests.datagrams.test_accidents import MakeAsker
from tests.datagrams.test_accidents import make_asker as make_asker
from tests.datagrams.test_calls import NAMES, start_echo
from tests.datagrams.test_memcached import _ask as ask_memcached
from tests.datagrams.test_memcached import _start as start_memcached
from tests.harness import Connection, Host, connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name
_SHOUT = f"{_HERE / 'shout.py'}:Shout"
_ROT = _HERE.parents[1] / "docs" / "authors" / "rot13.py"
#: What the carrier's log says, and the connection log.
_FAULTS = {
    "raise": ("ValueError: I cannot stand that word", "chunnel Shout raised {} (shout.py line 32)"),
    "leak": ("MemoryError", "chunnel Shout raised {}"),
    "crash": ("the process of its chunnels died (signal 6)", "{}"),
    "block": ("a chunnel made no progress for 10 s", "{}"),
}


def _carriers(host: Host) -> dict[int, str]:
    """The pid and kind of each carrier of a host's agent."""
    return {c["pid"]: c["kind"] for c in agent_status(str(host.agent_path))["agent"]["carriers"]}


def _lines(host: Host) -> list[Connection]:
    return [c for c in connections(host.finish(), program=_PYTHON) if c.rx_bytes > 0]


def _assert_by(found: list[Connection], *types: str) -> None:
    """All of them had these chunnels, the author's in Python."""
    assert found
    for connection in found:
        said = [c["type"] for c in connection.raw["chunnels"]]
        assert (connection.plain, said) == (False, [*types, "local_or_remote"]), connection
        assert connection.raw["chunnels"][types.index("shout")]["implementation"] == "python", connection


@pytest.mark.parametrize(
    ("dag", "types"),
    [
        ("shout() |> reliable()", ["shout", "reliable"]),
        ("frame() |> encrypt() |> shout() |> reliable()", ["frame", "encrypt", "shout", "reliable"]),
    ],
)
def test_calls(pair: Pair, dag: str, types: list[str]) -> None:
    """Each call on a UDP socket does what it does without; the server's rule is enough."""
    known(pair, dag, "udp", shout=_SHOUT)
    port = free_port()
    echo = start_echo(pair.server, pair.address, port)
    names = [name for name in NAMES if name != "with_asyncio"]
    command = [sys.executable, _HERE / "calls.py", pair.address, port, *names]
    said = pair.client.run(command, timeout=120)
    assert said.split("\n")[:-1] == [f"{name} ok" for name in names]
    for host in (pair.client, pair.server):
        assert set(_carriers(host).values()) == {"authors"}
    _assert_by(_lines(pair.client), *types)
    pair.server.stop(echo)


def test_beneath_memcached(pair: Pair) -> None:
    """A program in C, of several threads."""
    known(pair, "shout() |> reliable()", "udp", shout=_SHOUT)
    _, port = start_memcached(pair.server, pair.address)
    for mode in ("connected", "unconnected"):
        assert ask_memcached(pair.client, pair.address, port, mode, 8) == "ok"
    _assert_by(_lines(pair.client), "shout", "reliable")
    (found,) = connections(pair.server.finish(), program="memcached")
    assert found.rx_bytes > 0 and found.tx_bytes > 0
    _assert_by([found], "shout", "reliable")


def test_what_goes_by_the_wire(pair: Pair, capture: Capture, make_asker: MakeAsker) -> None:
    """It is the author's code that has made it, at either end."""
    known(pair, "shout() |> reliable()", "udp", shout=_SHOUT)
    port = free_port()
    start_echo(pair.server, pair.address, port)
    asker = make_asker(port)
    word = "a-word-of-its-own"
    assert asker.ask(word) == word
    packets = capture.stop()
    assert word.encode() not in packets
    assert bytes((b + 7) % 256 for b in word.encode()) in packets
    assert bytes((b + 7) % 256 for b in f"|{word}".encode()) in packets, "the answer"
    asker.end()
    _assert_by(_lines(pair.client), "shout", "reliable")


def _after_one_question(pair: Pair, make_asker: MakeAsker) -> Connection:
    """The client's line in the log."""
    port = free_port()
    start_echo(pair.server, pair.address, port)
    asker = make_asker(port)
    assert asker.ask("one") == "one"
    asker.end()
    (found,) = _lines(pair.client)
    return found


def test_a_stream_goes_between_frame_and_reliable(pair: Pair, make_asker: MakeAsker) -> None:
    """The example of the authors' guide, which takes a stream."""
    known(pair, "frame() |> rot() |> reliable()", "udp", rot=f"{_ROT}:Rot")
    said = [c["type"] for c in _after_one_question(pair, make_asker).raw["chunnels"]]
    assert said == ["frame", "rot", "reliable", "local_or_remote"]


def test_an_installed_packages_chunnel(installed: Path, pair: Pair, make_asker: MakeAsker) -> None:
    """Its entry point is enough: neither policy brings it."""
    pair.dictate("frame() |> rot() |> reliable()", proto="udp")
    found = _after_one_question(pair, make_asker)
    said = [(c["type"], c["implementation"]) for c in found.raw["chunnels"]]
    assert ("rot", "python") in said and not found.plain, found


@pytest.mark.parametrize(
    ("side", "word"), [(s, w) for s in ("client", "server") for w in _FAULTS if (s, w) != ("client", "block")]
)
def test_its_fault_is_one_exchanges_alone(pair: Pair, make_asker: MakeAsker, side: str, word: str) -> None:
    """Another program's datagrams go on meanwhile, through the same carriers; its own do afterwards."""
    known(pair, "shout() |> reliable()", "udp", shout=_SHOUT)
    port = free_port()
    echo = start_echo(pair.server, pair.address, port)
    faulty, other = make_asker(port), make_asker(port)
    logged, reason = _FAULTS[word]
    before = [_carriers(host) for host in (pair.client, pair.server)]
    assert faulty.ask(f"{side} {word}") == "TimeoutError"
    agent = pair.client.agent if side == "client" else pair.server.agent
    assert agent is not None  # in the foreground its carriers' words are its own

    def told() -> bool:
        assert other.ask("unhurt") == "unhurt"
        return logged in agent.text()

    eventually(told, "what the fault was", 60)
    assert ("Traceback" in agent.text()) == (word in ("raise", "leak"))
    faulty.asks_until_answered("again")
    assert [_carriers(host) for host in (pair.client, pair.server)] == before
    assert other.ask("quit") == "TimeoutError"
    for asker in (faulty, other):
        asker.end()
    echo.wait(20)
    host = pair.client if side == "client" else pair.server
    found = [c for c in _lines(host) if c.reason]
    assert len(found) == 1, found
    said = f"a chunnel's own code failed: {reason.format(logged)}"
    assert found[0].reason is not None and found[0].reason.startswith(said)


def test_what_cannot_even_start(pair: Pair, tmp_path: Path) -> None:
    """Its constructor raises, at the client: no datagram leaves, and the log says why."""
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from bertha_socket.chunnels import Interface, Pipe\n"
        "class Bad(Pipe):\n"
        "    upper = lower = Interface.MESSAGES\n"
        "    def __init__(self, *args):\n"
        "        super().__init__(*args)\n"
        "        if self.side == 'client':\n"
        "            raise RuntimeError('not today')\n"
    )
    known(pair, "bad()", "udp", bad=f"{bad}:Bad")
    port = free_port()
    start_echo(pair.server, pair.address, port)
    script = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "    sock.settimeout(1.0)\n"
        "    sock.connect((sys.argv[1], int(sys.argv[2])))\n"
        "    for _ in range(3):\n"
        "        sock.send(b'hello')\n"
        "        try:\n"
        "            print(sock.recv(100))\n"
        "        except TimeoutError:\n"
        "            print('nothing')\n"
    )
    said = pair.client.run([sys.executable, "-c", script, pair.address, port], timeout=60)
    assert said.split() == ["nothing"] * 3
    (found,) = connections(pair.client.finish(), program=_PYTHON)
    assert "raised RuntimeError: not today (bad.py line 7)" in (found.reason or ""), found
