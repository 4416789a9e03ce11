"""Rings grow to what bulk needs and give it back: when their connection is idle, and at its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.harness import Host, Program, assert_carried, eventually, free_port

_BULK = Path(__file__).parent / "bulk.py"
_COUNT = 100
_MEGABYTE = 1 << 20


def _link_bytes(program: Program) -> int:
    """Memory in the links of a process, whoever has written it."""
    links = [fd for fd in Path(f"/proc/{program.pid}/fd").iterdir() if "bertha-link" in str(fd.readlink())]
    assert links
    return sum(os.stat(fd).st_blocks * 512 for fd in links)


def test_memory_of_rings_comes_back(host: Host) -> None:
    port = free_port()
    server = host.server([sys.executable, _BULK, "server", port, _COUNT], port)
    read, write = os.pipe()
    client = host.spawn([sys.executable, _BULK, "client", port, _COUNT], stdin=read)
    os.close(read)
    client.wait_text("moved", timeout=60)
    if host.rehearse:
        os.close(write)
        client.wait()
        return
    idle = _COUNT * 64 * 1024
    eventually(lambda: _link_bytes(client) < idle, "memory of idle connections to come back")
    os.write(write, b"\n")
    client.wait_text("closed")
    eventually(lambda: _link_bytes(client) < idle, "the connections' end")
    os.close(write)
    client.wait()
    server.wait()
    log = host.finish()
    for role in ("client", "server"):
        lines = assert_carried(log, Path(sys.executable).name, role=role)
        assert [(c.tx_bytes, c.rx_bytes) for c in lines] == [(_MEGABYTE, _MEGABYTE)] * _COUNT
