"""What the shim remembers of descriptors stays true: forks among threads, both ends in one process, reuse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_mostly_carried,
    connections,
    eventually,
    free_port,
)
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name


def _settled(host: Host, lines: int) -> None:
    eventually(lambda: host.rehearse or len(host.connlog()) == lines, f"{lines} lines in the log")


def test_client_and_server_in_one_process(host: Host) -> None:
    """Their link is one file there: closing a descriptor of it drops the lock that others look for."""
    port = free_port()
    assert host.run([sys.executable, _HERE / "same_process.py", port]) == "ok\n"
    _settled(host, 6)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=6)
    assert_balanced(log, min_pairs=3)


def test_number_of_a_link(host: Host) -> None:
    """A program that wants the number of a link's descriptor gets it, and the link goes on."""
    port = free_port()
    host.server([sys.executable, _HERE / "echo_all.py", port], port)
    assert host.run([sys.executable, _HERE / "onto_hidden.py", port]) == "well\n"
    _settled(host, 8)
    assert_carried(host.finish(), _PYTHON, min_connections=8)


@pytest.mark.parametrize("way", ["fails", "late"])
@pytest.mark.parametrize("carrier", ["shm", "unix"])
def test_connect_that_waits(host: Host, way: str, carrier: str) -> None:
    """It claims nothing before it is established: a stranger that gets its port is not taken for it."""
    if carrier == "unix":
        host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
    port = free_port()
    assert host.run([sys.executable, _HERE / "pending.py", port, way], timeout=60) == "well\n"
    log = host.finish()
    assert host.rehearse or connections(log, role="server", port=port)  # it was on
    tied = [c for c in connections(log) if c.implementation == carrier and c.tx_bytes]
    assert host.rehearse or sorted(c.role for c in tied) == ([] if way == "fails" else ["client", "server"])


@pytest.mark.parametrize("forks", ["forks", "nofork"])
def test_forks_while_connections_come_and_go(host: Host, build: Build, forks: str) -> None:
    """Each is closed once: a reference that is counted wrongly would keep its line from the log."""
    port, count = free_port(), 200
    server = host.server([build("again"), forks, port, count], port)
    assert host.run([sys.executable, _HERE / "connects.py", port, count, 0.001], timeout=60) == "ok\n"
    server.wait()
    _settled(host, 2 * count)
    log = host.finish()
    if not host.rehearse:
        assert len(connections(log, program="again", role="server")) == count
    assert_mostly_carried(log, "again", 0.9, min_connections=count, role="server")


def test_socket_that_connects_again(host: Host, build: Build) -> None:
    port = free_port()
    server = host.server([build("again"), "serve", port, 2], port)
    assert host.run([build("again"), "twice", port]) == "ok\n"
    server.wait()
    _settled(host, 4)
    assert_carried(host.finish(), "again", min_connections=4)


def test_epoll_set_that_is_watched(host: Host) -> None:
    port = free_port()
    server = host.server([sys.executable, _HERE / "nested.py", port], port)
    host.run([sys.executable, _HERE / "water.py", port])
    assert server.wait() == "ok\n"
    assert_carried(host.finish(), _PYTHON, role="server")


_SAYS = {
    "dup_fails": [
        "bad flags: EINVAL",
        "bad descriptor: EBADF",
        "bad descriptor: EBADF",
        "beyond the limit: EBADF",
        "still there",
    ],
    "exec_fails": ["exec: E2BIG", "still there"],
    "cancelled_close": ["forks at once: 1", "still there"],
    "readable": ["readable: 7", "readable: 4", "readable: 0"],
}


@pytest.mark.parametrize("name", _SAYS)
@pytest.mark.parametrize("carrier", ["tcp", "shm", "unix"])
def test_calls_that_fail_change_nothing(host: Host, build: Build, name: str, carrier: str) -> None:
    if carrier == "unix":
        host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
    assert host.run([build("books"), name], shim=carrier != "tcp").splitlines() == _SAYS[name]
    if carrier != "tcp":
        assert_carried(host.finish(), "books", carrier)


@pytest.mark.parametrize("shim", [False, True])
def test_exchange_among_threads(host: Host, build: Build, shim: bool) -> None:
    """Duplicates that other threads make or close in the moment in which a unix socket takes their place."""
    host.set_policy('[[rule]]\nprohibit = ["shm"]\n')
    assert host.run([build("exchanged"), "400"], shim=shim, timeout=120) == "wrong: 0\n"
    if shim:
        _settled(host, 800)
        assert_carried(host.finish(), "exchanged", "unix", min_connections=800)
