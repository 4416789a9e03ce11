"""A Python chunnel that the program registers itself, beneath connections that the shim carries: a rule of
its policy names it, and no [[chunnel]] does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair
from tests.chunnels.test_authors import ROT
from tests.chunnels.test_redis import assert_through
from tests.harness import connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_PYTHON = Path(sys.executable).name
_WORD = b"a-word-of-its-own"

#: How each door is opened.
_DOORS = {
    "monkey": "from bertha_socket import monkey; monkey.patch_all(); import socket",
    "drop-in": "import bertha_socket as socket",
    "bertha-run": "import socket",
}
# An echo server: ADDRESS PORT.
_SERVER = """
{door}
{chunnel}
import sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    {late}
    while True:
        try:
            with listener.accept()[0] as connection:
                connection.sendall(connection.recv(100))
        except ConnectionError:
            pass
"""
# Asks once: ADDRESS PORT.
_CLIENT = """
{chunnel}
{door}
import sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as sock:
    sock.sendall(b"{word}")
    print(sock.recv(100).decode())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a program has its own modules."""
    place = tmp_path / "app"
    place.mkdir()
    (place / "its_chunnels.py").write_text(ROT.read_text())
    return place


def _start(pair: Pair, folder: Path, door: str, chunnel: str, late: str = "") -> list[str | Path]:
    """Starts the server, and gives the client's command.  `late`: what the server does once it listens."""
    for name, code in (("server", _SERVER), ("client", _CLIENT)):
        text = code.format(door=_DOORS[door], chunnel=chunnel, late=late or "pass", word=_WORD.decode())
        (folder / f"{name}.py").write_text(text)
    port = str(free_port())
    server = [sys.executable, folder / "server.py", pair.address, port]
    pair.server.server(server, int(port), shim=door == "bertha-run")
    return [sys.executable, folder / "client.py", pair.address, port]


def _run(pair: Pair, folder: Path, door: str, chunnel: str, late: str = "") -> str:
    """What the client prints."""
    client = _start(pair, folder, door, chunnel, late)
    return pair.client.run(client, shim=door == "bertha-run", check=False).strip()


@pytest.mark.parametrize("door", _DOORS)
def test_beneath(pair: Pair, folder: Path, capture: Capture, door: str) -> None:
    """The server registers it once the door is open, the client before."""
    pair.dictate("rot(by=5)")
    assert _run(pair, folder, door, "import its_chunnels") == _WORD.decode()
    packets = capture.stop()
    assert _WORD not in packets and bytes((b + 5) % 256 for b in _WORD) in packets
    for host in (pair.client, pair.server):
        (found,) = assert_through(
            [c for c in host.finish() if c.rx_bytes], _PYTHON, ["rot", "local_or_remote"]
        )
        assert found.raw["chunnels"][0]["implementation"] == "python"


def test_registered_by_a_server_that_listens_already(pair: Pair, folder: Path) -> None:
    pair.dictate("rot(by=5)")
    late = "import its_chunnels"
    chunnel = "import sys\nif 'client' in sys.argv[0]: import its_chunnels"
    client = _start(pair, folder, "monkey", chunnel, late)
    eventually(lambda: pair.client.run(client, shim=False, check=False).strip() == _WORD.decode(), "rot", 30)
    assert_through([c for c in pair.client.finish() if c.rx_bytes], _PYTHON, ["rot", "local_or_remote"])


def test_a_forked_servers(pair: Pair, folder: Path) -> None:
    """A child has what its parent has registered, and an agent of its own to speak with."""
    pair.dictate("rot(by=5)")
    late = "import os, signal; os.fork() and signal.pause()"
    assert _run(pair, folder, "monkey", "import its_chunnels", late) == _WORD.decode()
    assert_through([c for c in pair.client.finish() if c.rx_bytes], _PYTHON, ["rot", "local_or_remote"])


def test_told_to_the_next_agent(pair: Pair, folder: Path) -> None:
    """The server tells it when somebody connects, of its listener and of what it has registered."""
    pair.dictate("rot(by=5)")
    client = _start(pair, folder, "monkey", "import its_chunnels")
    assert pair.client.run(client, shim=False).strip() == _WORD.decode()
    assert pair.server.agent is not None
    pair.server.stop(pair.server.agent)
    pair.server.start_agent()
    eventually(lambda: pair.client.run(client, shim=False, check=False).strip() == _WORD.decode(), "rot", 30)
    found = [c for c in pair.client.finish() if c.rx_bytes]
    assert_through(found, _PYTHON, ["rot", "local_or_remote"], 2)


def test_what_the_module_has_said_of_it_holds(pair: Pair, folder: Path) -> None:
    """Arguments of register_chunnel, and not the class's own attributes."""
    path = folder / "its_chunnels.py"
    path.write_text(path.read_text().replace('wire="rot/1"', 'wire="rot/9"'))
    pair.dictate("rot(by=5)")
    assert _run(pair, folder, "monkey", "import its_chunnels") == _WORD.decode()
    assert_through([c for c in pair.client.finish() if c.rx_bytes], _PYTHON, ["rot", "local_or_remote"])


_TAKEN_BACK = "import its_chunnels; from bertha_socket.chunnels import unregister; unregister('rot')"
_IN_THE_SCRIPT = ROT.read_text().replace("from __future__ import annotations\n", "")


@pytest.mark.parametrize("code", [_IN_THE_SCRIPT, _TAKEN_BACK], ids=["in the script", "taken back"])
def test_what_is_not_there_is_refused_with_the_remedy(pair: Pair, folder: Path, code: str) -> None:
    """To run the main script a second time, elsewhere, is not what its author has asked for."""
    pair.dictate("rot(by=5)")
    assert _WORD.decode() not in _run(pair, folder, "monkey", code)
    (found,) = connections(pair.client.finish(), program=_PYTHON)
    said = "rot cannot be had: no implementation at either end; name its class by a [[chunnel]]"
    assert said in (found.reason or ""), found
