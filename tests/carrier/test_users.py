"""As whom others' chunnels run: what the agent says of a program, and nothing that the program gives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bertha_socket.carrier.loop import Loop
from bertha_socket.carrier.process import Processes, User
from tests.carrier.conftest import NATIVE, MakeCarrier
from tests.carrier.host import PENDING, PYTHON, REFUSED, CarrierHost, Status, chunnel, plan_of, tcp_pair

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root's carriers serve several users")


def _mirrored(host: CarrierHost, to: Path) -> Status:
    """A connection of its shim's whose plan writes a file."""
    plan = plan_of(chunnel("mirror", "none", to=str(to), direction="both"))
    a, b = tcp_pair()
    with a, b:
        program, status = host.carry(a, plan=plan)
        with program:
            program.sendall(b"hello")
            status.wait(*(s for s in range(6) if s != PENDING), seconds=20)
    return status


@root_only
def test_whoevers_memory_it_is(make_carrier: MakeCarrier, tmp_path: Path) -> None:
    """A program may have descriptors of root's files, and of root's memory: the agent makes some."""
    tmp_path.chmod(0o700)
    host = make_carrier()
    host.shim.close()
    host.shim = host.new_shim(uid=NOBODY)
    status = _mirrored(host, tmp_path / "stolen.pcap")
    assert status.state == REFUSED and "Permission denied" in status.detail
    assert not (tmp_path / "stolen.pcap").exists()


@root_only
def test_one_that_was_roots(make_carrier: MakeCarrier, tmp_path: Path) -> None:
    """It has changed its user since it came to the agent."""
    tmp_path.chmod(0o700)
    host = make_carrier()
    os.fchown(host.memfd, NOBODY, NOBODY)
    host.shim.close()
    host.shim = host.new_shim(uid=0)
    assert _mirrored(host, tmp_path / "stolen.pcap").state == REFUSED
    assert not (tmp_path / "stolen.pcap").exists()


@pytest.mark.parametrize("kind", ["python", "native"])
def test_what_is_no_memory(make_carrier: MakeCarrier, tmp_path: Path, kind: str) -> None:
    """Of that shim it takes nothing, and it serves the others."""
    if kind == "native" and not NATIVE.exists():
        pytest.skip("the native carrier is not built here")
    host = make_carrier(command=PYTHON if kind == "python" else (str(NATIVE),))
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    may_shrink = os.memfd_create("statuses")
    os.ftruncate(may_shrink, 1 << 20)
    for fd in (os.open(file, os.O_RDONLY), os.open(file, os.O_RDWR), may_shrink):
        with host.new_shim(fd=fd) as shim:
            os.close(fd)
            shim.settimeout(10)
            assert shim.recv(1) == b""
    a, b = tcp_pair()
    with a, b:
        program, _ = host.carry(b, mode=2)
        with program:
            a.sendall(b"plain")
            program.settimeout(10)
            assert program.recv(10) == b"plain"


def test_one_of_whom_the_agent_says_nothing(make_carrier: MakeCarrier) -> None:
    host = make_carrier()
    for said in ({}, {"uid": 1}, {"uid": -1, "gid": 1}, {"uid": True, "gid": 1}, {"uid": "0", "gid": 0}):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                host.send({"op": "shim", **said}, theirs.fileno())
            ours.settimeout(10)
            assert ours.recv(1) == b""


def test_a_carrier_that_is_not_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot become somebody else, and runs nobody's chunnels as itself."""
    loop = Loop()
    processes = Processes(loop, lambda: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(OSError, match="another user's"):
        processes.start(lambda progress: None, set(), User(NOBODY, NOBODY), lambda why, note: None)
    assert not processes.busy
    loop.close()
