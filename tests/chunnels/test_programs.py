"""Real programs of many kinds through chunnels between two hosts: every byte, both ways, both orders."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair
from tests.chunnels.test_redis import assert_through
from tests.harness import Host, Program, assert_only_tls, free_port, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]

_CLIENTS = Path(__file__).parents[1] / "programs" / "clients"
_PYTHON = Path(sys.executable).name
_BOTH = "compress() |> encrypt()"
_WHOLE = ["compress", "encrypt", "local_or_remote"]
_NGINX = """
daemon off;
worker_processes 2;
pid {dir}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 100000;
    client_body_temp_path {dir}/body;
    client_max_body_size 100m;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen {address}:{port};
        root {dir};
        location /answer {{ return 200 "answer\\n"; }}
    }}
}}
"""


# A client by bertha_socket.new: ADDRESS PORT.
_BY_NEW = """
import hashlib, sys
import bertha_socket
with bertha_socket.new("client").connect((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.send(b"GET /twenty HTTP/1.0\\r\\n\\r\\n")
    head, body = b"", hashlib.sha256()
    for data in connection:
        if not head.endswith(b"\\r\\n\\r\\n"):
            first, end, data = (head + data).partition(b"\\r\\n\\r\\n")
            head = first + end
        body.update(data)
print(body.hexdigest())
"""


# wrk's: so many requests of each of its threads, however fast they are; the rest of its time it waits.
_BOUNDED = """
local count = 0
function response()
  count = count + 1
  if count == 1000 then wrk.thread:stop() end
end
"""


def content(size: int) -> bytes:
    seed = hashlib.sha512(b"chunnels").digest()
    return (seed * (size // len(seed) + 1))[:size]


@pytest.mark.parametrize("mode", ["client-first", "server-first"])
def test_exchange(pair: Pair, mode: str) -> None:
    """Threads with blocking sockets, who speaks first, and the end in order (half-close)."""
    pair.dictate(_BOTH)
    port = free_port()
    pair.server.server([sys.executable, _CLIENTS / "exchange_server.py", mode, pair.address, str(port)], port)
    words = [mode, pair.address, str(port), "20", "5", "2000", "70000"]
    assert pair.client.run([sys.executable, _CLIENTS / "exchange_client.py", *words]).split()[-1] == "ok"
    assert_through(pair.client.finish(), _PYTHON, _WHOLE, 20)
    assert_through(pair.server.finish(), _PYTHON, _WHOLE, 20)


def start_nginx(host: Host, address: str) -> tuple[Program, int, str]:
    """The running server, its port, and the SHA-256 of `/twenty`."""
    port = free_port()
    host.open_to_other_users()
    (host.dir / "kilo").write_bytes(content(1024))
    (host.dir / "twenty").write_bytes(content(20_000_000))
    configuration = host.dir / "nginx.conf"
    configuration.write_text(_NGINX.format(dir=host.dir, address=address, port=port))
    command = [require_program("nginx"), "-p", host.dir, "-c", configuration]
    return host.server(command, port), port, hashlib.sha256(content(20_000_000)).hexdigest()


@pytest.mark.parametrize(
    ("dag", "types", "least"),
    [
        ("encrypt()", ["encrypt", "local_or_remote"], 40_000_000),
        (_BOTH, _WHOLE, 100_000),  # what is served is a few bytes, again and again
    ],
    ids=["encrypt", "compress+encrypt"],
)
def test_nginx(pair: Pair, capture: Capture, dag: str, types: list[str], least: int) -> None:
    """sendfile, workers of another user that share the listener, curl and wrk: nothing but TLS crosses the
    network, of a page, of a file that sendfile() sends, and under load."""
    pair.dictate(dag)
    nginx, port, digest = start_nginx(pair.server, pair.address)
    url = f"http://{pair.address}:{port}"
    curl = [require_program("curl"), "-sS", "--fail", "--max-time", "60"]
    assert pair.client.run([*curl, f"{url}/answer"]) == "answer\n"
    got = pair.client.dir / "got"
    pair.client.run([*curl, "-o", got, f"{url}/twenty"], timeout=90)
    assert got.read_bytes() == content(20_000_000)
    by_new = [sys.executable, "-c", _BY_NEW, pair.address, port]
    assert pair.client.run(by_new, shim=False, timeout=60).strip() == digest
    script = pair.client.dir / "bounded.lua"
    script.write_text(_BOUNDED)
    wrk = [require_program("wrk"), "-t", "2", "-c", "16", "-d", "2s", "-s", script]
    report = pair.client.run([*wrk, f"{url}/kilo"])
    total = re.search(r"(\d+) requests in", report)
    assert total, report
    assert int(total.group(1)) > 100, report
    assert "Socket errors" not in report, report
    without = (b"HTTP/1.1", b"GET /", b"answer\n", b"nginx", content(64))
    assert_only_tls(capture, port, at_least=least, connections=19, without=without)
    log = pair.client.finish()
    assert_through(log, "curl", types, 2)
    assert_through(log, _PYTHON, types, 1)
    assert_through(log, "wrk", types, 16)
    pair.server.stop(nginx)
    assert_through(pair.server.finish(), "nginx", types, 19)


def test_bulk_in_both_directions(pair: Pair) -> None:
    """iperf3, whose control connection the server closes first."""
    pair.dictate(_BOTH)
    iperf3 = require_program("iperf3")
    port = free_port()
    pair.server.server([iperf3, "-s", "-p", str(port), "-B", pair.address], port)
    for direction in ([], ["-R"]):
        command = [iperf3, "-c", pair.address, "-p", str(port), "-n", "50M", *direction]
        assert "receiver" in pair.client.run(command, timeout=30)
    assert_through(pair.client.finish(), "iperf3", _WHOLE, 4)


def test_asyncio_client(pair: Pair) -> None:
    """A connect() that does not block: the connection is given to its carrier once it is established."""
    pair.dictate(_BOTH)
    port = free_port()
    server = [sys.executable, _CLIENTS / "exchange_server.py", "client-first", pair.address, str(port)]
    pair.server.server(server, port)
    client = pair.client.dir / "client.py"
    client.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(_CLIENTS)!r})\n"
        "from pattern import pattern\n"
        "async def one(number):\n"
        f"    reader, writer = await asyncio.open_connection({pair.address!r}, {port})\n"
        "    for turn in range(5):\n"
        "        writer.write(b'%d 3000 50000\\n' % number + pattern(number, 3000))\n"
        "        await writer.drain()\n"
        "        assert await reader.readexactly(50000) == pattern(number + 1, 50000)\n"
        "    writer.close()\n"
        "    await writer.wait_closed()\n"
        "async def main():\n"
        "    await asyncio.gather(*(one(2 * n) for n in range(20)))\n"
        "    print('ok')\n"
        "asyncio.run(main())\n"
    )
    assert pair.client.run([sys.executable, client]).split()[-1] == "ok"
    assert_through(pair.client.finish(), _PYTHON, _WHOLE, 20)
