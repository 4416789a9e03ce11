"""Buffers for large reads come from the heap (native/core/heap.c), not by a mapping each."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, free_port, require_program
from tests.shim.conftest import Build

_PYTHON = Path(sys.executable).name
#: What asyncio reads into, with the header of a bytes object (CPython's Lib/asyncio/selector_events.py).
_ASYNCIO = 256 * 1024 + 33


@pytest.mark.parametrize(
    ("size", "settings", "found"),
    [
        (_ASYNCIO, {}, "heap"),
        (_ASYNCIO, {"MALLOC_MMAP_THRESHOLD_": "131072"}, "mapped"),  # the user's word stays
        (1024 * 1024, {}, "mapped"),
    ],
)
def test_blocks_of_a_large_read(
    host: Host, build: Build, size: int, settings: dict[str, str], found: str
) -> None:
    heap = build("heap")
    assert host.run([heap, _ASYNCIO], shim=False) == "mapped\n"
    if not host.rehearse:
        assert host.run([heap, size], env=settings) == f"{found}\n"


_ECHO = """
import asyncio, sys
port, count = int(sys.argv[2]), int(sys.argv[3])
async def echo(reader, writer):
    while True:
        try:
            writer.write(await reader.readexactly(64))
        except asyncio.IncompleteReadError as end:
            assert end.partial == b""
            break
    writer.close()
    over.set()
async def serve():
    global over
    over = asyncio.Event()
    async with await asyncio.start_server(echo, "127.0.0.1", port):
        await over.wait()
async def ask():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for turn in range(count):
        writer.write(b"%064d" % turn)
        assert await reader.readexactly(64) == b"%064d" % turn
    writer.close()
    await writer.wait_closed()
asyncio.run({"serve": serve, "ask": ask}[sys.argv[1]]())
print("ok")
"""


def _cut(table: Path) -> int:
    """How often a mapping was cut to size, as glibc's realloc() does it."""
    return sum(int(n) for n in re.findall(r"^\s*(\d+) mremap", table.read_text(), re.M))


def test_asyncio_maps_no_memory_for_each_message(host: Host, tmp_path: Path) -> None:
    strace, port, count = require_program("strace"), free_port(), 2000
    words = [strace, "-f", "-c", "-U", "calls,name", "-e", "trace=mremap,recvfrom", "-o"]
    program = [sys.executable, "-c", _ECHO]
    server = host.server([*words, tmp_path / "server", *program, "serve", port, count], port)
    assert host.run([*words, tmp_path / "client", *program, "ask", port, count], timeout=60) == "ok\n"
    assert server.wait().endswith("ok\n")
    if host.rehearse:
        return
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=2, port=port)
    assert_balanced(log, port=port, min_pairs=1)
    assert max(_cut(tmp_path / end) for end in ("server", "client")) < count / 20
