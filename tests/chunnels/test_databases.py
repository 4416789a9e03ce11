"""PostgreSQL (a process for each connection, as a user of its own) and memcached (threads) through chunnels
between two hosts, which the server's policy alone dictates."""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chunnels.conftest import Capture, Pair
from tests.chunnels.test_redis import assert_through
from tests.harness import Connection, Program, assert_only_tls, eventually, free_port, require_program
from tests.programs.postgresql import DIRECTORIES, new_cluster, other_user

pytestmark = [pytest.mark.program, pytest.mark.net]

_CLIENTS = Path(__file__).parents[1] / "programs" / "clients"
_PYTHON = Path(sys.executable).name
_SECRET = "a-secret-that-must-not-cross-the-wire"
_DAGS = [
    ("compress(level=3) |> encrypt()", ["compress", "encrypt", "local_or_remote"]),
    ("encrypt()", ["encrypt", "local_or_remote"]),
]
dictated = pytest.mark.parametrize(("dag", "types"), _DAGS, ids=["compress+encrypt", "encrypt"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """As initdb makes it, reachable from other hosts."""
    with new_cluster("listen_addresses = '*'\n") as data:
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all all trust\n")
        yield data


# A client by monkey: ADDRESS PORT.
_PSYCOPG = """
import sys
from bertha_socket import monkey
monkey.patch_all()
import psycopg
with psycopg.connect(f"host={sys.argv[1]} port={sys.argv[2]} user=tester dbname=postgres") as connection:
    with connection.cursor().copy("COPY c TO STDOUT") as copy:
        assert sum(1 for _ in copy.rows()) == 20000
    big = "y" * 3000000
    assert connection.execute("SELECT %s", (big,)).fetchone() == (big,)
print("ok")
"""

# ... and one by new(): ADDRESS PORT.
_MEMCACHED = """
import sys
import bertha_socket
with bertha_socket.new("client").connect((sys.argv[1], int(sys.argv[2]))) as connection:
    def say(words, end):
        connection.send(words)
        got = b""
        while not got.endswith(end):
            got += connection.recv(30)
        return got
    for i in range(20):
        value = b"%d" % i * 1000
        assert say(b"set k 0 0 %d\\r\\n%s\\r\\n" % (len(value), value), b"\\r\\n") == b"STORED\\r\\n"
        assert value in say(b"get k\\r\\n", b"END\\r\\n")
print("ok")
"""


# PostgreSQL's own protocol, by new(): ADDRESS PORT SQL.
_BY_NEW = """
import struct, sys
import bertha_socket
def message(kind, body):
    return kind + struct.pack(">I", len(body) + 4) + body
with bertha_socket.new("client").connect((sys.argv[1], int(sys.argv[2]))) as connection:
    assert [c.type for c in connection.plan.chunnels] == ["encrypt"], connection.plan
    got = b""
    def answers():
        global got
        while True:
            while len(got) < 5 or len(got) < 1 + struct.unpack_from(">I", got, 1)[0]:
                got += connection.recv(30)
            size = 1 + struct.unpack_from(">I", got, 1)[0]
            one, got = got[:size], got[size:]
            yield one[:1], one[5:]
            if one[:1] == b"Z":
                return
    connection.send(message(b"", struct.pack(">I", 3 << 16) + b"user\\0tester\\0database\\0postgres\\0\\0"))
    assert b"E" not in [kind for kind, _ in answers()]
    connection.send(message(b"Q", sys.argv[3].encode() + b"\\0"))
    print([body[6:].decode() for kind, body in answers() if kind == b"D"])
    connection.send(message(b"X", b""))
"""

# By psycopg behind monkey, with threads and asyncio: ADDRESS PORT SECRET.
_PSYCOPG_MORE = """
import asyncio, sys, threading
from bertha_socket import monkey
monkey.patch_all()
import psycopg
where = f"host={sys.argv[1]} port={sys.argv[2]} user=tester dbname=postgres"
secret = sys.argv[3]
def one(n):
    with psycopg.connect(where) as connection, connection.cursor(binary=True) as cursor:
        for i in range(50):
            assert cursor.execute("SELECT %s::text || %s", (secret, str(i))).fetchone() == (f"{secret}{i}",)
        done.append(n)
done = []
threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert sorted(done) == [0, 1, 2, 3]
async def several():
    async with await psycopg.AsyncConnection.connect(where) as connection:
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::int", (i,)) for i in range(100)]
            assert [(await c.fetchone())[0] for c in cursors] == list(range(100))
asyncio.run(several())
with psycopg.connect(where) as connection:
    connection.execute("CREATE TABLE t (n int, s text)")
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for i in range(20000):
            copy.write_row((i, secret))
    found = connection.execute("SELECT count(*), max(n) FROM t WHERE s = %s", (secret,)).fetchone()
    assert found == (20000, 19999)
    try:
        connection.execute("SELECT 1/0")
    except psycopg.errors.DivisionByZero:
        print("ok")
"""


class Database:
    """PostgreSQL at the pair's server, under bertha-run as a user who is not its agent's."""

    def __init__(self, pair: Pair, cluster: Path) -> None:
        self.pair = pair
        host = pair.server
        host.open_to_other_users()
        host.run(["cp", "-a", cluster, host.dir / "data"], shim=False)
        self.port = free_port()
        postgres = require_program("postgres", *DIRECTORIES)
        command = [postgres, "-D", host.dir / "data", "-p", self.port]
        self.program: Program = host.spawn(command, user=other_user())
        host.wait_port(self.program, self.port)
        eventually(lambda: self.query("SELECT 1", check=False) == "1", "the first answer", 30)

    def client(self, name: str, *words: object) -> list[object]:
        """A client program's command line."""
        found = require_program(name, *DIRECTORIES)
        return [found, "-h", self.pair.address, "-p", self.port, "-U", "tester", *words]

    def query(self, statement: str, *, check: bool = True, feed: bytes | None = None) -> str:
        """What psql prints."""
        words = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement, "postgres"]
        return self.pair.client.run(self.client("psql", *words), feed=feed, check=check, timeout=60).strip()

    def cancel(self) -> None:
        """A cancel request is a connection of its own, which the server closes without a word."""
        sleeper = self.pair.client.spawn(self.client("psql", "-X", "-c", "SELECT pg_sleep(300)", "postgres"))
        active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(300)'"
        eventually(lambda: self.query(active) == "1", "the sleeping query", 30, pause=0.05)
        sleeper.send(signal.SIGINT)
        assert "canceling statement due to user request" in sleeper.wait(60, check=False)

    def bench(self, count: int, *options: str) -> None:
        """Eight clients of pgbench."""
        words = ["-n", "-c", 8, "-j", 2, "-t", count, *options, "postgres"]
        report = self.pair.client.run(self.client("pgbench", *words), timeout=60)
        assert f"transactions actually processed: {8 * count}/{8 * count}" in report, report

    def finish(self, types: list[str], least: dict[str, int]) -> None:
        """Ends the server and looks at what both ends' logs name."""
        self.pair.server.stop(self.program, number=signal.SIGINT)
        logs = [[c for c in host.finish() if _answered(c)] for host in (self.pair.client, self.pair.server)]
        for program, count in least.items():
            assert_through(logs[0], program, types, count)
        assert_through(logs[1], "postgres", types, sum(least.values()))


def _answered(connection: Connection) -> bool:
    """Not a cancel request: 16 bytes, and no answer."""
    return sorted((connection.tx_bytes, connection.rx_bytes)) != [0, 16]


@dictated
def test_postgresql(pair: Pair, cluster: Path, capture: Capture, dag: str, types: list[str]) -> None:
    """Short queries, large values, lines both ways, a cancel request; connections that stay, and many.

    Nothing but TLS crosses the network, of any of it.
    """
    pair.dictate(dag)
    database = Database(pair, cluster)
    assert database.query(f"SELECT '{_SECRET}'") == _SECRET
    lines = "".join(f"{n}\t{hashlib.md5(b'%d' % n).hexdigest()}\n" for n in range(20_000)).encode()
    database.query("CREATE TABLE c (n int, text text)")
    database.query("COPY c FROM STDIN", feed=lines)
    assert database.query("COPY (SELECT * FROM c ORDER BY n) TO STDOUT").encode() + b"\n" == lines
    value = database.query("SELECT repeat('7', 5000000)")
    assert (len(value), set(value)) == (5_000_000, {"7"})
    assert "division by zero" in database.query("SELECT 1/0", check=False)
    database.cancel()
    pair.client.run(database.client("pgbench", "-i", "-q", "postgres"), timeout=60)
    database.bench(50)
    database.bench(3, "-C")
    database.bench(50, "-M", "prepared", "-S")
    assert database.query("SELECT count(*) FROM pgbench_history") == str(8 * (50 + 3))
    least = {"pgbench": 1 + 8 + 24 + 8, "psql": 10}
    if importlib.util.find_spec("psycopg") is not None:
        command = [sys.executable, "-c", _PSYCOPG, pair.address, database.port]
        assert pair.client.run(command, shim=False, timeout=60).strip() == "ok"
        least[_PYTHON] = 1
    # Words of a few bytes more: four are found in some megabytes of anything, now and then.
    without = (_SECRET.encode(), b"SELECT", b"COPY c ", b"UPDATE", b"tester", b"c4ca4238a0b923820dcc509a")
    count = sum(least.values())
    assert_only_tls(capture, database.port, at_least=500_000, connections=count, without=without)
    database.finish(types, least)


def test_psycopg_by_monkey(pair: Pair, cluster: Path, capture: Capture) -> None:
    """Threads, asyncio with a pipeline, COPY, an error: the server is under bertha-run and dictates TLS."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'psycopg[binary]'")
    pair.dictate("encrypt()")
    database = Database(pair, cluster)
    command = [sys.executable, "-c", _PSYCOPG_MORE, pair.address, database.port, _SECRET]
    assert pair.client.run(command, shim=False, timeout=90).strip() == "ok"
    without = (_SECRET.encode(), b"SELECT", b"COPY", b"tester")
    assert_only_tls(capture, database.port, at_least=100_000, connections=6, without=without)
    database.finish(["encrypt", "local_or_remote"], {_PYTHON: 6})


def test_postgresqls_protocol_by_new(pair: Pair, cluster: Path, capture: Capture) -> None:
    """An endpoint that names no chunnel, and runs `encrypt` itself: in the log it says where."""
    pair.dictate("encrypt()")
    database = Database(pair, cluster)
    query = f"SELECT '{_SECRET}' || n FROM generate_series(1, 3) n"
    command = [sys.executable, "-c", _BY_NEW, pair.address, database.port, query]
    said = pair.client.run(command, shim=False, timeout=60).strip()
    assert said == str([f"{_SECRET}{n}" for n in (1, 2, 3)])
    assert_only_tls(
        capture, database.port, at_least=500, connections=1, without=(_SECRET.encode(), b"SELECT")
    )
    own = [c for c in pair.client.connlog() if c.program == _PYTHON]
    assert [c.raw["chunnels"][0] for c in own] == [
        {"type": "encrypt", "implementation": "python/native", "where": "application"}
    ]
    database.finish(["encrypt", "local_or_remote"], {_PYTHON: 1})


@dictated
def test_memcached(pair: Pair, capture: Capture, dag: str, types: list[str]) -> None:
    """One thread accepts, four serve; the capture has none of the protocol's words."""
    pair.dictate(dag)
    port = free_port()
    words = ["-l", pair.address, "-p", port, "-U", "0", "-t", "4", "-u", "root"]
    pair.server.server([require_program("memcached"), *words], port)
    command = [sys.executable, _CLIENTS / "memcached_client.py", port]
    for connections, rounds, size in (50, 5, 2000), (3, 3, 900_000):
        done = pair.client.run([*command, connections, rounds, size, pair.address], timeout=60)
        assert done.split()[-1] == "ok"
    by_monkey = [sys.executable, "-m", "bertha_socket.monkey", *command[1:], 5, 5, 2000, pair.address]
    assert pair.client.run(by_monkey, shim=False, timeout=60).split()[-1] == "ok"
    by_new = [sys.executable, "-c", _MEMCACHED, pair.address, port]
    assert pair.client.run(by_new, shim=False, timeout=60).strip() == "ok"
    without = (b"STORED", b"VALUE k", b"set k", b"get k")
    assert_only_tls(capture, port, at_least=100_000, connections=50, without=without)
    assert_through(pair.client.finish(), _PYTHON, types, 59)
    assert_through(pair.server.finish(), "memcached", types, 59)
