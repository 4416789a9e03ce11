"""PostgreSQL: a process per connection that the parent accepts and a child serves, with psql and pgbench.

PostgreSQL refuses to run as root, so then everything here runs as another user, with that user's own agent.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import (
    Host,
    Program,
    assert_balanced,
    assert_carried,
    eventually,
    free_port,
    require_program,
)
from tests.programs.postgresql import DIRECTORIES, new_cluster, other_user

pytestmark = pytest.mark.program


class Database:
    """A running server and how to talk to it."""

    def __init__(self, host: Host, server: Program, port: int) -> None:
        self.host = host
        self.server = server
        self.port = port

    def psql(self, *words: str) -> list[str]:
        psql = require_program("psql", *DIRECTORIES)
        fixed = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", "-X", "-q", "-A", "-t"]
        return [psql, *fixed, "-v", "ON_ERROR_STOP=1", *words, "postgres"]

    def query(self, *statements: str, feed: bytes | None = None) -> str:
        words = [word for statement in statements for word in ("-c", statement)]
        return self.host.run(self.psql(*words), feed=feed).strip()

    def finish(self, min_connections: int) -> None:
        """End the server and check both ends' lines."""
        self.host.stop(self.server, number=signal.SIGINT)
        log = self.host.finish()
        assert_carried(log, "psql", min_connections=min_connections, role="client", port=self.port)
        assert_carried(log, "postgres", min_connections=min_connections, role="server", port=self.port)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A directory as initdb makes it, once for all tests, which copy it."""
    with new_cluster() as data:
        yield data


@pytest.fixture
def database(make_host: MakeHost, cluster: Path) -> Database:
    postgres = require_program("postgres", *DIRECTORIES)
    host = make_host(user=other_user())
    host.run(["cp", "-a", cluster, host.dir / "data"], shim=False)
    port = free_port()
    server = host.server([postgres, "-D", host.dir / "data", "-p", str(port)], port)
    found = Database(host, server, port)
    eventually(
        lambda: host.run(found.psql("-c", "SELECT 1"), check=False).strip() == "1", "the first answer", 15
    )
    return found


def test_queries(database: Database) -> None:
    assert database.query("SELECT 6 * 7") == "42"
    several = ["CREATE TABLE t (n int)", "INSERT INTO t VALUES (1), (2)", "SELECT sum(n) FROM t"]
    assert database.query(*several) == "3"
    failed = database.host.run(database.psql("-c", "SELECT 1/0"), check=False)
    assert "division by zero" in failed
    database.finish(4)


def test_large_results(database: Database) -> None:
    """Many small rows, and a few very large values."""
    rows = database.query("SELECT n, md5(n::text) FROM generate_series(1, 100000) n").splitlines()
    assert len(rows) == 100_000
    for row in rows:
        number, _, digest = row.partition("|")
        assert digest == hashlib.md5(number.encode()).hexdigest()
    values = database.query("SELECT repeat(n::text, 5000000) FROM generate_series(1, 4) n").splitlines()
    assert [(v[0], len(v), len(set(v))) for v in values] == [(str(n), 5_000_000, 1) for n in range(1, 5)]
    database.finish(3)


def test_copy_in_and_out(database: Database) -> None:
    lines = "".join(f"{n}\t{hashlib.md5(b'%d' % n).hexdigest() * 4}\n" for n in range(50_000)).encode()
    database.query("CREATE TABLE c (n int, text text)")
    database.query("COPY c FROM STDIN", feed=lines)
    back = database.query("COPY (SELECT * FROM c ORDER BY n) TO STDOUT")
    assert hashlib.sha256(back.encode() + b"\n").digest() == hashlib.sha256(lines).digest()
    database.finish(4)


def test_listen_and_notify(database: Database) -> None:
    """A client that sleeps in the server's hands until another one's transaction commits."""
    read_end, write_end = os.pipe()
    try:
        with os.fdopen(read_end, "rb") as standard_input:
            listener = database.host.spawn(database.psql(), stdin=standard_input)
        os.write(write_end, b"LISTEN news; SELECT 'listening';\n")
        listener.wait_text("listening")
        for n in range(5):
            database.query(f"NOTIFY news, 'item-{n}'")

        def heard() -> bool:
            # psql looks for notifications after each statement.
            os.write(write_end, b"SELECT 1;\n")
            return "item-4" in listener.text()

        eventually(heard, "the last notification", pause=0.05)
    finally:
        os.close(write_end)
    text = listener.wait()
    assert re.findall(r"item-(\d)", text) == ["0", "1", "2", "3", "4"]
    database.finish(7)


def test_cancel(database: Database) -> None:
    """A cancel request is a connection of its own, and ends a query that another connection waits for."""
    sleeper = database.host.spawn(database.psql("-c", "SELECT pg_sleep(60)"))
    active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
    eventually(lambda: database.query(active) == "1", "the sleeping query", pause=0.05)
    sleeper.send(signal.SIGINT)  # psql's answer to Ctrl-C is the cancel request
    text = sleeper.wait(check=False)
    assert "canceling statement due to user request" in text
    database.finish(2)


def test_ended_by_the_server(database: Database) -> None:
    """pg_terminate_backend, then the server's immediate end: clients learn of both."""
    sleepers = [database.host.spawn(database.psql("-c", "SELECT pg_sleep(60)")) for _ in range(2)]
    pids = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
    eventually(lambda: len(database.query(pids).split()) == 2, "two sleeping queries", pause=0.05)
    assert database.query(f"SELECT pg_terminate_backend(pid) FROM ({pids} LIMIT 1) one") == "t"
    eventually(lambda: sum(s.running for s in sleepers) == 1, "the first sleeper's end")
    database.host.stop(database.server, number=signal.SIGQUIT)
    for sleeper in sleepers:
        assert "terminat" in sleeper.wait(check=False)
    log = database.host.finish()
    assert_carried(log, "psql", min_connections=4, role="client", port=database.port)


@pytest.mark.parametrize("more", [(), ("-C",), ("-M", "prepared", "-S")], ids=["write", "reconnect", "read"])
def test_pgbench(database: Database, more: tuple[str, ...]) -> None:
    pgbench = require_program("pgbench", *DIRECTORIES)
    fixed = [pgbench, "-h", "127.0.0.1", "-p", str(database.port), "-U", "tester"]
    database.host.run([*fixed, "-i", "-q", "postgres"])
    count = "20" if "-C" in more else "200"
    report = database.host.run([*fixed, "-n", "-c", "8", "-j", "2", "-t", count, *more, "postgres"])
    done = 8 * int(count)
    assert f"transactions actually processed: {done}/{done}" in report, report
    if "-S" not in more:
        assert database.query("SELECT count(*) FROM pgbench_history") == str(done)
    database.host.stop(database.server, number=signal.SIGINT)
    log = database.host.finish()
    expected = done if "-C" in more else 8
    assert_carried(log, "pgbench", min_connections=expected, role="client", port=database.port)
    assert_carried(log, "postgres", min_connections=expected, role="server", port=database.port)
    assert_balanced(log, port=database.port, min_pairs=expected)
