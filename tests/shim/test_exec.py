"""Connections that outlive an exec: what inetd, shells and subprocess do with them."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import (
    Host,
    assert_balanced,
    assert_plain,
    connections,
    eventually,
    free_port,
    require_program,
)
from tests.shim.conftest import Build, Talk

_HERE = Path(__file__).parent
_EVERYBODYS_PYTHON = Path("/usr/bin/python3")

_TEXT = b"".join(b"line %d of some text\n" % i for i in range(20_000))
_UPPER = "import sys; sys.stdout.write(sys.stdin.read().upper())"
_WAYS = ["fork", "vfork", "spawn", "self"]


def _carried(host: Host, connections: int = 1) -> None:
    """Both ends were on shared memory; whoever closed the server's end last has logged it."""
    eventually(lambda: host.rehearse or len(host.connlog()) == 2 * connections, "both ends in the log")
    log = host.finish()
    assert_balanced(log, min_pairs=connections)
    assert {c.implementation for c in log} <= {"shm"}


@pytest.mark.parametrize("way", _WAYS)
def test_cat(host: Host, build: Build, talk: Talk, way: str) -> None:
    assert talk([build("inetd"), "PORT", way, "cat"], _TEXT) == "*" + _TEXT.decode()
    _carried(host)


def test_a_path_from_another_directory(host: Host, build: Build, talk: Talk) -> None:
    assert talk([build("inetd"), "PORT", "at", "cat"], _TEXT) == "*" + _TEXT.decode()
    _carried(host)


def test_a_path_that_only_the_child_finds(host: Host, build: Build, talk: Talk) -> None:
    """posix_spawn with a change of directory among its actions: the kernel serves whatever that is."""
    assert talk([build("inetd"), "PORT", "moved", "cat"], _TEXT) == "*" + _TEXT.decode()
    lines = connections(host.finish(), role="server")
    assert host.rehearse or (lines and all(c.reason for c in lines)), lines  # the kernel's, and why


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file capabilities")
@pytest.mark.skipif(not _EVERYBODYS_PYTHON.exists(), reason="/usr/bin/python3 is not there")
def test_a_program_with_capabilities(make_host: MakeHost, build: Build) -> None:
    """It runs without the shim (ld.so(8), secure-execution mode), so it gets the kernel's connection."""
    host = make_host(user="nobody")
    program, port = host.dir / "able", free_port()
    shutil.copy(require_program("cat"), program)
    effective, net_raw = 1, 1 << 13
    value = struct.pack("<5I", 0x02000000 | effective, net_raw, 0, 0, 0)
    try:
        os.setxattr(program, "security.capability", value)
    except OSError as error:
        pytest.skip(f"no capabilities of files here: {error}")
    inetd = shutil.copy(build("inetd"), host.dir / "inetd")
    host.server([inetd, port, "fork", program], port)
    command = [_EVERYBODYS_PYTHON, _HERE / "talk.py", port, "--server-first"]
    assert host.run(command, feed=_TEXT) == "*" + _TEXT.decode()
    lines = connections(host.finish(), role="server")
    assert host.rehearse or (lines and all(c.reason for c in lines)), lines  # the kernel's, and why


@pytest.mark.parametrize("way", ["fork", "vfork", "self"])
def test_a_number_that_another_socket_has_by_then(host: Host, build: Build, talk: Talk, way: str) -> None:
    """The connection is known by its socket, not by the number that it had in the parent of a vfork child."""
    command = ["env", "REUSED=1", build("inetd"), "PORT", way, "cat"]
    assert talk(command, _TEXT) == "*" + _TEXT.decode()
    _carried(host)


@pytest.mark.parametrize("way", _WAYS)
def test_python(host: Host, build: Build, talk: Talk, way: str) -> None:
    command = [build("inetd"), "PORT", way, sys.executable, "-c", _UPPER]
    assert talk(command, _TEXT) == "*" + _TEXT.decode().upper()
    _carried(host)


@pytest.mark.parametrize("way", _WAYS)
def test_program_that_uses_stdio(host: Host, build: Build, talk: Talk, way: str) -> None:
    """sed reads and writes by stdio alone."""
    assert talk([build("inetd"), "PORT", way, "sed", "-u", "s/b/XX/"], b"abc\nbdef\n") == "*aXXc\nXXdef\n"
    _carried(host)


@pytest.mark.parametrize("way", _WAYS)
def test_program_that_uses_wide_characters(host: Host, build: Build, talk: Talk, way: str) -> None:
    command = [build("inetd"), "PORT", way, "env", "LC_ALL=C.UTF-8", require_program("rev")]
    assert talk(command, "abc\nd\u00e9f\n".encode()) == "*cba\nf\u00e9d\n"
    _carried(host)


def test_from_image_to_image(host: Host, build: Build, talk: Talk) -> None:
    script = "read -r first; echo first $first; exec sh -c 'read -r next; echo next $next; exec cat'"
    assert (
        talk([build("inetd"), "PORT", "fork", "sh", "-c", script], b"a\nb\nc\nd\n")
        == "*first a\nnext b\nc\nd\n"
    )
    _carried(host)


def test_subprocess(host: Host) -> None:
    """Python's subprocess, which uses vfork and closes all descriptors in the child."""
    port, count = free_port(), 3
    host.server([sys.executable, _HERE / "pyinetd.py", port, count, "cat"], port)
    for _ in range(count):
        command = [sys.executable, _HERE / "talk.py", port, "--server-first"]
        assert host.run(command, feed=_TEXT) == "*" + _TEXT.decode()
    _carried(host, count)


def test_bash(host: Host, build: Build) -> None:
    """A shell and its commands use one connection by turns."""
    port = free_port()
    host.server([build("forker"), port, "children", "1"], port)
    script = """
        exec 3<>/dev/tcp/127.0.0.1/$0
        echo one >&3; read -r answer <&3; echo "$answer"
        /bin/echo two >&3; head -n 1 <&3
        echo three >&3; read -r answer <&3; echo "$answer"
        (echo four; /bin/echo five; echo six) >&3
        read -r answer <&3; echo "$answer"
        sh -c 'read -r answer; echo "$answer"' <&3
        exec sed -u 1q <&3
    """
    answer = host.run([require_program("bash"), "-c", script, port])
    assert answer.split() == ["one", "two", "three", "four", "five", "six"]
    _carried(host)


@pytest.mark.parametrize("way", _WAYS)
def test_program_without_shim(host: Host, build: Build, way: str) -> None:
    """It gets the kernel's connection, which is all there was: the client is an ordinary one."""
    port = free_port()
    host.server([build("inetd"), port, way, "cat"], port, env={"BARE": "1"})
    command = [sys.executable, _HERE / "talk.py", port, "--server-first"]
    assert host.run(command, feed=_TEXT, shim=False) == "*" + _TEXT.decode()
    assert_plain(host.finish(), "inetd", role="server")


@pytest.mark.parametrize("client", ["at-work", "absent"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("way", _WAYS)
def test_program_without_shim_and_a_client_with_it(
    host: Host, build: Build, way: str, twice: bool, client: str
) -> None:
    """It goes back to the kernel, or by a relay; each of its descriptors is the same stream."""
    port, text = free_port(), _TEXT[:60_000] if client == "absent" else _TEXT
    env = {"BARE": "tied"} | ({"TWICE": "1"} if twice else {})
    host.server([build("inetd"), port, way, "cat"], port, env=env)
    command = [sys.executable, _HERE / "talk.py", port, "--server-first"]
    assert host.run(command + ["--absent"] * (client == "absent"), feed=text) == "*" + text.decode()
    lines = connections(host.finish(), role="client")
    assert host.rehearse or [c.implementation for c in lines] == ["shm"], lines


def test_nothing_else_is_inherited(host: Host, build: Build) -> None:
    """A program that has no use for the connection sees neither it nor anything of ours."""
    port = free_port()
    host.server([build("forker"), port, "children", "1"], port)
    answer = host.run([sys.executable, _HERE / "descriptors.py", port])
    assert answer.splitlines() == ["[0, 1, 2] False"] * 2
    _carried(host)
