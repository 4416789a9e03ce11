"""bertha ps and bertha top, against an agent that says what the test wants."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.agent import client, messages
from bertha_socket.cli._table import human
from bertha_socket.cli.top import Rates
from tests.cli.conftest import PATIENCE, Launcher
from tests.cli.fake_agent import fake_agent, reply
from tests.harness.poll import eventually


def connection(**changes: Any) -> dict[str, Any]:
    """A line of the connection log, as the design has it."""
    return {
        "time": "2026-01-01T00:00:00.000000Z",
        "pid": 17,
        "program": "redis-server",
        "role": "server",
        "proto": "tcp",
        "local": "127.0.0.1:6379",
        "peer": "127.0.0.1:40000",
        "chunnels": [{"type": "local_or_remote", "implementation": "shm", "where": "application"}],
        "plain": False,
        "reason": None,
        "tx_bytes": 5_000_000,
        "rx_bytes": 12,
        "setup_us": 30,
        **changes,
    }


PLAIN = connection(
    pid=18, program="curl", role="client", chunnels=[], plain=True, reason="no one there", tx_bytes=0
)


def test_table(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": [connection(), PLAIN]}) as asked:
        done = launcher.bertha("ps", "--agent", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["PID", "PROGRAM", "ROLE", "LOCAL", "PEER", "VIA", "TX", "RX", "WHY"]
    assert lines[1].split()[:7] == ["18", "curl", "client", "127.0.0.1:6379", "127.0.0.1:40000", "tcp", "0"]
    assert lines[1].endswith("no one there")
    assert lines[2].split()[5:] == ["shm", "4.8M", "12"]
    assert asked == [messages.Op.STATUS]


def test_chunnels_are_named(launcher: Launcher, tmp_path: Path) -> None:
    chunnels = [
        {"type": "compress", "implementation": "native", "where": "host"},
        {"type": "local_or_remote", "implementation": "tcp", "where": "global"},
    ]
    with fake_agent(tmp_path / "a.sock", {"connections": [connection(chunnels=chunnels)]}):
        lines = launcher.bertha("ps", "--agent", str(tmp_path / "a.sock")).stdout.splitlines()
    assert lines[1].split()[5] == "compress+tcp"


def test_json_is_the_agents_objects(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": [connection(), PLAIN]}):
        env = {"BERTHA_AGENT": str(path)}
        everything = json.loads(launcher.bertha("ps", "--json", env=env).stdout)
        assert everything == [PLAIN, connection()]
        assert json.loads(launcher.bertha("ps", "--json", "--plain", env=env).stdout) == [PLAIN]
        assert json.loads(launcher.bertha("ps", "--json", "--pid", "17", env=env).stdout) == [connection()]


def test_destinations(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    known = {"destination": "10.0.0.1:80", "verdict": "plan", "chunnels": ["a", "b"], "seconds": 3.5}
    agent = {
        "destinations": [known, {"destination": "10.0.0.2", "verdict": "silent", "detail": "no\x1bone"}],
        "carriers": [{"pid": 7, "kind": "native", "shims": 2}],
        "port": 7277,
        "cluster_key": "0123456789abcdef",
    }
    with fake_agent(path, {"agent": agent}):
        lines = launcher.bertha("ps", "--destinations", "--agent", str(path)).stdout.splitlines()
        assert [line.split() for line in lines[:2]] == [
            ["DESTINATION", "VERDICT", "CHUNNELS", "FOR", "WHY"],
            ["10.0.0.1:80", "plan", "a", "|>", "b", "3.5"],
        ]
        assert lines[2].split() == ["10.0.0.2", "silent", "no?one"]
        assert lines[3] == "carrier 7: native, given to 2 programs"
        assert lines[4] == "other hosts' agents: port 7277; cluster key: 0123456789abcdef"
        asked = launcher.bertha("ps", "--destinations", "--json", "--agent", str(path)).stdout
        assert json.loads(asked) == agent


def test_nothing_there(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": []}):
        assert launcher.bertha("ps", "--agent", str(path)).stdout.splitlines()[1:] == []
        assert json.loads(launcher.bertha("ps", "--json", "--agent", str(path)).stdout) == []


def test_a_programs_name_cannot_drive_the_terminal(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": [connection(program="\x1b[2Jevil\nline")]}):
        done = launcher.bertha("ps", "--agent", str(path))
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_a_reader_that_goes_away(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": [connection(pid=i) for i in range(3000)]}):
        command = f"'{sys.executable}' '{launcher.main_script}' ps --agent '{path}' | head -n 1"
        done = subprocess.run(
            ["sh", "-c", command],
            env=launcher.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (None, None),  # no descriptor
        (None, b""),  # closed
        (None, b"x"),
        (b"not json", None),
        (b"\xff\xfe", None),
        (b"[1]", None),
        (b"{}", reply(messages.Op.STATUS, status=5)),
        (b"{}", reply(messages.Op.STATUS, version=9)),
        (b"{}", reply(messages.Op.STOP)),
    ],
)
def test_an_agent_that_answers_nonsense(
    launcher: Launcher, tmp_path: Path, text: bytes | None, answer: bytes | None
) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, text, answer):
        done = launcher.bertha("ps", "--agent", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bertha ps: {path}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["ps"], ["ps", "--json"], ["top"], ["top", "--json"]])
def test_no_agent(launcher: Launcher, tmp_path: Path, command: list[str]) -> None:
    done = launcher.bertha(*command, "--agent", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "start one: bertha agent" in done.stderr


def test_the_client_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": []}) as asked:
        before = len(os.listdir("/proc/self/fd"))
        client.agent_status(str(path))
        client.stop_agent(str(path))
        assert client.is_serving(str(path))
        # The agent is a thread of this process, whose ends close when it gets round to it.
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "as many descriptors as before")
    assert asked == [messages.Op.STATUS, messages.Op.STOP]
    assert not client.is_serving(str(path))


def test_a_stream_socket_is_no_agent(tmp_path: Path) -> None:
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert not client.is_serving(str(path))
        with pytest.raises(client.AgentError):
            client.agent_status(str(path))


# ---- top ----


def test_rates() -> None:
    rates = Rates()
    first = rates.update([connection(tx_bytes=0), PLAIN], 10.0)
    assert [each["tx_rate"] for each in first] == [None, None]
    second = rates.update([PLAIN, connection(tx_bytes=3000)], 12.0)
    assert [(each["program"], each["tx_rate"], each["rx_rate"]) for each in second] == [
        ("redis-server", 1500.0, 0.0),
        ("curl", 0.0, 0.0),
    ]
    assert rates.update([connection(pid=99)], 13.0)[0]["tx_rate"] is None


def test_top_json(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": [connection()]}):
        done = launcher.bertha("top", "--json", "--interval", "0.1", "--agent", str(path))
    assert json.loads(done.stdout) == [{**connection(), "tx_rate": 0.0, "rx_rate": 0.0}]


def test_top_needs_a_terminal(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with fake_agent(path, {"connections": []}):
        done = launcher.bertha("top", "--agent", str(path))
    assert done.returncode == 1
    assert "terminal" in done.stderr


def test_top_on_a_terminal(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    ours, theirs = pty.openpty()
    seen = b""
    with fake_agent(path, {"connections": [connection()]}):
        child = subprocess.Popen(
            [sys.executable, str(launcher.main_script), "top", "--agent", str(path), "--interval", "0.1"],
            env=launcher.environment({"TERM": "xterm", "COLUMNS": "100", "LINES": "24"}),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        try:
            while b"redis-server" not in seen:
                seen += os.read(ours, 65536)
            os.write(ours, b"q")
            while True:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # EIO: the child has closed its end
                    break
                if not data:
                    break
                seen += data
            _, err = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
            child.wait()
            os.close(ours)
    assert (child.returncode, err) == (0, b"")
    assert b"1 by shm" in seen
    assert seen.endswith(b"\x1b[?1049l")  # the screen is given back


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (1024, "1.0K"),
        (10 * 1024, "10K"),
        (5_000_000, "4.8M"),
        (2**50, "1.0P"),
    ],
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert human(count) == text


# ---- an agent that belongs to somebody else ----


@pytest.fixture
def strangers_agent() -> Iterator[Path]:
    """A socket at which a process of another user listens."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    folder = Path(tempfile.mkdtemp(prefix="bertha-stranger-"))
    folder.chmod(0o755)
    os.chown(folder, 65534, 65534)
    path = folder / "agent.sock"
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listener.bind(str(path))
            listener.listen(16)
            os.write(tell, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"x"
        yield path
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        shutil.rmtree(folder)


def test_another_users_agent_is_not_used(launcher: Launcher, strangers_agent: Path) -> None:
    assert not client.is_serving(str(strangers_agent))
    env = {"BERTHA_AGENT": str(strangers_agent)}
    done = launcher.run("echo", "runs", env=env)
    assert (done.returncode, done.stdout) == (0, "runs\n")
    assert done.stderr.count("\n") == 1
    assert "belongs to another user" in done.stderr
    assert launcher.run("--require", "echo", env=env).returncode == 125
    checks = json.loads(launcher.bertha("doctor", "--json", env=env).stdout)["checks"]
    assert {check["name"]: check["status"] for check in checks}["agent"] == "no"
