"""Packages that connect by themselves, with the shim loaded late beneath them.  Each is optional."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import Host, assert_carried, eventually, free_port, require_program
from tests.programs.postgresql import DIRECTORIES, new_cluster, other_user

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

_UVLOOP_REDIS = """
import asyncio, sys, uvloop
import redis.asyncio
async def main():
    client = redis.asyncio.Redis(port=int(sys.argv[1]))
    await asyncio.gather(*(client.set(f"k{i}", "v" * i) for i in range(50)))
    for i in range(50):
        assert await client.get(f"k{i}") == b"v" * i
    big = b"x" * 5_000_000
    await client.set("big", big)
    assert await client.get("big") == big
    await client.aclose()
uvloop.run(main())
"""

# Gives back what is posted: PORT CERTIFICATE KEY.
_UVLOOP_HTTP = """
import asyncio, ssl, sys, uvloop
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
async def serve(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
    size = int(head.split(b"content-length:")[1].split(b"\\r\\n")[0])
    if b"100-continue" in head:
        writer.write(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
    body = await reader.readexactly(size)
    writer.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % size + body)
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), ssl=context)
    await server.serve_forever()
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

_PSYCOPG = """
import asyncio, sys
import psycopg
where = f"host=127.0.0.1 port={sys.argv[1]} user=tester dbname=postgres"
with psycopg.connect(where, autocommit=True) as connection, psycopg.connect(where, autocommit=True) as other:
    connection.execute("CREATE TABLE t (n int, text text)")
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for n in range(20000):
            copy.write_row((n, str(n) * 10))
    rows = connection.execute("SELECT n, text FROM t ORDER BY n", binary=True).fetchall()
    assert rows == [(n, str(n) * 10) for n in range(20000)]
    assert connection.execute("SELECT repeat('7', 5000000)").fetchone() == ("7" * 5000000,)
    with connection.pipeline():
        answers = [connection.execute("SELECT %s::int", (n,)) for n in range(200)]
    assert [a.fetchone()[0] for a in answers] == list(range(200))
    connection.execute("LISTEN news")
    other.execute("NOTIFY news, 'item'")
    assert next(connection.notifies(timeout=30)).payload == "item"
async def query(n):
    async with await psycopg.AsyncConnection.connect(where) as connection:
        return (await (await connection.execute("SELECT %s::int", (n,))).fetchone())[0]
async def main():
    assert await asyncio.gather(*(query(n) for n in range(8))) == list(range(8))
asyncio.run(main())
"""

_REQUESTS = """
import requests, sys
with requests.Session() as session:
    answer = session.get(f"http://127.0.0.1:{sys.argv[1]}/1000", timeout=10)
assert answer.content == b"g" * 1000
"""

# Its calls' bytes as they are: no compiler of protocols is needed.
_GRPC = """
import concurrent.futures, os
import grpc
handlers = {
    "One": grpc.unary_unary_rpc_method_handler(lambda asked, _: asked[::-1]),
    "All": grpc.unary_stream_rpc_method_handler(lambda asked, _: (asked for _ in range(20))),
    "Both": grpc.stream_stream_rpc_method_handler(lambda asked, _: asked),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    one = channel.unary_unary("/t.T/One")
    for size in [*range(300), 70_000, 3_000_000]:
        asked = os.urandom(size)
        assert one(asked, timeout=20) == asked[::-1]
    big = os.urandom(1_000_000)
    assert list(channel.unary_stream("/t.T/All")(big, timeout=20)) == [big] * 20
    said = [big[:i] for i in range(500)]
    assert list(channel.stream_stream("/t.T/Both")(iter(said), timeout=20)) == said
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: one(b"%03d" % n, timeout=20), range(400)))
        assert answers == [(b"%03d" % n)[::-1] for n in range(400)]
server.stop(None).wait()
"""

_ZMQ = """
import hashlib, random, threading, zmq
context = zmq.Context()
router, published = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
port = router.bind_to_random_port("tcp://127.0.0.1")
def serve():
    while (message := router.recv_multipart())[-1] != b"over":
        router.send_multipart([message[0], hashlib.sha1(message[-1]).digest()])
server = threading.Thread(target=serve)
server.start()
def ask(seed):
    dealer, some = context.socket(zmq.DEALER), random.Random(seed)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    for _ in range(20):
        asked = [some.randbytes(some.choice((1, 100, 5000, 200_000))) for _ in range(30)]
        for message in asked:
            dealer.send(message)
        assert [dealer.recv() for _ in asked] == [hashlib.sha1(message).digest() for message in asked]
    dealer.close()
asking = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
for thread in asking:
    thread.start()
for thread in asking:
    thread.join()
last = context.socket(zmq.DEALER)
last.connect(f"tcp://127.0.0.1:{port}")
last.send(b"over")
server.join()
context.destroy(linger=0)
"""


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("run", [[sys.executable], _LATE], ids=["bertha-run", "monkey"])
def test_uvloop(host: Host, run: list[str]) -> None:
    """libuv's own calls, in an extension that is loaded after patch_all(), are seen; its ring for epoll_ctl()
    is declined (docs/decisions/0012)."""
    _need("uvloop")
    host.run([*run, "-c", _UVLOOP], shim=run is not _LATE)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=1, role="client")
    assert_carried(log, _PYTHON, min_connections=1, role="server")


@pytest.mark.parametrize("run", [[sys.executable], _LATE], ids=["bertha-run", "monkey"])
@pytest.mark.parametrize(("package", "program"), [("grpc", _GRPC), ("zmq", _ZMQ)])
def test_threads_of_their_own(host: Host, run: list[str], package: str, program: str) -> None:
    """gRPC asks what is left (TCP_INQ) and waits for edges, ZeroMQ for levels: both in threads of C++."""
    _need(package)
    host.run([*run, "-c", program], shim=run is not _LATE, timeout=60)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=1, role="client")
    assert_carried(log, _PYTHON, min_connections=1, role="server")


@pytest.mark.parametrize("run", [[sys.executable], _LATE], ids=["bertha-run", "monkey"])
def test_redis_over_uvloop(host: Host, run: list[str]) -> None:
    _need("uvloop")
    _need("redis")
    port = free_port()
    command = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server([*command, "--dir", str(host.dir)], port)
    host.run([*run, "-c", _UVLOOP_REDIS, port], shim=run is not _LATE, timeout=60)
    assert_carried(host.finish(), _PYTHON, min_connections=1, role="client", port=port)


def test_http_and_tls_over_uvloop(host: Host, certificate: tuple[Path, Path]) -> None:
    """A server by uvloop with curl: bulk both ways, with TLS by Python's ssl."""
    _need("uvloop")
    port = free_port()
    host.server([*_LATE, "-c", _UVLOOP_HTTP, port, *certificate], port, shim=False, label="uvloop")
    curl = [require_program("curl"), "-sS", "--fail", "--max-time", "60", "--cacert", certificate[0]]
    data = host.dir / "data"
    data.write_bytes(bytes(range(256)) * 8000)
    for _ in range(3):
        url = f"https://localhost:{port}/"
        host.run([*curl, "--data-binary", f"@{data}", "-o", host.dir / "got", url], timeout=60)
        assert (host.dir / "got").read_bytes() == data.read_bytes()
    eventually(lambda: len(host.connlog()) >= 6, "both ends in the connection log")
    log = host.finish()
    assert_carried(log, "curl", min_connections=3, role="client", port=port)
    assert_carried(log, _PYTHON, min_connections=3, role="server", port=port)


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


def test_psycopg(make_host: MakeHost) -> None:
    """The binary wheel brings a libpq of its own, which reads, writes and waits by its own calls."""
    _need("psycopg")
    host = make_host(user=other_user())
    port = free_port()
    with new_cluster() as data:
        host.run(["cp", "-a", data, host.dir / "data"], shim=False)
    postgres = require_program("postgres", *DIRECTORIES)
    server = host.server([postgres, "-D", host.dir / "data", "-p", port], port)
    eventually(lambda: "ready to accept" in server.text(), "PostgreSQL", 30)
    host.run([*_LATE, "-c", _PSYCOPG, port], shim=False, timeout=60)
    host.stop(server, number=signal.SIGINT)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=10, role="client", port=port)
    assert_carried(log, "postgres", min_connections=10, role="server", port=port)
