"""A connection in the middle of its talk that is left to a program without the shim: no byte is lost.

The other end gives back what lies unread in the ring, and the program goes on with the kernel's connection;
when the other end is busy with something else, a relay reads the ring for the program.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.harness import Host, assert_balanced, connections, eventually, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_LEAVE = _HERE / "leave.py"
_WAYS = ["fork", "vfork", "self", "spawn", "rights"]


@pytest.mark.parametrize("client", ["ready", "ended", "busy"])
@pytest.mark.parametrize("way", _WAYS)
def test_left_to_a_program_without_shim(host: Host, build: Build, way: str, client: str) -> None:
    port = free_port()
    lines = 4_000 if client == "busy" else 20_000
    server = host.server([build("bare_talk"), port, way, 20_000], port)
    answer = host.run([sys.executable, _LEAVE, port, client, lines])
    assert answer == f"echoed {8 * lines}, preload no\n"
    if way != "self":
        server.wait()
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    if client == "busy":  # a relay is there to the end
        assert_balanced(log)
    lines = connections(log, role="server")
    assert host.rehearse or lines
    for c in lines:
        assert c.program == "bare_talk"
        assert c.implementation == "shm" and c.reason is not None and "passed to another process" in c.reason


def test_left_to_two_programs(host: Host) -> None:
    """Both have the kernel's connection, although bytes from before the switch lie unread there.

    No relay takes what is the reader's, or resets what the writer has said.
    """
    port, program = free_port(), [sys.executable, _HERE / "two_bare.py"]
    hear, say, text = host.dir / "heard", host.dir / "said", host.dir / "text"
    say.write_bytes(said := b"".join(b"%07d said\n" % i for i in range(40_000)))
    text.write_bytes(b"".join(b"%07d text\n" % i for i in range(30_000)))
    server = host.server([*program, "serve", port, hear, say], port)
    assert host.run([*program, "talk", port, text, 1 + len(said)]) == "*" + said.decode()
    server.wait()
    assert hear.read_bytes() == text.read_bytes()
    log = host.finish()
    for c in connections(log):
        assert c.implementation == "shm", c
    lines = connections(log, role="server")
    assert host.rehearse or lines
    for c in lines:
        assert c.reason is not None and "passed to another process" in c.reason
    assert sum(c.rx_bytes for c in lines) < text.stat().st_size  # a relay would have read the rest


@pytest.mark.parametrize("way", ["ring", "kernel"])
def test_left_by_one_end_and_then_by_the_other(host: Host, way: str) -> None:
    """What the other end has left already it cannot give back: nobody waits for it to do so."""
    port = free_port()
    host.server([sys.executable, _HERE / "went_back.py", "serve", port, way], port)
    assert host.run([sys.executable, _HERE / "went_back.py", "talk", port, way]) == "all\n"
    log = host.finish()
    for c in connections(log):
        assert c.implementation == "shm" and c.reason is not None, c


def test_by_turns_with_a_relay(host: Host) -> None:
    """What a program wrote before it ended comes before what its parent writes then, and before the end."""
    port = free_port()
    server = host.server([sys.executable, _HERE / "by_turns.py", "serve", port], port)
    assert host.run([sys.executable, _HERE / "by_turns.py", "talk", port]) == "in order\n"
    server.wait()
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    assert_balanced(host.finish())


def _relays() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "bertha-relay"]


@pytest.mark.parametrize("case", ["reads", "writes", "goes on"])
def test_a_killed_relay_resets(host: Host, case: str) -> None:
    """At both ends: what it had is lost, and neither end is to take what came for all."""
    if host.rehearse:
        pytest.skip("no shim, no relay")
    port, program = free_port(), [sys.executable, _HERE / "killed_relay.py"]
    server = host.server([*program, "serve", case, port], port)
    client = host.spawn([*program, "talk", case, port])
    server.wait_text("there")
    (relay,) = _relays()
    if case != "reads":  # until it can go on no more: the client's ring is full, and so is the way there
        time.sleep(0.5)
    relay.kill()
    (host.dir / "killed").touch()
    assert client.wait(30) == "reset\n"
    assert server.wait(30) == "there\nreset\n" + ("reset\n" if case == "goes on" else "")
    log = host.finish()
    assert connections(log, role="client")  # a relay that is killed writes no line
    for c in connections(log):
        assert c.implementation == "shm", c
