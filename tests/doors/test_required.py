"""What a policy requires is required behind every door: without an agent it is refused, as under bertha-run.

The cases are those of tests/chunnels/test_without_agent.py; there the program has never heard of us.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import Host, Program, connections, eventually, free_port
from tests.harness.hosts import as_user

_HERE = Path(__file__).parent
_PROGRAM = _HERE / "one_door.py"
_PYTHON = Path(sys.executable).name
_WAYS = _HERE.parent / "chunnels" / "ways_around.py"
_DOORS = ("monkey", "drop-in", "new")


def _policy(program: str, side: str, dag: str, more: str = "") -> str:
    return f'[[rule]]\nprogram = "{program}"\nside = "{side}"\ndag = "{dag}"\n{more}\n'


@pytest.fixture(params=[signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def deserted(make_host: MakeHost, request: pytest.FixtureRequest) -> Host:
    """A host whose agent has ended in order, or leaves its directory behind as if it served."""
    host = make_host()
    assert host.agent is not None
    host.agent.process.send_signal(request.param)
    host.agent.process.wait(20)
    return host


@pytest.fixture
def plain_port() -> Iterator[int]:
    """Where something answers that knows nothing of us; who says nothing within 0.2 s hears nothing."""
    port = free_port()
    command = [sys.executable, str(_PROGRAM), "stdlib", "server", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield port
        process.terminate()


def _serve(host: Host, door: str, role: str = "server", **more: str) -> tuple[Program, int]:
    port = free_port()
    command = [sys.executable, _PROGRAM, door, role, port]
    program = host.spawn(command, shim=False, env=more)
    program.wait_text("ready")
    return program, port


def _ask_plainly(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"PING")
            return client.recv(100)
    except OSError:
        return b""


@pytest.mark.parametrize("door", _DOORS)
@pytest.mark.parametrize(
    ("program", "dag", "served"),
    [
        (_PYTHON, "encrypt()", False),
        ("python*", "prefer compress() |> encrypt()", False),
        ("one_door.py", "encrypt()", False),
        (_PYTHON, "prefer encrypt()", True),
        ("somebody-else", "encrypt()", True),
    ],
)
def test_server(deserted: Host, door: str, program: str, dag: str, served: bool) -> None:
    deserted.set_policy(_policy(program, "server", dag))
    _, port = _serve(deserted, door)
    assert (_ask_plainly(port) == b"PONG") == served
    # That it was on is seen by its twin, which is refused: who is not followed has no line.
    if door == "new":
        return  # its own word is in test_endpoint.py
    eventually(deserted.connlog, "the connection's line in the log")
    found = connections(deserted.connlog(), program=_PYTHON, role="server")
    assert all(c.plain == served and (c.tx_bytes > 0) == served for c in found), found
    assert served or all("no agent" in (c.reason or "") for c in found), found


@pytest.mark.parametrize("door", ["monkey", "drop-in"])
@pytest.mark.parametrize(("program", "served"), [("one_door.py", False), ("somebody-else", True)])
def test_multipath_server(make_host: MakeHost, door: str, program: str, served: bool) -> None:
    """MPTCP is not followed, so it is not served."""
    host = make_host()
    host.set_policy(_policy(program, "server", "encrypt()"))
    port = free_port()
    server = host.spawn([sys.executable, _PROGRAM, door, "multipath-server", port], shim=False)
    server.wait_text("ready" if served else "Operation not supported")
    assert (_ask_plainly(port) == b"PONG") == served


def test_no_way_around_with_an_agent(make_host: MakeHost, plain_port: int) -> None:
    """What is required is required of one port, and a connection to another one may have failed before."""
    host = make_host()
    host.set_policy(_policy("*", "client", "encrypt()", f"port = {plain_port}"))
    said = host.spawn([sys.executable, _WAYS, plain_port], run_options=("--name", "ways")).wait()
    assert "PONG" not in said
    assert "again: Connection refused" in said and "multipath: Connection refused" in said
    assert "ring: Function not implemented" in said
    assert any(not c.plain and c.reason for c in host.connlog()), host.connlog()


@pytest.mark.parametrize("door", _DOORS)
@pytest.mark.parametrize(
    ("dag", "reached"),
    [("encrypt()", False), ("prefer compress() |> encrypt()", False), ("prefer encrypt()", True)],
)
def test_client(deserted: Host, plain_port: int, door: str, dag: str, reached: bool) -> None:
    deserted.set_policy(_policy("one_door.py", "client", dag))
    said = deserted.run([sys.executable, _PROGRAM, door, "client", plain_port], shim=False)
    assert ("PONG" in said) == reached, said
    if reached:
        return
    if door == "new":
        assert "EndpointError" in said
        assert "knows of no chunnels, and encrypt is required" in said
        return
    assert "refused" in said
    found = connections(deserted.connlog(), program=_PYTHON)
    assert found
    assert all("no agent" in (c.reason or "") and not c.plain for c in found), found


@pytest.mark.parametrize("door", ["monkey", "drop-in"])
@pytest.mark.parametrize(("program", "reached"), [("one_door.py", False), ("somebody-else", True)])
def test_datagrams(make_host: MakeHost, door: str, program: str, reached: bool) -> None:
    host = make_host(agent=False)
    server, port = _serve(host, "stdlib", "udp-server")
    host.set_policy(_policy(program, "any", "reliable()", 'proto = "udp"'))
    said = host.run([sys.executable, _PROGRAM, door, "udp-client", port], shim=False)
    assert ("PONG" in said) == reached, said
    host.stop(server)
    server = host.spawn([sys.executable, _PROGRAM, door, "udp-server", port], shim=False)
    server.wait_text("ready" if reached else "Permission denied")
    host.stop(server)
    found = connections(host.connlog(), program=_PYTHON)
    assert {c.role for c in found} == (set() if reached else {"client", "server"})
    assert all("no agent" in (c.reason or "") and not c.plain for c in found), found


@pytest.mark.parametrize("door", ["monkey", "drop-in"])
def test_no_way_around(deserted: Host, plain_port: int, door: str) -> None:
    deserted.set_policy(_policy("ways_around.py", "client", "encrypt()"))
    late = ["-m", "bertha_socket.monkey", "--no-agent"] if door == "monkey" else []
    words = [sys.executable, *late, _WAYS, plain_port, *(["drop-in"] if door == "drop-in" else [])]
    said = deserted.run(words, shim=False)
    ways = ("connect", "low_water", "fast_open", "passed_on", "cloned", "again", "multipath")
    refused = [f"{way}: Connection refused" for way in ways]
    refused[2:2] = ["fast open: Operation not supported"]
    assert said.splitlines()[-8:] == refused


def test_agent_that_cannot_start(make_host: MakeHost) -> None:
    """patch_all() as everybody calls it: it says so, and the server serves nobody."""
    host = make_host(agent=False)
    (host.dir / "file").touch()
    host.set_policy(_policy("one_door.py", "server", "encrypt()"))
    where = str(host.dir / "file" / "agent.sock")
    server, port = _serve(host, "monkey-agent", BERTHA_AGENT=where)
    assert _ask_plainly(port) == b""
    assert "chunnels for are refused" in server.text()


def test_agent_that_comes_later(make_host: MakeHost, plain_port: int) -> None:
    """Then it is the agents who decide, as for any program."""
    host = make_host(agent=False)
    host.set_policy(_policy("one_door.py", "client", "encrypt()"))
    command = [sys.executable, _PROGRAM, "monkey", "client", plain_port]
    assert "refused" in host.run(command, shim=False)
    host.set_policy(_policy("one_door.py", "client", "prefer encrypt()"))
    host.start_agent()
    assert "PONG" in host.run(command, shim=False)


@pytest.mark.parametrize(("program", "reached"), [("child.py", False), ("somebody-else", True)])
def test_children(make_host: MakeHost, plain_port: int, program: str, reached: bool) -> None:
    """The parent is not meant, its child is; what the child's interpreter runs the shim does not know."""
    host = make_host(agent=False)
    host.set_policy(_policy(program, "client", "encrypt()"))
    code = f"import socket\nprint(socket.create_connection(('127.0.0.1', {plain_port})).send(b'PING'))\n"
    (host.dir / "child.py").write_text(code)
    parent = "from bertha_socket import monkey\nmonkey.patch_all(agent=False)\n"
    parent += f"import subprocess, sys\n{code}sys.stdout.flush()\n"
    parent += f"print(subprocess.run(['{sys.executable}', 'child.py']).returncode)\n"
    said = host.run([sys.executable, "-c", parent], shim=False)
    assert said.splitlines()[0] == "4"
    if program == "child.py":
        assert "Connection refused" in said
        assert any(not c.plain for c in host.connlog())


@pytest.mark.parametrize("door", [*_DOORS, "monkey-agent"])
@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ('[[rule]]\nside = "sever"\n', "bertha.toml: rule 1, side:"),
        ("[[rule]\n", "bertha.toml: not TOML"),
        (None, "none.toml: the policy file cannot be read"),
    ],
)
def test_bad_policy(
    make_host: MakeHost, plain_port: int, door: str, role: str, policy: str | None, told: str
) -> None:
    """An error that says where, and no connection."""
    host = make_host(agent=False)
    more = {}
    if policy is None:
        more["BERTHA_POLICY"] = str(host.dir / "none.toml")
    else:
        host.set_policy(policy)
    port = plain_port if role == "client" else free_port()
    command = [sys.executable, _PROGRAM, door, role, port]
    said = host.spawn(command, shim=False, env=more).wait(20, check=False)
    assert "PolicyError" in said, said
    assert told in said
    assert "PONG" not in said
    assert "ready" not in said


def test_bad_policy_and_the_command(make_host: MakeHost) -> None:
    host = make_host(agent=False)
    host.set_policy("[[rule]\n")
    command = [sys.executable, "-m", "bertha_socket.monkey", "-c", "print('it ran')"]
    program = host.spawn(command, shim=False)
    said = program.wait(20, check=False)
    assert program.process.returncode == 2
    assert said.startswith("bertha_socket.monkey: ")
    assert "it ran" not in said


def test_relative_policy(make_host: MakeHost, plain_port: int) -> None:
    """As under bertha-run it is found by who reads it from another folder, too."""
    host = make_host(agent=False)
    host.set_policy(_policy("one_door.py", "client", "encrypt()"))
    command = [sys.executable, _PROGRAM, "monkey", "client", plain_port]
    said = host.spawn(command, shim=False, cwd=host.dir, env={"BERTHA_POLICY": "bertha.toml"}).wait(20)
    assert "refused" in said


def test_library_that_does_not_load(make_host: MakeHost, plain_port: int) -> None:
    """stdlib's sockets where nothing is required, else no connection."""
    host = make_host(agent=False)
    command = [sys.executable, _PROGRAM, "drop-in", "client", plain_port]
    without = {"BERTHA_SHIM": str(host.dir / "none.so")}
    assert "PONG" in host.spawn(command, shim=False, env=without).wait(20)
    host.set_policy(_policy("one_door.py", "client", "encrypt()"))
    said = host.spawn(command, shim=False, env=without).wait(20)
    assert "PONG" not in said
    assert "none.so" in said


@pytest.mark.parametrize("door", ["shim", "monkey", "drop-in"])
@pytest.mark.parametrize("role", ["server", "client"])
def test_own_default_file(make_host: MakeHost, plain_port: int, door: str, role: str) -> None:
    """The agent is not the program's user's: its defaults are other ones."""
    host = make_host()
    config = host.dir / "home" / ".config" / "bertha"
    config.mkdir(parents=True)
    (config / "bertha.toml").write_text(_policy("one_door.py", role, "encrypt()"))
    home = {"HOME": str(host.dir / "home"), "XDG_CONFIG_HOME": ""}
    kind = "stdlib" if door == "shim" else door
    if role == "client":
        command = [sys.executable, _PROGRAM, kind, "client", plain_port]
        assert "PONG" not in host.run(command, shim=door == "shim", env=home, check=False)
        found = host.connlog()
        assert found and all(not c.plain and c.reason for c in found), found
        return
    port = free_port()
    command = [sys.executable, _PROGRAM, kind, "server", port]
    host.spawn(command, shim=door == "shim", env=home).wait_text("ready")
    assert _ask_plainly(port) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("dag", ["encrypt()", "prefer encrypt()"])
def test_file_that_another_user_cannot_read(
    make_host: MakeHost, plain_port: int, role: str, dag: str
) -> None:
    """Who has become somebody else is refused what it may require, and the log says why."""
    host = make_host()
    host.open_to_other_users()
    host.set_policy(_policy("perl", role, dag))
    assert host.policy is not None
    host.policy.chmod(0o600)
    port = free_port() if role == "server" else plain_port
    perl = {
        "server": f"$s=IO::Socket::INET->new(LocalAddr=>'127.0.0.1',LocalPort=>{port},Listen=>5) or die;"
        "print qq(ready\\n); $c=$s->accept; syswrite($c,'PONG') if sysread($c,$b,100); sleep 60",
        "client": f"$c=IO::Socket::INET->new('127.0.0.1:{port}') or die qq($!\\n);"
        "syswrite($c,'PING'); sysread($c,$b,100); print $b",
    }[role]
    command = [*as_user("nobody"), "perl", "-MIO::Socket::INET", "-e", f"$|=1; {perl}"]
    if role == "server":
        host.spawn(command).wait_text("ready")
        said = _ask_plainly(port).decode()
    else:
        said = host.run(command, check=False)
    assert ("PONG" in said) == dag.startswith("prefer"), said
    eventually(lambda: role == "server" or connections(host.connlog(), program="perl"), "a line in the log")
    if role == "client" and dag == "encrypt()":
        assert "Connection refused" in said
        found = [c for c in host.connlog() if not c.plain]
        assert any("Permission denied" in (c.reason or "") for c in found), host.connlog()
