"""The paper's listings 1, 3, 4 and 5 as programs (examples/listings)."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

from bertha_socket.expressions import parse_expression
from tests.harness import Connection, Host, assert_carried, connections, eventually, free_port

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


def _serve(host: Host, name: str, *words: object) -> None:
    """A server of datagrams: it says itself when it listens."""
    host.spawn(_program(name, *words), shim=False).wait_text("listening")


def _udp(log: list[Connection], role: str, port: int) -> list[list[tuple[str, str, str]]]:
    """Type, implementation and where of each chunnel, of each connection."""
    found = [c for c in connections(log, role=role, port=port) if c.raw["proto"] == "udp" and c.tx_bytes]
    assert not any(c.plain for c in found), found
    return [[(x["type"], x["implementation"], x["where"]) for x in c.raw["chunnels"]] for c in found]


_UDP = ("local_or_remote", "udp", "global")


def test_listing_3(host: Host) -> None:
    """The service's own `shard` picks one of two connections."""
    ports = [free_port() for _ in range(3)]
    for port, name in zip(ports[1:], ("one", "two"), strict=True):
        _serve(host, "request_routing.py", "member", "127.0.0.1", port, name)
    groups = [f"127.0.0.1:{port}" for port in ports[1:]]
    _serve(host, "request_routing.py", "route", "127.0.0.1", ports[0], f"127.0.0.1:1,{groups[0]}", groups[1])
    answers = [_ask(host, "request_routing.py", "ask", "127.0.0.1", ports[0], f"k{i}") for i in range(6)]
    expected = [["one", "two"][zlib.crc32(b"k%d" % i) % 2] for i in range(6)]
    assert set(expected) == {"one", "two"}
    assert answers == [f"{name}: k{i}" for i, name in enumerate(expected)]
    eventually(lambda: len(_udp(host.connlog(), "server", ports[0])) == 6, "the service's lines")
    log = host.finish()
    for role in ("client", "server"):
        for line in _udp(log, role, ports[0]):
            shard, reliable = ("shard", "python", "application"), ("reliable", "native", "application")
            assert line == [shard, reliable, _UDP]


def test_listings_4_and_5(host: Host) -> None:
    """`shard` runs in the server alone, and the client's `reliable` is the one that it has registered."""
    port = free_port()
    _serve(host, "sharded_kv.py", "127.0.0.1", port)
    keys = [f"key-{n}" if n % 2 else f"another-{n}" for n in range(6)]
    for key in keys:
        _ask(host, "sharded_kv_client.py", "127.0.0.1", port, "put", key, f"value of {key}")
    answers = [_ask(host, "sharded_kv_client.py", "127.0.0.1", port, "get", key).split(": ") for key in keys]
    assert [value for _, value in answers] == [f"value of {key}" for key in keys]
    by = parse_expression("hash(payload[10:14]) % 3")
    for key, (shard, _) in zip(keys, answers, strict=True):
        assert shard == f"s{by.evaluate(bytes(10) + key.encode()) + 1}", key
    eventually(lambda: len(_udp(host.connlog(), "server", port)) == 12, "the server's lines")
    log = host.finish()
    for role in ("client", "server"):
        found = _udp(log, role, port)
        assert len(found) == 12
        for line in found:
            reliable = ("reliable", "clients-own/native", "application")
            assert line == [("shard", "python", "application"), reliable, _UDP]
