"""A program that uses an io_uring for more than files has TCP from then on, and loses nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, connections, eventually, free_port
from tests.shim.conftest import Build

_LINES = Path(__file__).parent / "lines.py"
_LEAVE = Path(__file__).parent / "leave.py"


def test_uring(host: Host, build: Build) -> None:
    port = free_port()
    host.server([build("uring"), port, "2"], port)
    words = ["one", "two", "ring", "three", "four", "--", "five", "six"]
    assert host.run([sys.executable, _LINES, port, *words]) == "ok\n"
    eventually(lambda: host.rehearse or len(host.connlog()) == 4, "both ends in the log")
    log = host.finish()
    if host.rehearse:
        return
    first, second = connections(log, program="uring")
    assert first.implementation == "shm" and second.plain
    assert first.reason == second.reason and "io_uring" in (first.reason or "")
    assert first.rx_bytes == first.tx_bytes == len("one two ring three four ")


def test_what_lies_in_a_ring_when_a_program_sets_up_an_io_uring(host: Host, build: Build) -> None:
    """Its other end gives that back, and the io_uring finds all of it in the kernel."""
    port = free_port()
    server = host.server([build("uring_later"), port], port)
    client = host.spawn([sys.executable, _LEAVE, port, "ready", 20_000])
    eventually(lambda: not server.running or not client.running, "an end")
    if "no io_uring here" in server.text():
        pytest.skip("this system forbids io_uring")
    assert client.wait() == ""
    server.wait()
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    lines = connections(host.finish(), program="uring_later")
    assert host.rehearse or lines
    for c in lines:
        assert c.implementation == "shm" and "io_uring" in (c.reason or "")


_SCENES = ["files", "receives", "reads what lies there", "sends", "polls", "by number", "accepts", "enters"]


def _need_liburing() -> None:
    if not Path("/usr/include/liburing.h").exists():
        pytest.skip("liburing-dev is not installed")


@pytest.mark.parametrize("scene", _SCENES)
def test_liburing(host: Host, build: Build, scene: str) -> None:
    """An io_uring for files alone leaves connections on shared memory; all else is noticed in time."""
    _need_liburing()
    said = host.run([build("uring_files", "uring"), scene, host.dir / "file"])
    if said == "no io_uring here\n":
        pytest.skip("this system forbids io_uring")
    assert said == "ok\n"
    if host.rehearse:
        return
    (mine,) = [c for c in connections(host.finish(), role="client") if c.tx_bytes > 4]
    assert mine.implementation == "shm" and ("io_uring" in (mine.reason or "")) == (scene != "files")


def test_liburing_where_chunnels_are_required(host: Host, build: Build) -> None:
    """Files go by the ring as ever, connections through the chunnels, and an operation on one not at all."""
    _need_liburing()
    host.set_policy('[[rule]]\ndag = "compress()"\n')
    program = build("uring_files", "uring")
    said = host.run([program, "files", host.dir / "file"])
    if said == "no io_uring here\n":
        pytest.skip("this system forbids io_uring")
    assert said == "ok\n"
    if host.rehearse:
        return
    said = host.run([program, "sends", host.dir / "file"], check=False)
    assert "uring_submit(&ring) == 1" in said and "ok" not in said
    found = connections(host.finish(), role="client")
    assert found
    for c in found:
        assert c.raw["chunnels"][0]["type"] == "compress"
