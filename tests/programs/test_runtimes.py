"""Runtimes with event loops of their own: libuv (node), and the selectors and blocking sockets of Java."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, free_port, require_program

pytestmark = pytest.mark.program
_HERE = Path(__file__).parent / "runtimes"


def test_node(host: Host) -> None:
    node = require_program("node")
    port = free_port()
    host.server([node, _HERE / "server.js", port], port)
    assert host.run([node, _HERE / "client.js", port], timeout=60) == "ok\n"
    log = host.finish()
    for role in ("client", "server"):
        assert_carried(log, "node", role=role, port=port, min_connections=10)
    assert_balanced(log, port=port)


def test_java(host: Host, tmp_path: Path) -> None:
    java, compiler = require_program("java"), require_program("javac")
    sources = [str(path) for path in _HERE.glob("*.java")]
    subprocess.run([compiler, "-d", str(tmp_path), *sources], check=True, timeout=100)
    port = free_port()
    server = host.server([java, "-cp", tmp_path, "Server", port, 8], port)
    assert host.run([java, "-cp", tmp_path, "Client", port, 8], timeout=60) == "ok\n"
    server.wait()
    log = host.finish()
    for role in ("client", "server"):
        assert_carried(log, "java", role=role, port=port, min_connections=8)
    assert_balanced(log, port=port)
