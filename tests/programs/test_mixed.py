"""Mixed pairs: a shimmed end with a plain one, and what may not differ from it when both are shimmed.

Whoever speaks first matters to negotiation: an end that reads before it writes has to find out in time that
the other one has (or has not) moved to a ring.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    connections,
    eventually,
    free_port,
)

pytestmark = pytest.mark.program

_NO_AGENT = ["--no-agent"]
_CLIENTS = Path(__file__).parent / "clients"
_PYTHON = Path(sys.executable).name
_FETCH = "import sys, urllib.request as u; print(len(u.urlopen(sys.argv[1], timeout=10).read()) > 0)"
_MODES = ["client-first", "server-first"]
# connections, rounds, bytes up, bytes down: a request-response protocol; many at once; bulk both ways.
_SHAPES = {"small": (1, 500, 30, 90), "many": (400, 3, 100, 3000), "bulk": (3, 4, 3_000_000, 5_000_000)}


def _exchange(
    host: Host, mode: str, shape: str, *, server_shim: bool, client_shim: bool, address: str = "127.0.0.1"
) -> int:
    """Run one pair to its end; the port."""
    port = free_port()
    host.server(
        [sys.executable, _CLIENTS / "exchange_server.py", mode, address, str(port)], port, shim=server_shim
    )
    numbers = [str(n) for n in _SHAPES[shape]]
    command = [sys.executable, _CLIENTS / "exchange_client.py", mode, address, str(port), *numbers]
    assert host.run(command, shim=client_shim).split()[-1] == "ok"
    return port


def _settled(host: Host, count: int) -> None:
    if not host.rehearse:
        eventually(lambda: len(host.connlog()) >= count, f"{count} lines in the connection log")


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_both(host: Host, mode: str, shape: str) -> None:
    port = _exchange(host, mode, shape, server_shim=True, client_shim=True)
    count = _SHAPES[shape][0]
    _settled(host, 2 * count)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=2 * count, port=port)
    assert_balanced(log, port=port, min_pairs=count)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_plain_client(host: Host, mode: str, shape: str) -> None:
    port = _exchange(host, mode, shape, server_shim=True, client_shim=False)
    count = _SHAPES[shape][0]
    _settled(host, count)
    log = host.finish()
    assert_plain(log, _PYTHON, count, role="server", port=port)
    _, rounds, up, down = _SHAPES[shape]
    if log:
        received = sum(c.rx_bytes for c in connections(log, port=port))
        assert count * rounds * up < received < count * rounds * (up + 30)
        sent = sum(c.tx_bytes for c in connections(log, port=port))
        assert count * rounds * down <= sent <= count * (rounds * down + 20)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("shape", _SHAPES)
def test_plain_server(host: Host, mode: str, shape: str) -> None:
    port = _exchange(host, mode, shape, server_shim=False, client_shim=True)
    count = _SHAPES[shape][0]
    log = host.finish()
    assert_plain(log, _PYTHON, count, role="client", port=port)


@pytest.mark.parametrize("address", ["::1", "127.0.0.2"])
def test_other_loopback_addresses(host: Host, address: str) -> None:
    port = _exchange(host, "client-first", "small", server_shim=True, client_shim=True, address=address)
    _settled(host, 2)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=2, port=port)
    assert_balanced(log, port=port)


@pytest.mark.parametrize(("bound", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::", "127.0.0.1")])
def test_wildcard(host: Host, bound: str, asked: str) -> None:
    """A listener on every address; IPv4 arrives at "::" as a v4-mapped address."""
    port = free_port()
    # asyncio sets IPV6_V6ONLY, so the dual-stack server is the standard library's HTTP server.
    host.server([sys.executable, "-m", "http.server", str(port), "--bind", bound], port)
    place = f"[{asked}]" if ":" in asked else asked
    assert host.run([sys.executable, "-c", _FETCH, f"http://{place}:{port}/"]).strip() == "True"
    _settled(host, 2)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=2, port=port)
    assert_balanced(log, port=port)


def test_no_agent(make_host: MakeHost) -> None:
    """Nobody may start an agent: everything is plain, and works."""
    host = make_host(agent=False)
    port = free_port()
    words = ["client-first", "127.0.0.1", str(port)]
    server = host.spawn([sys.executable, _CLIENTS / "exchange_server.py", *words], run_options=_NO_AGENT)
    host.wait_port(server, port)
    client = [sys.executable, _CLIENTS / "exchange_client.py", *words, "100", "3", "1000", "3000"]
    assert host.spawn(client, run_options=_NO_AGENT).wait().split()[-1] == "ok"
    _settled(host, 200)
    log = host.finish()
    assert_plain(log, _PYTHON, 200, port=port)
    assert_balanced(log, port=port, min_pairs=100)


def test_agent_started_on_demand(make_host: MakeHost) -> None:
    """No agent runs: the first bertha-run starts one, which a second one uses."""
    host = make_host(agent=False)
    port = free_port()
    words = ["client-first", "127.0.0.1", str(port)]
    server = host.spawn([sys.executable, _CLIENTS / "exchange_server.py", *words])
    host.wait_port(server, port)
    client = [sys.executable, _CLIENTS / "exchange_client.py", *words, "10", "3", "1000", "3000"]
    assert host.run(client).split()[-1] == "ok"
    _settled(host, 20)
    log = host.finish()
    host.stop_agent_on_demand()
    assert_carried(log, _PYTHON, min_connections=20, port=port)
    assert_balanced(log, port=port, min_pairs=10)


def test_agent_killed_meanwhile(host: Host) -> None:
    """kill -9 of the agent: connections that exist go on over shared memory."""
    port = free_port()
    command = [sys.executable, _CLIENTS / "exchange_server.py", "client-first", "127.0.0.1", str(port)]
    host.server(command, port)
    client = [sys.executable, _CLIENTS / "slow_client.py", "127.0.0.1", str(port)]
    go = host.dir / "go"
    program = host.spawn([*client, go])
    program.wait_text("half")
    if host.agent is not None:
        host.agent.kill()
    go.touch()
    assert program.wait().split()[-1] == "ok"
    _settled(host, 2)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=2, port=port)
    assert_balanced(log, port=port)


def test_disabled(host: Host) -> None:
    """BERTHA_DISABLE=1 is the same as no shim."""
    port = free_port()
    host.server([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], port)
    words = [sys.executable, "-c", _FETCH, f"http://127.0.0.1:{port}/"]
    assert host.run(words, env={"BERTHA_DISABLE": "1"}, require=False).strip() == "True"
    _settled(host, 1)
    log = host.finish()
    assert_plain(log, _PYTHON, 1, role="server", port=port)
    assert not connections(log, role="client", port=port)
