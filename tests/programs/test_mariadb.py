"""MariaDB: a thread for each connection, and an io_uring for its files alone."""

from __future__ import annotations

import hashlib
import os
import pwd

import pytest

from tests.conftest import MakeHost
from tests.harness import assert_balanced, assert_carried, eventually, free_port, require_program

pytestmark = pytest.mark.program

_BYTES = 3_000_000
_SQL = f"""
create table d.t (n int primary key, bytes longblob);
insert into d.t values (1, repeat('m', {_BYTES}));
select length(bytes), md5(bytes), bytes from d.t;
"""


def _user() -> str | None:
    """As whom it is to run: root has another one do it, as MariaDB wants it."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("mysql").pw_name
    except KeyError:
        pytest.skip("MariaDB does not run as root, and there is no user mysql")


def test_queries(make_host: MakeHost) -> None:
    """Rows of some bytes and of megabytes, eight clients at once, one that is killed by another."""
    programs = ("mariadbd", "mariadb-install-db", "mariadb", "mariadb-slap")
    daemon, install, client, slap = (require_program(name) for name in programs)
    host = make_host(user=_user())
    port = free_port()
    data = ["--no-defaults", f"--datadir={host.dir}/data"]
    words = ["--auth-root-authentication-method=normal", "--skip-name-resolve", "--skip-test-db"]
    host.run([install, *data, *words], shim=False, timeout=60)
    words = [
        f"--port={port}",
        "--bind-address=127.0.0.1",
        f"--socket={host.dir}/socket",
        "--skip-name-resolve",
    ]
    words += ["--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"]
    server = host.server([daemon, *data, *words], port)
    eventually(lambda: "ready for connections" in server.text(), "MariaDB", 30)
    at = ["--no-defaults", "-h127.0.0.1", f"-P{port}", "-uu", "-pp"]
    root = [client, "--no-defaults", "-uroot", "-S", host.dir / "socket"]
    granted = (
        "create user u@'127.0.0.1' identified by 'p'; grant all on *.* to u@'127.0.0.1'; create database d"
    )
    host.run([*root, "-e", granted], shim=False)

    said = host.run([client, *at, "-N", "--max-allowed-packet=16M", "-e", _SQL])
    size, digest, text = said.split()
    assert (int(size), text) == (_BYTES, "m" * _BYTES)
    assert digest == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    load = ["--concurrency=8", "--auto-generate-sql", "--auto-generate-sql-load-type=mixed"]
    host.run([slap, *at, *load, "--number-of-queries=800"], timeout=60)
    sleeper = host.spawn([client, *at, "-e", "select sleep(30)"])
    find = "select id from information_schema.processlist where info = 'select sleep(30)'"
    eventually(lambda: host.run([*root, "-Ne", find], shim=False) != "", "the query")
    host.run([*root, "-e", "kill " + host.run([*root, "-Ne", find], shim=False)], shim=False)
    eventually(lambda: not sleeper.running, "the end of the killed one")
    assert "Lost connection" in sleeper.text()

    host.stop(server)
    log = host.finish()
    assert_carried(log, "mariadbd", "shm", min_connections=10, role="server", port=port)
    assert_carried(log, "mariadb-slap", "shm", min_connections=8, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=10)
    if "Using io_uring" in server.text():  # else the system forbids it, or this MariaDB was built without
        assert not any("io_uring" in (c.reason or "") for c in log)
