"""What the log says of a connection that went wrong, or was not made better, is what happened."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import Connection, Host, assert_carried, connections, eventually, free_port
from tests.shim.conftest import Build

_ECHO = Path(__file__).parent / "echo_all.py"
_PYTHON = Path(sys.executable).name


def _server_lines(host: Host, count: int) -> list[Connection]:
    def enough() -> list[Connection]:
        lines = connections(host.connlog(), role="server")
        return lines if len(lines) >= count else []

    return eventually(enough, f"{count} lines of the server")


@pytest.mark.parametrize("what", ["tail", "size", "head"])
def test_client_that_scribbles(host: Host, build: Build, what: str) -> None:
    if host.rehearse:
        pytest.skip("plain TCP has no memory to scribble on")
    port = free_port()
    host.server([sys.executable, _ECHO, port], port)
    assert host.run([sys.executable, _ECHO, port, "ask"], feed=b"before\n") == "before\n"
    assert host.run([build("scribbler"), port, what]) == "ok\n"
    assert host.run([sys.executable, _ECHO, port, "ask"], feed=b"after\n") == "after\n"
    _server_lines(host, 3)
    log = host.finish()
    lines = assert_carried(log, _PYTHON, role="server", min_connections=3)
    port_of_it = connections(log, program="scribbler")[0].local
    for line in lines:
        assert line.reason == (text_of(Reason.CORRUPT) if line.peer == port_of_it else None)


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_agent_that_goes_and_comes(host: Host, way: signal.Signals) -> None:
    if host.rehearse:
        pytest.skip("no agent in a rehearsal")
    port = free_port()
    host.server([sys.executable, _ECHO, port], port)
    # One that is there already: bertha-run would start another agent.
    client = host.spawn([sys.executable, _ECHO, port, "ask"], stdin=subprocess.PIPE)
    words = client.process.stdin
    assert words is not None

    def ask() -> tuple[Connection, Connection]:
        """The server's line and the client's of another connection."""
        count = len(connections(host.connlog(), role="server")) + 1
        words.write(b"word\n")
        words.flush()
        server = _server_lines(host, count)[-1]
        theirs = eventually(
            lambda: [c for c in host.connlog() if c.ends == server.ends and c.role == "client"],
            "the client's line",
        )
        return server, theirs[0]

    def reasons() -> list[str | None]:
        lines = ask()
        assert all(c.plain for c in lines)
        return [c.reason for c in lines]

    assert [c.implementation for c in ask()] == ["shm", "shm"]
    agent = host.agent
    assert agent is not None
    agent.kill() if way == signal.SIGKILL else host.stop(agent)
    host.run([sys.executable, _ECHO, port, "ask"], feed=b"word\n", shim=False)
    assert _server_lines(host, 2)[-1].reason == text_of(Reason.NO_AGENT)
    if way == signal.SIGTERM:  # after the other the client's link is as good as ever
        assert reasons() == [text_of(Reason.NO_AGENT)] * 2
    host.start_agent()
    assert reasons() == [text_of(Reason.AGENT_NEW), text_of(Reason.NOT_LISTED)]
    assert [c.implementation for c in ask()] == ["shm", "shm"]
    words.close()
    client.wait()
