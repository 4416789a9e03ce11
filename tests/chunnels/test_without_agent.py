"""A program whose policy requires chunnels, and no agent: it serves and reaches nobody, and says why."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import StartRedis
from tests.conftest import MakeHost
from tests.harness import Host, connections, require_program

pytestmark = pytest.mark.program

_HERE = Path(__file__).parent
_POLICY = '[[rule]]\nprogram = "{}"\nside = "{}"\ndag = "{}"\n'


@pytest.fixture(params=[signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def deserted(make_host: MakeHost, request: pytest.FixtureRequest) -> Host:
    """A host whose agent has ended in order, or leaves its directory behind as if it served."""
    host = make_host()
    assert host.agent is not None
    host.agent.process.send_signal(request.param)
    host.agent.process.wait(20)
    return host


def _ping(host: Host, port: int, *, shim: bool) -> str:
    command = [require_program("redis-cli"), "-p", str(port), "ping"]
    return host.run(command, shim=shim, check=False, require=False)


@pytest.mark.parametrize(
    ("program", "dag", "served"),
    [
        ("redis-server", "encrypt()", False),
        ("redis-*", "prefer compress() |> encrypt()", False),
        ("redis-server", "prefer encrypt()", True),
        ("somebody-else", "encrypt()", True),
    ],
)
def test_server(deserted: Host, start_redis: StartRedis, program: str, dag: str, served: bool) -> None:
    deserted.set_policy(_POLICY.format(program, "server", dag))
    server, port = start_redis(deserted, "127.0.0.1", options=("--no-agent",), listed=False)
    assert ("PONG" in _ping(deserted, port, shim=False)) == served
    deserted.stop(server)
    found = connections(deserted.connlog(), program="redis-server", role="server")
    assert found
    assert all(c.plain == served and (c.tx_bytes > 0) == served for c in found), found
    assert served or all("no agent" in (c.reason or "") for c in found), found


def test_client(deserted: Host, start_redis: StartRedis) -> None:
    _, port = start_redis(deserted, "127.0.0.1", shim=False)
    assert "PONG" in _ping(deserted, port, shim=False)
    deserted.set_policy(_POLICY.format("redis-cli", "client", "encrypt()"))
    command = [require_program("redis-cli"), "-p", str(port), "ping"]
    program = deserted.spawn(command, run_options=("--no-agent",))
    assert "PONG" not in program.wait(20, check=False)
    found = connections(deserted.connlog(), program="redis-cli")
    assert found
    assert all("no agent" in (c.reason or "") and not c.plain for c in found), found


def test_no_way_around(deserted: Host, start_redis: StartRedis) -> None:
    """Ways to connect that shared memory and carriers keep out of are refused as well, not plain."""
    _, port = start_redis(deserted, "127.0.0.1", shim=False)
    words = [sys.executable, _HERE / "ways_around.py", port]
    assert deserted.run(words, shim=False).count("PONG") == 6  # all but the child, which says nothing
    deserted.set_policy(_POLICY.format("ways", "client", "encrypt()"))
    said = deserted.spawn(words, run_options=("--no-agent", "--name", "ways")).wait()
    ways = ("connect", "low_water", "fast_open", "passed_on", "cloned", "again", "multipath")
    refused = [f"{way}: Connection refused" for way in ways]
    refused[2:2] = ["fast open: Operation not supported"]
    assert said.splitlines()[-9:] == ["ring: Function not implemented", *refused]


def test_program_that_cannot_be_hooked(deserted: Host) -> None:
    """Plain is what the policy forbids, so it does not run."""
    deserted.set_policy(_POLICY.format("static", "any", "encrypt()"))
    source = deserted.dir / "static.c"
    source.write_text("int main(void) { return 0; }\n")
    target = deserted.dir / "static"
    deserted.run([require_program("gcc"), "-static", "-o", target, source], shim=False)
    program = deserted.spawn([target], run_options=("--no-agent",))
    assert "must not run plain" in program.wait(20, check=False)
    assert program.process.returncode not in (0, None)
