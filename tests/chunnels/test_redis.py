"""redis between two hosts, through chunnels that the server's policy alone dictates."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair, StartRedis
from tests.harness import Connection, assert_only_tls, connections, eventually, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

_SECRET = "a-secret-that-must-not-cross-the-wire"


def _types(connection: Connection) -> list[str]:
    return [c["type"] for c in connection.raw["chunnels"]]


def assert_through(
    log: Sequence[Connection], program: str, types: list[str], least: int = 1
) -> list[Connection]:
    """All of the program's connections that carried anything went through exactly these chunnels."""
    found = [c for c in connections(log, program=program) if c.tx_bytes + c.rx_bytes > 0]
    assert len(found) >= least, log
    for connection in found:
        assert _types(connection) == types, connection
        assert not connection.plain, connection
        assert connection.tx_bytes > 0, connection
    return found


def _cli(pair: Pair, port: int, *words: str) -> str:
    return pair.client.run([require_program("redis-cli"), "-h", pair.address, "-p", str(port), *words])


@pytest.mark.parametrize(
    ("dag", "types"),
    [
        ("compress(level=3) |> encrypt()", ["compress", "encrypt"]),
        ("encrypt()", ["encrypt"]),
        ("compress()", ["compress"]),
    ],
)
def test_dictated_by_the_server(
    pair: Pair, start_redis: StartRedis, capture: Capture, dag: str, types: list[str]
) -> None:
    """Commands and load; with `encrypt` nothing but TLS crosses the network, of the load too."""
    pair.dictate(dag)
    _, port = start_redis(pair.server, pair.address)
    for _ in range(2):
        assert _cli(pair, port, "set", "key", _SECRET * 20).strip() == "OK"
    assert _cli(pair, port, "get", "key").strip() == _SECRET * 20
    benchmark = [require_program("redis-benchmark"), "-h", pair.address, "-p", str(port)]
    assert "SET" in pair.client.run([*benchmark, "-c", "20", "-n", "4000", "-t", "set,get", "-q"])
    if "encrypt" in types:
        without = (_SECRET.encode(), b"SET\r\n", b"$3\r\nkey", b"key:__rand_int__")
        assert_only_tls(capture, port, at_least=100_000, connections=23, without=without)
    whole = [*types, "local_or_remote"]
    log = pair.client.finish()
    assert_through(log, "redis-cli", whole, 3)
    assert_through(log, "redis-benchmark", whole, 20)
    assert_through(pair.server.finish(), "redis-server", whole, 23)


def test_unaware_client_is_refused(pair: Pair, start_redis: StartRedis) -> None:
    """A required chunnel is never dropped: the plain client gets an error, and no answer."""
    pair.dictate("encrypt()")
    _, port = start_redis(pair.server, pair.address)
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "ping"]
    assert "PONG" not in pair.client.run(command, shim=False, check=False)
    found = connections(pair.server.finish(), program="redis-server")
    assert found
    assert all("required" in (c.reason or "") and not c.plain for c in found), found
    assert all(c.rx_bytes == 0 for c in found), found


def test_unaware_client_of_a_preferred_chunnel_is_served(pair: Pair, start_redis: StartRedis) -> None:
    pair.dictate("prefer compress()")
    _, port = start_redis(pair.server, pair.address)
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "ping"]
    assert "PONG" in pair.client.run(command, shim=False)
    assert "PONG" in _cli(pair, port, "ping")
    assert_through(pair.client.finish(), "redis-cli", ["compress", "local_or_remote"])
    assert any(c.plain for c in connections(pair.server.finish(), program="redis-server"))


def test_client_without_the_key_is_refused(pair: Pair, start_redis: StartRedis) -> None:
    """The two agents do not believe each other: the client is as plain as any, and its log says why."""
    pair.dictate("encrypt()")
    _, port = start_redis(pair.server, pair.address)
    assert pair.client.agent is not None
    pair.client.cluster_key = None
    pair.client.stop(pair.client.agent)
    pair.client.start_agent()
    command = [require_program("redis-cli"), "-h", pair.address, "-p", str(port), "ping"]
    assert "PONG" not in pair.client.run(command, check=False)
    found = connections(pair.client.finish(), program="redis-cli")
    assert found
    assert all("key" in (c.reason or "") and c.rx_bytes == 0 for c in found), found


def test_server_with_another_policy(pair: Pair, start_redis: StartRedis) -> None:
    """A plan that has gone stale is refused, and the next connection gets a new one; never half of it."""
    pair.dictate("compress()")
    server, port = start_redis(pair.server, pair.address)
    client = pair.client.dir / "client.py"
    client.write_text(
        "import socket, sys\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        f"        with socket.create_connection(({pair.address!r}, {port}), 10) as s:\n"
        "            s.sendall(b'PING\\r\\n')\n"
        "            print(s.recv(100).decode().strip() or 'closed', flush=True)\n"
        "    except OSError as error:\n"
        "        print('error', error.errno, flush=True)\n"
    )
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as feed:
        with open(reader, "rb") as source:
            program = pair.client.spawn([sys.executable, "-u", client], stdin=source)

        def ask(lines: int) -> str:
            feed.write(b"\n")
            eventually(lambda: len(program.text().splitlines()) >= lines, "an answer")
            return program.text().splitlines()[-1]

        assert ask(1) == "+PONG"
        pair.server.stop(server)
        pair.dictate("compress() |> encrypt()")
        command = [require_program("redis-server"), "--port", str(port), "--bind", pair.address]
        command += ["--dir", str(pair.server.dir), "--save", "", "--protected-mode", "no"]
        pair.server.server(command, port)
        assert ask(2) in ("closed", "error 104")
        assert ask(3) == "+PONG"
    program.wait(10)
    found = connections(pair.client.finish(), program=Path(sys.executable).name)
    assert [_types(c)[:-1] for c in found] == [["compress"], [], ["compress", "encrypt"]], found
    assert "refused" in (found[1].reason or "") or "chunnel" in (found[1].reason or ""), found
