"""Features of sockets one by one: what Linux answers for TCP, whatever carries the bytes."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    connections,
    eventually,
    free_port,
    require_program,
)
from tests.shim.conftest import Build

_POLICIES = {"tcp": None, "shm": None, "unix": '[[rule]]\nprohibit = ["shm"]\n'}
_WAYS = ["options", "sets", "nested", "exclusive", "pwait2", "vectors", "close_range", "linger", "fortified"]
_FORTIFIED = {"__read_chk", "__recv_chk", "__recvfrom_chk", "__poll_chk", "__ppoll_chk", "__dprintf_chk"}


@pytest.mark.parametrize("carrier", _POLICIES)
@pytest.mark.parametrize("way", [*_WAYS, "mmsg"])
def test_feature(host: Host, build: Build, way: str, carrier: str) -> None:
    if policy := _POLICIES[carrier]:
        host.set_policy(policy)
    program, port = build("features"), free_port()
    server = host.server([program, "serve", port, way], port)
    aware = carrier != "tcp"
    assert host.run([program, "ask", port, way], shim=aware) == "ok\n"
    assert server.wait() == "ok\n"
    count = 2 if way == "close_range" else 1
    lines = (2 if aware else 1) * count
    eventually(lambda: host.rehearse or len(host.connlog()) == lines, f"{lines} lines in the log")
    log = host.finish()
    if aware:
        assert_carried(log, "features", carrier, 2 * count)
        assert_balanced(log, min_pairs=count)
    else:
        assert_plain(log, "features", count)
    if way == "mmsg" and not host.rehearse:
        assert {(c.tx_bytes, c.rx_bytes) for c in log} == {(6, 6)}


@pytest.mark.parametrize("carrier", ["tcp", "shm"])
@pytest.mark.parametrize("way", ["oob", "mark", "mark-of-all", "mark-inline"])
def test_urgent_data(host: Host, build: Build, way: str, carrier: str) -> None:
    """It has its place in the kernel's stream: from there on the kernel carries the connection."""
    program, port = build("features"), free_port()
    server = host.server([program, "serve", port, way], port)
    assert host.run([program, "ask", port, way], shim=carrier == "shm") == "ok\n"
    assert server.wait() == "ok\n"
    lines = 2 if carrier == "shm" else 1
    eventually(lambda: host.rehearse or len(host.connlog()) == lines, f"{lines} lines in the log")
    log = host.finish()
    assert_carried(log, "features", carrier, role="server")
    for c in connections(log, role="client"):
        assert c.reason is not None and "only the kernel" in c.reason


def test_fortified_names_are_what_the_program_calls(build: Build) -> None:
    """Otherwise test_feature[fortified] would prove nothing."""
    nm = [require_program("nm"), "-D", "--undefined-only", str(build("features"))]
    listed = subprocess.run(nm, capture_output=True, text=True, timeout=20, check=True).stdout
    assert {line.split()[-1].partition("@")[0] for line in listed.splitlines()} >= _FORTIFIED


@pytest.mark.parametrize("carrier", ["shm", "unix"])
def test_one_port_of_several_processes(host: Host, build: Build, carrier: str) -> None:
    if policy := _POLICIES[carrier]:
        host.set_policy(policy)
    program, port = build("features"), free_port()
    server = host.server([program, "serve", port, "port"], port)
    eventually(lambda: server.text().count("listens\n") == 2, "two listeners")
    for _ in range(2):
        assert host.run([program, "ask", port, "echo", 20]) == "ok\n"
    eventually(lambda: host.rehearse or len(host.connlog()) == 80, "80 lines in the log")
    log = host.finish()
    lines = assert_carried(log, "features", carrier, 40, role="server")
    assert_balanced(log, min_pairs=40)
    assert host.rehearse or len({c.pid for c in lines}) == 2
