"""sendfile and splice, before the tie and after it, from files and pipes: over a ring, over a unix socket."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, free_port
from tests.shim.conftest import Build

_CLIENT = Path(__file__).parent / "three_times.py"
_NO_SHM = '[[rule]]\nprogram = "*"\nprohibit = ["shm"]\n'


@pytest.mark.parametrize("implementation", ["shm", "unix"])
def test_files_and_pipes(host: Host, build: Build, tmp_path: Path, implementation: str) -> None:
    if implementation == "unix":
        host.set_policy(_NO_SHM)
    text = tmp_path / "text"
    text.write_bytes(b"".join(b"%07d\n" % n for n in range(30_000)))
    port, count = free_port(), 3
    server = host.server([build("sender"), port, text, count], port)
    for _ in range(count):
        assert host.run([sys.executable, _CLIENT, port, text]) == "ok\n"
    server.wait()
    log = host.finish()
    assert_carried(log, "sender", implementation, count, role="server")
    assert_balanced(log, min_pairs=count)
