"""The paper's listings 1, 3, 4 and 5 as programs (examples/listings)."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness import Host, assert_carried, connections, eventually, free_port

_LISTINGS = Path(__file__).parents[2] / "examples" / "listings"
_PYTHON = Path(sys.executable).name


def _program(name: str, *words: object) -> list[object]:
    return [sys.executable, _LISTINGS / name, *words]


def _ask(host: Host, name: str, *words: object) -> str:
    return host.run(_program(name, *words), shim=False).strip()


def _check(host: Host, port: int, count: int) -> None:
    eventually(lambda: len([c for c in host.connlog() if c.role == "client"]) >= count, "the log")
    assert_carried(host.finish(), _PYTHON, min_connections=count, role="client", port=port)


def test_listing_1(host: Host) -> None:
    port = free_port()
    host.server(_program("local_or_remote.py", "serve", "127.0.0.1", port), port, shim=False)
    assert _ask(host, "local_or_remote.py", "ask", "127.0.0.1", port, "hello") == "hello"
    _check(host, port, 1)


def test_listing_3(host: Host) -> None:
    ports = [free_port() for _ in range(3)]
    for port, name in zip(ports[1:], ("one", "two"), strict=True):
        host.server(_program("request_routing.py", "member", "127.0.0.1", port, name), port, shim=False)
    groups = [f"127.0.0.1:{port}" for port in ports[1:]]
    host.server(_program("request_routing.py", "route", "127.0.0.1", ports[0], *groups), ports[0], shim=False)
    answers = {_ask(host, "request_routing.py", "ask", "127.0.0.1", ports[0], f"k{i}") for i in range(4)}
    assert {a.split(": ")[1] for a in answers} == {f"k{i}" for i in range(4)}
    assert {a.split(": ")[0] for a in answers} <= {"one", "two"}
    _check(host, ports[0], 4)


def test_listings_4_and_5(host: Host) -> None:
    """`shard` is the application's own chunnel, and runs at the server only."""
    port = free_port()
    host.server(_program("sharded_kv.py", "serve", "127.0.0.1", port), port, shim=False)
    keys = [f"key-{n}" if n % 2 else f"another-{n}" for n in range(6)]
    for key in keys:
        _ask(host, "sharded_kv.py", "put", "127.0.0.1", port, key, f"value of {key}")
    answers = [_ask(host, "sharded_kv.py", "get", "127.0.0.1", port, key).split(": ") for key in keys]
    assert [value for _, value in answers] == [f"value of {key}" for key in keys]
    shards = [shard for shard, _ in answers]
    assert len(set(shards[::2])) == len(set(shards[1::2])) == 1, "by four bytes of the key"
    eventually(lambda: len(connections(host.connlog(), role="server")) == 12, "the server's lines")
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=12, role="client", port=port)
    for connection in connections(log, port=port):
        types = [c["type"] for c in connection.raw["chunnels"]]
        assert types == ["shard", "frame", "local_or_remote"], connection
