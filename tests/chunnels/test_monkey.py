"""One end is a Python program by `monkey.patch_all()`, the other any program under bertha-run elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair, StartRedis
from tests.chunnels.test_programs import start_nginx
from tests.chunnels.test_redis import assert_through
from tests.harness import assert_only_tls, free_port, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

_PYTHON = Path(sys.executable).name
_LATE = [sys.executable, "-m", "bertha_socket.monkey"]
_WHOLE = ["compress", "encrypt", "local_or_remote"]
_SECRET = "a-secret-that-must-not-cross-the-wire"

_REDIS = """
import sys, threading
from bertha_socket import monkey
assert monkey.patch_all()
import redis
client = redis.Redis(host=sys.argv[1], port=int(sys.argv[2]))
def work(name):
    for i in range(50):
        client.set(f"{name}{i}", sys.argv[3] * i)
        assert client.get(f"{name}{i}") == sys.argv[3].encode() * i
threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(client.keys()) == 150
pubsub = client.pubsub()
pubsub.subscribe("news")
assert pubsub.get_message(timeout=30)["type"] == "subscribe"
client.publish("news", sys.argv[3])
assert pubsub.get_message(timeout=30)["data"] == sys.argv[3].encode()
pubsub.close()
client.close()
print("ok")
"""

_ASYNC_REDIS = """
import asyncio, sys
from bertha_socket import monkey
monkey.patch_all()
import redis.asyncio
async def main():
    client = redis.asyncio.Redis(host=sys.argv[1], port=int(sys.argv[2]))
    await asyncio.gather(*(client.set(f"k{i}", sys.argv[3] * i) for i in range(50)))
    assert await client.get("k49") == sys.argv[3].encode() * 49
    await client.aclose()
asyncio.run(main())
print("ok")
"""

_REQUESTS = """
import hashlib, sys
from bertha_socket import monkey
monkey.patch_all()
import requests
with requests.Session() as session:
    for _ in range(5):
        assert session.get(f"{sys.argv[1]}/answer", timeout=30).text == "answer\\n"
    print(hashlib.sha256(session.get(f"{sys.argv[1]}/twenty", timeout=60).content).hexdigest())
"""

# A redis of two commands, by threads: ADDRESS PORT.
_SERVER = """
import sys
from bertha_socket import monkey
monkey.patch_all()
import socketserver
store = {}
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append(self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2])
            if words[0].upper() == b"SET":
                store[words[1]] = words[2]
                self.wfile.write(b"+OK\\r\\n")
            else:
                value = store.get(words[-1], b"")
                self.wfile.write(b"$%d\\r\\n%s\\r\\n" % (len(value), value))
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 100
with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
    server.serve_forever()
"""


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


_UVLOOP_REDIS = _ASYNC_REDIS.replace("asyncio.run(", "import uvloop\nuvloop.run(")
# Threads are greenlets, and sockets are gevent's own: whoever patches first.
_GEVENT = "import gevent.monkey\ngevent.monkey.patch_all()\n"
_IS_GEVENT = "import socket\nassert socket.socket.__module__.startswith('gevent.'), socket.socket\n"
_CLIENTS = {
    "threads": ("redis", _REDIS),
    "asyncio": ("redis", _ASYNC_REDIS),
    "uvloop": ("uvloop", _UVLOOP_REDIS),
    "gevent's first": ("gevent", _GEVENT + _REDIS.replace("import redis", _IS_GEVENT + "import redis")),
    "ours first": ("gevent", _REDIS.replace("import redis", _GEVENT + _IS_GEVENT + "import redis")),
}


@pytest.mark.parametrize("client", _CLIENTS)
def test_redis_py(pair: Pair, start_redis: StartRedis, capture: Capture, client: str) -> None:
    """The server's policy alone says that there are chunnels."""
    package, code = _CLIENTS[client]
    _need("redis")
    _need(package)
    pair.dictate("compress(level=3) |> encrypt()")
    _, port = start_redis(pair.server, pair.address)
    command = [sys.executable, "-c", code, pair.address, port, _SECRET]
    assert pair.client.run(command, shim=False, timeout=60).strip() == "ok"
    without = (_SECRET.encode(), b"SET\r\n")
    assert_only_tls(capture, port, at_least=1500, without=without)
    assert_through(pair.client.finish(), _PYTHON, _WHOLE, 2)
    assert_through(pair.server.finish(), "redis-server", _WHOLE, 2)


def test_requests(pair: Pair) -> None:
    _need("requests")
    pair.dictate("encrypt()")
    nginx, port, content = start_nginx(pair.server, pair.address)
    command = [sys.executable, "-c", _REQUESTS, f"http://{pair.address}:{port}"]
    assert pair.client.run(command, shim=False, timeout=90).strip() == content
    assert_through(pair.client.finish(), _PYTHON, ["encrypt", "local_or_remote"], 1)
    pair.server.stop(nginx)
    assert_through(pair.server.finish(), "nginx", ["encrypt", "local_or_remote"], 1)


@pytest.mark.parametrize("threads", ["the system's", "gevent's"])
def test_python_server(pair: Pair, capture: Capture, threads: str) -> None:
    """redis-cli and redis-benchmark know of nothing; the policy names the Python program."""
    code = _SERVER
    if threads == "gevent's":
        _need("gevent")
        code = _GEVENT + _SERVER.replace("import socketserver", _IS_GEVENT + "import socketserver")
    pair.dictate("compress() |> encrypt()", program=_PYTHON)
    port = free_port()
    server = [sys.executable, "-c", code, pair.address, port]
    pair.server.server(server, port, shim=False)
    cli = [require_program("redis-cli"), "-h", pair.address, "-p", str(port)]
    assert pair.client.run([*cli, "set", "key", _SECRET]).strip() == "OK"
    assert pair.client.run([*cli, "get", "key"]).strip() == _SECRET
    benchmark = [require_program("redis-benchmark"), "-h", pair.address, "-p", str(port)]
    assert "SET" in pair.client.run([*benchmark, "-c", "10", "-n", "500", "-t", "set", "-q"], timeout=60)
    without = (_SECRET.encode(), b"set\r\n", b"SET\r\n")
    assert_only_tls(capture, port, at_least=4000, connections=12, without=without)
    log = pair.client.finish()
    assert_through(log, "redis-cli", _WHOLE, 2)
    assert_through(log, "redis-benchmark", _WHOLE, 10)
    assert_through(pair.server.finish(), _PYTHON, _WHOLE, 12)


def test_http_server(pair: Pair) -> None:
    """curl, and http.server by `python -m bertha_socket.monkey`."""
    pair.dictate("encrypt()")
    port = free_port()
    (pair.server.dir / "page").write_bytes(b"x" * 3_000_000)
    server = [*_LATE, "-m", "http.server", "--bind", pair.address, str(port)]
    pair.server.server(server, port, shim=False)
    curl = [require_program("curl"), "-sS", "--fail", "--max-time", "60"]
    for _ in range(2):
        got = pair.client.run([*curl, f"http://{pair.address}:{port}/page"], timeout=90)
        assert (len(got), set(got)) == (3_000_000, {"x"})
    assert_through(pair.client.finish(), "curl", ["encrypt", "local_or_remote"], 2)
    assert_through(pair.server.finish(), _PYTHON, ["encrypt", "local_or_remote"], 2)
