"""The programs of examples/legacy_apps, built and run as their README says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    eventually,
    free_port,
    require_program,
)

pytestmark = pytest.mark.program

_APPS = Path(__file__).resolve().parents[2] / "examples" / "legacy_apps"
_CLIENTS = Path(__file__).parent / "clients"
_PYTHON = Path(sys.executable).name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the two C programs."""
    where = tmp_path_factory.mktemp("legacy")
    command = [require_program("make"), "-C", str(_APPS), f"BIN={where}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return where


def _settled(host: Host, count: int) -> None:
    if not host.rehearse:
        eventually(lambda: len(host.connlog()) >= count, f"{count} lines in the connection log")


def test_key_value_session(host: Host, built: Path) -> None:
    port = free_port()
    host.server([built / "kv_server", "127.0.0.1", str(port)], port)
    session = b"SET colour blue sky\nGET colour\nCOUNT\nDEL colour\nGET colour\nDEL colour\nNONSENSE\nQUIT\n"
    answers = host.run([sys.executable, _APPS / "line_client.py", "127.0.0.1", str(port)], feed=session)
    expected = ["OK", "VALUE blue sky", "COUNT 1", "OK", "NONE", "NONE", "ERROR", "BYE"]
    assert answers.splitlines() == expected
    _settled(host, 2)
    log = host.finish()
    assert_carried(log, _PYTHON, role="client", port=port)
    assert_carried(log, "kv_server", role="server", port=port)
    assert_balanced(log, port=port)


def test_key_value_load(host: Host, built: Path) -> None:
    port = free_port()
    host.server([built / "kv_server", "127.0.0.1", str(port)], port)
    words = ["127.0.0.1", str(port), "--load", "8", "8000"]
    report = host.run([sys.executable, _APPS / "line_client.py", *words])
    assert re.fullmatch(r"\d+ requests/s, p50 [\d.]+ us, p99 [\d.]+ us\n", report), report
    _settled(host, 16)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=8, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=8)


@pytest.mark.parametrize(("connections", "size"), [(1, 1), (1, 10_000_000), (40, 300_000)])
def test_echo(host: Host, built: Path, connections: int, size: int) -> None:
    """Edge-triggered epoll, half-close, and both directions full at once."""
    port = free_port()
    host.server([built / "echo_server", "127.0.0.1", str(port)], port)
    client = [sys.executable, _CLIENTS / "echo_client.py", str(port), str(connections), str(size)]
    assert host.run(client).strip() == "ok"
    _settled(host, 2 * connections)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=connections, role="client", port=port)
    assert_carried(log, "echo_server", min_connections=connections, role="server", port=port)
    assert_balanced(log, port=port, min_pairs=connections)


def test_plain_client(host: Host, built: Path) -> None:
    port = free_port()
    host.server([built / "echo_server", "127.0.0.1", str(port)], port)
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        plain.sendall(b"hello")
        plain.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: plain.recv(100), b"")) == b"hello"
    _settled(host, 1)
    assert_plain(host.finish(), "echo_server", role="server", port=port)
