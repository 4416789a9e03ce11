"""Each call on a UDP socket does what it does without chunnels, for programs that do not know of any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.datagrams.conftest import Pair
from tests.harness import Host, Program, connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name
#: Calls of calls.py, whatever carries the datagrams.
NAMES = [
    "names",
    "sizes",
    "cut",
    "waiting",
    "registered_before",
    "with_asyncio",
    "threads",
    "forked",
    "ports",
    "segments",
    "merged",
]


def start_echo(host: Host, address: str, port: int, shim: bool = True) -> Program:
    program = host.spawn([sys.executable, _HERE / "echo_udp.py", address, port], shim=shim)
    eventually(lambda: "bound" in program.text(), "the echo's socket")
    return program


@pytest.mark.parametrize("shim", [True, False], ids=["carried", "the kernel's"])
def test_calls(pair: Pair, shim: bool) -> None:
    """The same program against the kernel proves that the expectations are the kernel's."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, pair.address, port, shim=shim)
    names = [*NAMES, "shut"]
    command = [sys.executable, _HERE / "calls.py", pair.address, port, *names]
    said = pair.client.run(command, shim=shim, timeout=120)
    assert said.split("\n")[:-1] == [f"{name} ok" for name in names]
    log = [c for c in connections(pair.client.finish(), program=_PYTHON) if c.raw["proto"] == "udp"]
    assert bool(log) == shim
    used = [c for c in log if c.rx_bytes > 0]
    assert all([x["type"] for x in c.raw["chunnels"]] == ["reliable", "local_or_remote"] for c in used), log
    assert not shim or len(used) >= len(names)


def test_ipv6(pair: Pair) -> None:
    for namespace, address in ((pair.netns.server, "fd83::1"), (pair.netns.client, "fd83::2")):
        command = namespace.wrap(["ip", "addr", "add", f"{address}/64", "dev", "v0", "nodad"])
        subprocess.run(command, check=True, timeout=20)
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    start_echo(pair.server, "fd83::1", port)
    command = [sys.executable, _HERE / "calls.py", "fd83::1", port, "names", "sizes"]
    assert pair.client.run(command, timeout=60).split() == ["names", "ok", "sizes", "ok"]
    found = [c for c in connections(pair.client.finish(), program=_PYTHON) if c.rx_bytes > 0]
    assert found
    assert all(c.raw["chunnels"][0]["type"] == "reliable" for c in found), found
