"""The same programs in less comfortable circumstances: no spinning, tiny rings, one processor, unix sockets.

Spinning hides a lost wake-up, a large ring hides a wrong end of it, a second processor hides what waits for
whom; so each is taken away in turn, and everything must come out the same.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    connections,
    eventually,
    free_port,
    require_program,
)

pytestmark = pytest.mark.program

_CLIENTS = Path(__file__).parent / "clients"
_PYTHON = Path(sys.executable).name


@dataclass(frozen=True)
class Variant:
    """What is different: the programs' environment, their policy, a command before them."""

    name: str
    implementation: str = "shm"
    env: dict[str, str] = field(default_factory=dict)
    policy: str | None = None
    before: tuple[str, ...] = ()

    def command(self, *words: object) -> list[object]:
        return [*self.before, *words]


_FIRST_CPU = str(min(os.sched_getaffinity(0)))
_NO_SHM = '[[rule]]\nprohibit = ["shm"]\n'
_VARIANTS = [
    Variant("no spinning", env={"BERTHA_SPIN_US": "0"}),
    Variant("long spinning", env={"BERTHA_SPIN_US": "2000"}),
    Variant("small rings", policy="[[rule]]\nring_size = 262144\n"),
    Variant("one processor", before=("taskset", "-c", _FIRST_CPU)),
    Variant("unix", "unix", policy=_NO_SHM),
    Variant("unix, no spinning", "unix", {"BERTHA_SPIN_US": "0"}, '[[rule]]\nprefer = ["unix"]\n'),
    Variant("unix, one processor", "unix", policy=_NO_SHM, before=("taskset", "-c", _FIRST_CPU)),
]


@pytest.fixture(params=_VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest, host: Host) -> Variant:
    chosen: Variant = request.param
    if chosen.policy is not None:
        host.set_policy(chosen.policy)
    for word in chosen.before[:1]:
        require_program(word)
    return chosen


def _settled(host: Host, count: int) -> None:
    if not host.rehearse:
        eventually(lambda: len(host.connlog()) >= count, f"{count} lines in the connection log")


def test_redis(host: Host, variant: Variant) -> None:
    port = free_port()
    server = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server(variant.command(*server), port, env=variant.env, label="redis-server")
    words = ["-p", str(port), "-c", "30", "-n", "5000", "-q", "-t", "set,get,lrange_300", "-d", "500"]
    load = variant.command(require_program("redis-benchmark"), *words)
    assert "LRANGE_300" in host.run(load, env=variant.env)
    log = host.finish()
    assert_carried(log, "redis-benchmark", variant.implementation, 60, role="client", port=port)
    assert_carried(log, "redis-server", variant.implementation, 60, role="server", port=port)


@pytest.mark.parametrize("mode", ["client-first", "server-first"])
@pytest.mark.parametrize("shape", [(60, 20, 200, 500), (2, 3, 2_000_000, 3_000_000)], ids=["small", "bulk"])
def test_exchange(host: Host, variant: Variant, mode: str, shape: tuple[int, ...]) -> None:
    """An asyncio server and a blocking, threaded client that check every byte."""
    port = free_port()
    words = [mode, "127.0.0.1", str(port)]
    server = variant.command(sys.executable, _CLIENTS / "exchange_server.py", *words)
    host.server(server, port, env=variant.env, label="server")
    client = variant.command(sys.executable, _CLIENTS / "exchange_client.py", *words, *map(str, shape))
    assert host.run(client, env=variant.env).split()[-1] == "ok"
    _settled(host, 2 * shape[0])
    log = host.finish()
    assert_carried(log, _PYTHON, variant.implementation, 2 * shape[0], port=port)
    assert_balanced(log, port=port, min_pairs=shape[0])


@pytest.mark.parametrize("kind", ["selectors", "forking", "accepting-children"])
def test_lines(host: Host, variant: Variant, kind: str) -> None:
    """Non-blocking with one selector; a fork for each connection; three processes on one listener."""
    port = free_port()
    server = variant.command(sys.executable, _CLIENTS / "servers.py", kind, str(port))
    host.server(server, port, env=variant.env, label=kind)
    client = variant.command(sys.executable, _CLIENTS / "line_client.py", str(port), "10", "20", "2000")
    assert host.run(client, env=variant.env).strip() == "ok"
    _settled(host, 20)
    log = host.finish()
    assert_carried(log, _PYTHON, variant.implementation, 20, port=port)
    assert_balanced(log, port=port, min_pairs=10)


@pytest.mark.parametrize(
    "words", [(), ("-R", "-P", "3"), ("-Z",)], ids=["one stream", "three back", "sendfile"]
)
def test_iperf3(host: Host, variant: Variant, words: tuple[str, ...]) -> None:
    port = free_port()
    iperf = require_program("iperf3")
    server = variant.command(iperf, "-s", "-1", "-p", str(port), "-B", "127.0.0.1")
    running = host.server(server, port, env=variant.env, label="iperf3 server")
    client = variant.command(iperf, "-c", "127.0.0.1", "-p", str(port), "-n", "20M", *words)
    assert "receiver" in host.run(client, env=variant.env)
    running.wait()
    log = host.finish()
    assert_carried(log, "iperf3", variant.implementation, 4, port=port)
    if log:
        assert sum(c.tx_bytes for c in connections(log, port=port)) >= 20 * 2**20


def test_only_tcp_is_allowed(host: Host) -> None:
    """A policy that leaves nothing but plain TCP: plain, and the log says that it was the policy."""
    host.set_policy('[[rule]]\nrequire = ["tcp"]\n')
    port = free_port()
    words = ["client-first", "127.0.0.1", str(port)]
    host.server([sys.executable, _CLIENTS / "exchange_server.py", *words], port, listed=False)
    client = [sys.executable, _CLIENTS / "exchange_client.py", *words, "20", "3", "1000", "2000"]
    assert host.run(client).split()[-1] == "ok"
    _settled(host, 40)
    log = host.finish()
    assert_plain(log, _PYTHON, 40, port=port)
    assert_balanced(log, port=port, min_pairs=20)
    # The client only sees that nobody is listed there.
    assert all("policy" in (c.reason or "") for c in connections(log, role="server", port=port))
