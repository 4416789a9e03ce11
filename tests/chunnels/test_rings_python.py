"""The rings of carriers in Python where something goes wrong: who dies, who blocks, what there is without."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from bertha_socket.reasons import Reason, text_of
from tests.chunnels.test_rings import KINDS, Kind, by_ring, command, use
from tests.conftest import MakeHost
from tests.harness import Host, eventually, free_port, require_program

_SLOW = """
from __future__ import annotations
import time
from bertha_socket.chunnels import Pipe, register_chunnel


@register_chunnel("slow", wire="slow/1")
class Slow(Pipe):
    def down(self, item):
        if b"for ever" in item:
            while True:
                time.sleep(1)
        if item == b"*":
            time.sleep(0.7)  # longer than a program that executes another one waits for its carrier
        return (item,)
"""


@pytest.fixture(params=[k for k in KINDS if k.name != "native"], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest, host: Host) -> Kind:
    """Both carriers in Python."""
    return use(request.param, host)


@pytest.fixture
def slow(host: Host, tmp_path: Path) -> Kind:
    """An author's chunnel that blocks at certain words."""
    (tmp_path / "slow.py").write_text(_SLOW, encoding="utf-8")
    table = f'[[chunnel]]\nname = "slow"\nsource = "{tmp_path}/slow.py:Slow"\n\n'
    return use(Kind("authors", "slow", f'{table}[[rule]]\nside = "server"\ndag = "slow()"\n'), host)


def _links(pid: int) -> int:
    """How many a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").count("/memfd:bertha-hop")


def _descriptors(pid: int) -> list[str]:
    """Of sockets and bells."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sorted(f for f in found if f.startswith(("socket:", "anon_inode:[eventfd]")))


_TAKES = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"+")
            print("has", connection.recv(100, socket.MSG_WAITALL), flush=True)
"""
_DIES = """
import os, signal, socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
assert connection.recv(1) == b"+"
connection.sendall(b"last words")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_program_has_said_what_it_said(host: Host, kind: Kind) -> None:
    """And its carrier keeps nothing of it."""
    port = free_port()
    server = host.server([sys.executable, "-c", _TAKES, port], port)
    for turn in range(4):
        client = host.spawn([sys.executable, "-c", _DIES, port])
        client.wait(60, check=False)
        client.stopped_by_test = True
        wanted = "has b'last words'\n" * (turn + 1)
        eventually(partial(lambda text: server.text() == text, wanted), "the last words", 60)
    (carrier,) = kind.running(host)
    eventually(lambda: _links(carrier) == 1, "the server's link alone")
    eventually(lambda: len(_descriptors(carrier)) == 2, "the agent's socket and the server's")
    assert not psutil.Process(carrier).children()
    host.stop(server)
    eventually(lambda: _links(carrier) == 0, "no link")
    log = host.finish()
    assert [c.raw["carrier"] for c in log if c.role == "server"] == ["ring"] * 4


def test_connections_outlive_the_carrier_that_forked_for_them(host: Host) -> None:
    kind = use(KINDS[-1], host)
    port = free_port()
    server = host.server(command("serve", "killed", port), port)
    client = host.spawn(command("connect", "killed", port))
    client.wait_text("ready")
    carrier = psutil.Process(*kind.running(host))
    children = carrier.children()
    carrier.kill()
    carrier.wait(10)
    assert len(children) == 2 and all(child.is_running() for child in children)
    client.kill()
    assert server.wait(60) == "end b''\n"
    psutil.wait_procs(children, 10)
    by_ring(host.finish(), "server", kind)


def test_a_chunnel_that_blocks_for_ever(host: Host, slow: Kind) -> None:
    """The program is told, and what came before has arrived."""
    port = free_port()
    server = host.server(command("serve", "blocks", port), port)
    client = host.spawn(command("connect", "blocks", port))
    assert client.wait(60) == "reset\n"
    assert "has b'before it'\n" in server.wait(60)
    for c in by_ring(host.finish(), "client", slow):
        assert "made no progress for 10 s" in (c.reason or "")


def test_a_program_that_executes_another_while_its_chunnel_blocks(host: Host, slow: Kind) -> None:
    """It does not wait for ever for its bytes to come back from the ring, and none is lost."""
    port = free_port()
    server = host.server(command("serve", "exec", port), port)
    assert host.run(command("connect", "exec", port), timeout=60) == ""
    assert server.wait(60) == ""
    by_ring(host.finish(), "client", slow)


#: Address space, of which a link would be too much.
_LITTLE = "--as=1600000000"
_WITHOUT = (
    "import runpy, sys\n"
    "from bertha_socket.agent import carriers\n"
    "carriers._RINGS = False\n"
    "sys.argv[:] = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def _talks_by_pairs(
    host: Host, why: Reason, under: tuple[str, ...] = (), case: str = "half", says: str = "", told: str = ""
) -> None:
    port = free_port()
    server = host.server(command("serve", case, port), port)
    client = host.spawn(command("connect", case, port), under=under)
    assert client.wait(60) == told
    assert server.wait(60) == says
    log = [c for c in host.finish() if c.role == "client"]
    assert [c.raw["carrier"] for c in log] == ["socketpair"]
    if not told:  # else the reason is the reset
        assert [c.reason for c in log] == [text_of(why)]


def test_a_carrier_without_the_extension(make_host: MakeHost) -> None:
    host = make_host(agent=False)
    host.start_agent(under=(sys.executable, "-c", _WITHOUT))
    use(KINDS[1], host)
    _talks_by_pairs(host, Reason.NO_RINGS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name, indirect=True)
@pytest.mark.parametrize(
    ("case", "says", "told"),
    [("half", "", ""), ("reset", "reset\n", ""), ("unread", "", "reset\n")],
    ids=["half", "reset", "unread"],
)
def test_a_program_without_room_for_a_link(host: Host, kind: Kind, case: str, says: str, told: str) -> None:
    _talks_by_pairs(host, Reason.NO_MEMORY, (require_program("prlimit"), _LITTLE), case, says, told)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name, indirect=True)
def test_a_killed_carrier_resets_without_a_ring(host: Host, kind: Kind) -> None:
    """A unix socket's end is not the stream's, if its carrier has not said so."""
    port, under = free_port(), (require_program("prlimit"), _LITTLE)
    server = host.spawn(command("serve", "killed", port), under=under)
    host.wait_port(server, port)
    client = host.spawn(command("connect", "killed", port), under=under)
    client.wait_text("ready")
    for pid in kind.carriers(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert "reset" in client.wait(30)
    assert "reset" in server.wait(30)
    log = host.finish()
    assert [c.raw["carrier"] for c in log] == ["socketpair"] * 2, log


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_carrier_without_room_for_a_link(make_host: MakeHost, kind: Kind) -> None:
    host = make_host(agent=False)
    host.start_agent(under=(require_program("prlimit"), _LITTLE))
    use(kind, host)
    _talks_by_pairs(host, Reason.NO_RINGS)
