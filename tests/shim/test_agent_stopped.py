"""An agent that is there and does not answer (SIGSTOP) costs connections little, and ever less."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, assert_plain, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_CONNECTS = _HERE / "connects.py"


def test_connects_while_the_agent_is_stopped(host: Host, build: Build) -> None:
    port, count = free_port(), 15
    host.server([build("pass_on"), port, "first", count], port)
    assert host.rehearse or host.agent is not None
    if host.agent is not None:
        host.agent.send(signal.SIGSTOP)
    try:
        # Long enough for a shim that asks again each 200 ms to have waited for all of them.
        answer = host.run([sys.executable, _CONNECTS, port, count, 0.25], timeout=60)
    finally:
        if host.agent is not None:
            host.agent.send(signal.SIGCONT)
    assert answer == "ok\n"
    name = Path(sys.executable).name
    clients = assert_plain(host.finish(), name, role="client", min_connections=0 if host.rehearse else count)
    assert all(c.reason and "no agent answered" in c.reason for c in clients)
    waited = [c.raw["setup_us"] for c in clients]
    assert len([us for us in waited if us > 100_000]) <= 5, waited
    assert sum(waited) < 5_000_000, waited


def test_accepts_while_the_agent_is_slow(host: Host) -> None:
    """Where a processor is hard to come by it may take the agent a second to answer.  A server that gave its
    clients up for that would leave a whole pool of long connections plain, for good."""
    if host.agent is None:
        pytest.skip("there is no agent to be stopped")
    port, count, go = free_port(), 10, host.dir / "go"
    host.server([sys.executable, _HERE / "late_accept.py", port, count, go], port)
    client = host.spawn([sys.executable, _HERE / "many_lines.py", port, count])
    client.wait_text("ready")
    host.agent.send(signal.SIGSTOP)
    try:
        go.touch()
        time.sleep(0.8)
    finally:
        host.agent.send(signal.SIGCONT)
    assert client.wait(20).splitlines() == ["ready", "ok"]
    assert_carried(host.finish(), Path(sys.executable).name, "shm", 2 * count)
