"""memcached: a multi-threaded libevent server whose accepting thread hands connections to others."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, free_port, require_program

pytestmark = pytest.mark.program
_CLIENT = Path(__file__).parent / "clients" / "memcached_client.py"


@pytest.mark.parametrize(("connections", "rounds", "size"), [(1, 300, 50), (100, 10, 2000), (4, 5, 900_000)])
def test_set_and_get(host: Host, connections: int, rounds: int, size: int) -> None:
    port = free_port()
    words = ["-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "4", "-u", getpass.getuser()]
    host.server([require_program("memcached"), *words], port)
    client = [sys.executable, _CLIENT, str(port), str(connections), str(rounds), str(size)]
    assert host.run(client).split()[-1] == "ok"
    log = host.finish()
    python = Path(sys.executable).name
    assert_carried(log, python, min_connections=connections, role="client", port=port)
    assert_carried(log, "memcached", min_connections=connections, role="server", port=port)
    assert_balanced(log, port=port, min_pairs=connections)
