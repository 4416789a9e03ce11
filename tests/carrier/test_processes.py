"""Processes of authors' chunnels: none is left behind, whoever has died and whatever they do at their end."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bertha_socket.carrier import process
from bertha_socket.carrier.loop import Loop
from bertha_socket.carrier.process import Processes, Progress, User
from tests.carrier.conftest import KEY, MakeCarrier
from tests.carrier.host import RAISED, READY, RESET, Carried, CarrierHost, chunnel, plan_of
from tests.carrier.test_apart import _children

_AUTHOR = """
import os, re, signal, time
from bertha_socket.chunnels import Pipe, register_chunnel


@register_chunnel("odd", wire="odd/1")
class Odd(Pipe):
    wish = b""

    def down(self, item):
        if item == b"sleep":
            while True:
                time.sleep(1)
        if item == b"hold":
            re.match(r"(a+)+$", "a" * 60 + "b")  # never lets another thread of Python run
        if item.startswith(b"leave"):
            os._exit(0)
        if item.startswith(b"helper"):
            if os.fork() == 0:
                signal.pause()
        if item == b"helper, raise":
            raise ValueError("with a helper")
        if item in (b"close", b"deadline"):
            self.wish = item
        return (item,)

    def deadline(self):
        while self.wish == b"deadline":
            time.sleep(1)

    def close(self):
        while self.wish == b"close":
            time.sleep(1)
"""


@pytest.fixture
def odd_hosts(
    make_carrier: MakeCarrier, module_of: Callable[[str], str]
) -> Iterator[tuple[CarrierHost, CarrierHost]]:
    pair = make_carrier(KEY), make_carrier(KEY)
    source = module_of(_AUTHOR)
    for host in pair:
        host.send({"op": "chunnels", "sources": {"odd": f"{source}:Odd"}})
    yield pair
    for host in pair:
        if host.process.poll() is not None:
            with contextlib.suppress(AssertionError):  # which it was killed with
                host.close()


PLAN = plan_of(chunnel("odd", "odd/1"))


def _begun(hosts: tuple[CarrierHost, CarrierHost]) -> Carried:
    carried = Carried(*hosts, PLAN)
    carried.client.settimeout(20)
    carried.server.settimeout(20)
    carried.client.sendall(b"hello")
    carried.wait(READY, READY)
    assert carried.server.recv(100) == b"hello"
    return carried


def _of(host: CarrierHost) -> psutil.Process:
    """The process of its only connection."""
    (pid,) = _children(host.process.pid)
    return psutil.Process(int(pid))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for_end(process: psutil.Process, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    try:
        while _lives(process):
            assert time.monotonic() < end, "it lives on"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _kill(host: CarrierHost) -> None:
    host.process.kill()
    host.process.wait()


@pytest.mark.parametrize("word", [b"sleep", b"hold"])
def test_one_that_blocks_ends_without_its_carrier(
    odd_hosts: tuple[CarrierHost, CarrierHost], word: bytes
) -> None:
    """Nobody else would notice; and the other end is not to take that for the stream's end."""
    carried = _begun(odd_hosts)
    process = _of(odd_hosts[0])
    _kill(odd_hosts[0])
    carried.client.sendall(word)
    _wait_for_end(process)
    assert carried.client_status.state == RAISED
    assert "no progress for 10 s" in carried.client_status.detail
    carried.server_status.wait(RESET)
    carried.close()


def test_one_that_works_goes_on_without_its_carrier(odd_hosts: tuple[CarrierHost, CarrierHost]) -> None:
    carried = _begun(odd_hosts)
    process = _of(odd_hosts[0])
    _kill(odd_hosts[0])
    time.sleep(1.5)
    carried.client.sendall(b"still")
    assert carried.server.recv(100) == b"still"
    carried.server.sendall(b"here")
    assert carried.client.recv(100) == b"here"
    carried.client.shutdown(socket.SHUT_WR)
    assert carried.server.recv(100) == b""
    carried.close()
    _wait_for_end(process)
    assert carried.client_status.state == READY


@pytest.mark.parametrize("word", [b"helper, raise", b"helper"])
def test_what_it_has_forked_ends_with_it(odd_hosts: tuple[CarrierHost, CarrierHost], word: bytes) -> None:
    """It has the connection's sockets, too, and would keep both programs waiting."""
    carried = _begun(odd_hosts)
    process = _of(odd_hosts[0])
    carried.client.sendall(word)
    end = time.monotonic() + 20
    helpers: list[psutil.Process] = []
    while not helpers and (word == b"helper" or _lives(process)):
        assert time.monotonic() < end
        with contextlib.suppress(psutil.NoSuchProcess):
            helpers = process.children()
    if word == b"helper":
        assert carried.server.recv(100) == word
        carried.client.close()
    else:
        carried.client_status.wait(RAISED)
        assert carried.client.recv(100) == b""
        carried.server_status.wait(RESET)
    assert carried.server.recv(100) == b""
    for helper in helpers:
        _wait_for_end(helper)
    carried.close()


@pytest.mark.parametrize("word", [b"close", b"deadline"])
def test_whatever_of_it_blocks_is_noticed(odd_hosts: tuple[CarrierHost, CarrierHost], word: bytes) -> None:
    carried = _begun(odd_hosts)
    process = _of(odd_hosts[0])
    carried.client.sendall(word)
    if word == b"close":
        assert carried.server.recv(100) == word
        carried.close()
    _wait_for_end(process)
    carried.close()


def test_leaving_is_no_end(odd_hosts: tuple[CarrierHost, CarrierHost]) -> None:
    """A process that ends itself in good order is not its stream's end."""
    carried = _begun(odd_hosts)
    carried.client.sendall(b"leave")
    carried.client_status.wait(RAISED)
    assert "status 0" in carried.client_status.detail
    carried.server_status.wait(RESET)
    carried.close()


# -- Processes itself -------------------------------------------------------------------------------------


class Rig:
    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.processes = Processes(self.loop, lambda: None)
        self.user = User(os.getuid(), os.getgid())
        self.said = folder / "said"
        self.ends: list[str] = []

    def start(self, run: Callable[[Progress], None]) -> None:
        self.processes.start(run, set(), self.user, lambda why, note: self.ends.append(why))

    def wait(self) -> str:
        end = time.monotonic() + 20
        while not self.ends:
            self.loop.turn(0.1)
            assert time.monotonic() < end
        return self.ends[0]


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    rig = Rig(tmp_path)
    yield rig
    rig.loop.close()


class _Garbage:
    """As a shim's status memory: it closes its descriptor when it is found to be of no use any more."""

    def __init__(self) -> None:
        self.fd = os.open(os.devnull, os.O_RDONLY)
        self.me = self

    def __del__(self) -> None:
        os.close(self.fd)


def test_the_carriers_garbage_is_not_its(rig: Rig) -> None:
    """What the carrier has not collected yet has numbers of descriptors that are others' in the child."""

    def run(progress: Progress) -> None:
        mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
        gc.collect()
        gone = []
        for fd in mine:
            try:
                os.fstat(fd)
            except OSError:
                gone.append(fd)
        rig.said.write_text(repr(gone))

    gc.collect()
    gc.disable()
    try:
        for _ in range(8):
            _Garbage()
        rig.start(run)
    finally:
        gc.enable()
    assert rig.wait() == ""
    assert rig.said.read_text() == "[]"


def test_none_is_left_where_it_cannot_be_watched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.pid for p in psutil.Process().children()}

    def no_pidfd(*_: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(process.os, "pidfd_open", no_pidfd)
        with pytest.raises(OSError, match="Too many"):
            rig.start(lambda progress: time.sleep(60))
    assert not rig.processes.busy
    left = [p for p in psutil.Process().children() if p.pid not in before]
    for p in left:
        p.kill()
        p.wait()
    assert left == []
