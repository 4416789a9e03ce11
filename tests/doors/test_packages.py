"""Packages that connect by themselves, with the shim loaded late beneath them.  Each is optional."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, eventually, free_port, require_program

_LATE = [sys.executable, "-m", "bertha_socket.monkey"]
_PYTHON = Path(sys.executable).name
_SERVERS = Path(__file__).parents[1] / "programs" / "clients" / "servers.py"

_UVLOOP = """
import asyncio, uvloop
async def serve(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for i in range(200):
        writer.write(b"%05d" % i)
        assert await reader.readexactly(5) == b"%05d" % i
    writer.close()
    await writer.wait_closed()
    server.close()
uvloop.run(main())
"""

_REDIS = """
import redis, sys
client = redis.Redis(port=int(sys.argv[1]))
for i in range(100):
    client.set(f"k{i}", "v" * i)
    assert client.get(f"k{i}") == b"v" * i
assert len(client.keys()) == 100
client.close()
"""

_REQUESTS = """
import requests, sys
with requests.Session() as session:
    answer = session.get(f"http://127.0.0.1:{sys.argv[1]}/1000", timeout=10)
assert answer.content == b"g" * 1000
"""


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_uvloop(host: Host) -> None:
    """libuv's own calls, in an extension that is loaded after patch_all(), are seen.

    It makes an io_uring, so its connections stay plain, and say so (docs/users/python.md).
    """
    _need("uvloop")
    host.run([*_LATE, "-c", _UVLOOP], shim=False)
    log = host.finish()
    assert {c.role for c in log} == {"client", "server"}
    assert all(c.implementation == "shm" or "io_uring" in (c.reason or "") for c in log)


def test_redis(host: Host) -> None:
    """redis-server under bertha-run, redis-py by patch_all()."""
    _need("redis")
    port = free_port()
    command = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server([*command, "--dir", str(host.dir)], port)
    host.run([*_LATE, "-c", _REDIS, port], shim=False)
    assert_carried(host.finish(), _PYTHON, min_connections=1, role="client", port=port)


def test_requests(host: Host) -> None:
    _need("requests")
    port = free_port()
    host.server([*_LATE, _SERVERS, "http", port], port, shim=False)
    host.run([*_LATE, "-c", _REQUESTS, port], shim=False)
    eventually(lambda: len(host.connlog()) >= 2, "both ends in the connection log")
    assert_carried(host.finish(), _PYTHON, min_connections=1, role="client", port=port)
