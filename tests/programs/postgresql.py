"""A PostgreSQL cluster for tests: made by initdb, copied by each test.  It refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import require_program
from tests.harness.hosts import DIRECTORY_PREFIX

DIRECTORIES = [str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
_SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
unix_socket_directories = ''
listen_addresses = '127.0.0.1'
shared_buffers = 16MB
max_connections = 40
autovacuum = off
# How results are sent is what is tested, not how many processes help to find them.
max_parallel_workers_per_gather = 0
log_min_messages = warning
"""


def other_user() -> str | None:
    """As whom the server is to run; None: as we do.  Skips where there is nobody."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextmanager
def new_cluster(settings: str = "") -> Iterator[Path]:
    """A data directory with a user `tester` whom everybody may be; `settings` come last in its file."""
    initdb = require_program("initdb", *DIRECTORIES)
    user = other_user()
    base = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
    try:
        if user is not None:
            shutil.chown(base, user)
        data = base / "data"
        command = [initdb, "-D", str(data), "-U", "tester", "-A", "trust", "-N"]
        command += ["--no-locale", "-E", "UTF8"]
        done = subprocess.run(
            command, user=user, capture_output=True, text=True, cwd=base, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with (data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS + settings)
        yield data
    finally:
        shutil.rmtree(base)
