"""The chunnel types that have no implementation in C, beneath a program of TCP that knows nothing of them: a
server's policy alone dictates them, and what each does is seen from outside."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair, StartRedis
from tests.chunnels.test_redis import assert_through
from tests.harness import require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

_VALUE = "0123456789" * 10_000
#: Bytes of one piece that a carrier takes, which may overdraw what is left of the rate.
_PIECE = 65_536


def _redis(pair: Pair, port: int, value: str = _VALUE) -> None:
    """Sets a long value twice on one connection, and gets it on another."""
    cli = [require_program("redis-cli"), "-h", pair.address, "-p", str(port)]
    assert pair.client.run([*cli, "-r", "2", "set", "key", value], timeout=60).split() == ["OK", "OK"]
    assert pair.client.run([*cli, "get", "key"], timeout=60).strip() == value


def _by_python(pair: Pair, kind: str) -> None:
    """Both ends' connections went through that chunnel alone."""
    whole = [kind, "local_or_remote"]
    found = assert_through(pair.client.finish(), "redis-cli", whole, 2)
    found += assert_through(pair.server.finish(), "redis-server", whole, 2)
    assert {c.raw["chunnels"][0]["implementation"] for c in found} == {"python"}


def test_http2(pair: Pair, start_redis: StartRedis, capture: Capture) -> None:
    """HTTP/2 crosses the network, and begins as RFC 9113 has it."""
    pair.dictate("http2()")
    _, port = start_redis(pair.server, pair.address)
    _redis(pair, port)
    assert capture.stop().count(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == 2
    _by_python(pair, "http2")


@pytest.mark.parametrize("choices", ["count(), compress()", "compress(), count()"])
def test_branch(pair: Pair, start_redis: StartRedis, capture: Capture, choices: str) -> None:
    """What comes in long pieces goes by the one sub-DAG, and what comes in short ones by the other."""
    pair.dictate(f"branch(by=len(payload) > 1000, choices=[{choices}])")
    _, port = start_redis(pair.server, pair.address)
    _redis(pair, port)
    packets = capture.stop()
    if choices.endswith("compress()"):
        assert _VALUE[:100].encode() not in packets and b"+OK\r\n" in packets
    else:
        assert packets.count(_VALUE[:100].encode()) > 1000
    _by_python(pair, "branch")


def test_limit(pair: Pair, start_redis: StartRedis) -> None:
    """Two values one way and one the other take as long as the rate says."""
    rate = 150_000
    pair.dictate(f"limit(rate={rate})")
    _, port = start_redis(pair.server, pair.address)
    began = time.monotonic()
    _redis(pair, port)
    free = _PIECE + rate // 10  # of each connection
    assert time.monotonic() - began >= (2 * len(_VALUE) - free + len(_VALUE) - free) / rate
    _by_python(pair, "limit")


def test_mirror(pair: Pair, start_redis: StartRedis, tmp_path: Path) -> None:
    """The server's copy has what both sent, in packets of a pcap file."""
    copy = tmp_path / "copy.pcap"
    pair.dictate(f'mirror(to=\\"{copy}\\")')
    _, port = start_redis(pair.server, pair.address)
    _redis(pair, port, "words-of-its-own")
    _by_python(pair, "mirror")
    data = copy.read_bytes()
    assert data.startswith(b"\xd4\xc3\xb2\xa1")
    assert data.count(b"$3\r\nset\r\n$3\r\nkey\r\n$16\r\nwords-of-its-own\r\n") == 2
    assert data.count(b"$16\r\nwords-of-its-own\r\n") == 3
