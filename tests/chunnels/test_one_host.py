"""Chunnels between programs of one agent: asked for, they run there too."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import StartRedis
from tests.chunnels.test_redis import assert_through
from tests.conftest import MakeHost
from tests.harness import Host, assert_carried, connections, eventually, require_program

pytestmark = pytest.mark.program

_BIN = Path(sys.executable).parent


@pytest.fixture
def keyed(make_host: MakeHost, cluster_key: Path) -> Host:
    """A host with a cluster key."""
    return make_host(cluster_key=cluster_key)


def _benchmark(port: int, *words: str) -> list[str]:
    return [require_program("redis-benchmark"), "-p", str(port), "-t", "set,get", "-q", *words]


def test_explain_says_beforehand_what_the_log_says_afterwards(keyed: Host, start_redis: StartRedis) -> None:
    keyed.set_policy('[[rule]]\nside = "server"\ndag = "prefer compress() |> encrypt()"\n')
    _, port = start_redis(keyed, "127.0.0.1")
    cli = require_program("redis-cli")
    asked = [_BIN / "bertha", "explain", "--json", cli, f"127.0.0.1:{port}"]
    told = json.loads(keyed.run(asked, shim=False))
    assert told["listening"] and told["negotiation"]["verdict"] == "plan"
    assert keyed.run([cli, "-p", str(port), "ping"]).strip() == "PONG"
    types = ["compress", "encrypt", "local_or_remote"]
    for program, side in (("redis-cli", "client"), ("redis-server", "server")):
        for c in assert_through(keyed.finish(), program, types):
            ran = [(x["type"], x["implementation"]) for x in c.raw["chunnels"][:-1]]
            assert ran == [(x["type"], x[side]) for x in told["negotiation"]["chunnels"]]


@pytest.mark.parametrize(
    ("dag", "types"),
    [("compress(level=3) |> encrypt()", ["compress", "encrypt"]), ("prefer compress()", ["compress"])],
)
def test_on_loopback(keyed: Host, start_redis: StartRedis, dag: str, types: list[str]) -> None:
    keyed.set_policy(f'[[rule]]\nside = "server"\ndag = "{dag}"\n')
    _, port = start_redis(keyed, "127.0.0.1")
    assert "SET" in keyed.run(_benchmark(port, "-c", "20", "-n", "4000"))
    whole = [*types, "local_or_remote"]
    log = keyed.finish()
    assert_through(log, "redis-benchmark", whole, 20)
    assert_through(log, "redis-server", whole, 20)


def test_rule_for_the_client_alone(keyed: Host, start_redis: StartRedis) -> None:
    """The server has no policy: it takes part because the client asks for it; others share memory with it."""
    _, port = start_redis(keyed, "127.0.0.1")
    assert "SET" in keyed.run(_benchmark(port, "-c", "5", "-n", "500"))
    keyed.set_policy('[[rule]]\nprogram = "redis-cli"\nside = "client"\ndag = "compress()"\n')
    ping = [require_program("redis-cli"), "-p", str(port), "ping"]
    assert keyed.run(ping).strip() == "PONG"
    log = keyed.finish()
    assert_through(log, "redis-cli", ["compress", "local_or_remote"])
    assert_carried(log, "redis-benchmark", min_connections=5, role="client", port=port)
    server = [c for c in connections(log, program="redis-server") if c.rx_bytes > 0]
    assert {len(c.raw["chunnels"]) for c in server} == {1, 2}, server


def test_living_connections_outlast_the_agent(keyed: Host, start_redis: StartRedis) -> None:
    """kill -9 of the agent: carriers go on. The server tells the next agent when somebody connects."""
    keyed.set_policy('[[rule]]\nside = "server"\ndag = "encrypt()"\n')
    _, port = start_redis(keyed, "127.0.0.1")
    command = _benchmark(port, "-c", "10", "-n", "20000")
    program = keyed.spawn(command)
    eventually(lambda: "rps" in program.text(), "the benchmark's first figures")
    assert keyed.agent is not None
    keyed.stop(keyed.agent, number=signal.SIGKILL)
    assert "GET" in program.wait(60)
    keyed.start_agent()
    ping = [require_program("redis-cli"), "-p", str(port), "ping"]
    assert "PONG" not in keyed.run(ping, check=False), "never plain"
    assert keyed.run(ping).strip() == "PONG"
    log = keyed.finish()
    assert_through(log, "redis-benchmark", ["encrypt", "local_or_remote"], 10)
    answered = [c for c in log if c.rx_bytes > 0]
    assert_through(answered, "redis-cli", ["encrypt", "local_or_remote"])
