"""What a server's carrier does with an author's chunnel on datagrams, and with strangers who ask for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.carrier.peers import text_of
from tests.carrier.conftest import KEY, MakeCarrier
from tests.carrier.host import CarrierHost, chunnel, plan_of
from tests.carrier.test_apart import _children, _wait_for_processes

#: Never more than two processes.
_SMALL = (
    "from bertha_socket.carrier import __main__, datagrams\n"
    "datagrams._ASIDE_MAX = 2\n"
    "raise SystemExit(__main__.main())\n"
)
_AUTHOR = """
import os, signal, time
from bertha_socket.chunnels import Interface, Pipe, register_chunnel


@register_chunnel("turn", wire="turn/1")
class Turn(Pipe):
    upper = lower = Interface.MESSAGES

    def __init__(self, *args):
        super().__init__(*args)
        self.context.counts["turn.words"] = 0

    def down(self, item):
        return (item[::-1],)

    def up(self, item):
        word = item[::-1]
        self.context.counts["turn.words"] += 1
        if word == b"raise":
            raise ValueError("no such word")
        if word == b"block":
            open("/proc/self/comm", "w").write("blocked")
            while True:
                time.sleep(1)
        if word == b"helper":
            if os.fork() == 0:
                os.setsid()
                open("/proc/self/comm", "w").write("b-helper")
                signal.alarm(60)
                signal.pause()
            os._exit(9)
        if word == b"flood":
            return [b"%d" % i for i in range(20_000)], ()
        if word == b"long":
            return (), [bytes(70_000), b"the next"]
        return (word,), ()
"""
PLAN = plan_of(chunnel("turn", "turn/1"))
_HEAD = struct.Struct("=HHHHIIQ16s")


class Client:
    """Another carrier, as the server's sees it."""

    def __init__(self, to: tuple[str, int], plan: bytes = PLAN) -> None:
        self.plan = plan
        self.session = int.from_bytes(os.urandom(8), "big")
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.connect(to)
        self.udp.settimeout(20)

    def hello(self) -> None:
        self.udp.send(envelope.hello(self.session, self.plan, KEY))

    def say(self, word: bytes) -> None:
        self.udp.send(envelope.sealed(Kind.DATA, self.session) + word[::-1])

    def heard(self) -> Envelope:
        found = envelope.opened(self.udp.recv(65536))
        assert found is not None and found.session == self.session
        return found

    def begin(self, host: CarrierHost) -> None:
        """Until both have agreed."""
        self.udp.settimeout(0.01)
        end, again = time.monotonic() + 20, 0.0
        while True:
            if time.monotonic() >= again:  # it may have come while one before it was yet to be judged
                self.hello()
                again = time.monotonic() + 1
            host.serve()
            with contextlib.suppress(TimeoutError):
                if self.heard().kind is Kind.ACCEPT:
                    break
            assert time.monotonic() < end
        self.udp.settimeout(20)


class Served:
    """A UDP socket that a carrier has, and the program's end of it."""

    def __init__(self, host: CarrierHost) -> None:
        self.host = host
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            self.name: tuple[str, int] = udp.getsockname()
            self.program, self.status = host.carry_datagrams(udp)
        self.program.settimeout(20)
        self.clients: list[Client] = []

    def client(self, plan: bytes = PLAN) -> Client:
        self.clients.append(Client(self.name, plan))
        return self.clients[-1]

    def taken(self) -> bytes:
        """The next datagram."""
        return self.program.recv(70_000)[_HEAD.size :]

    def wait_for(self, words: str) -> None:
        """Until the shim is told so."""
        end = time.monotonic() + 20
        while words not in self.status.detail:
            assert time.monotonic() < end, self.status.detail
            time.sleep(0.01)

    def close(self) -> None:
        self.program.close()
        for client in self.clients:
            client.udp.close()


@pytest.fixture
def served(make_carrier: MakeCarrier, module_of: Callable[[str], str]) -> Iterator[Served]:
    host = make_carrier(KEY, command=(sys.executable, "-c", _SMALL), env={"BERTHA_LOG": "info"})
    host.send({"op": "chunnels", "sources": {"turn": f"{module_of(_AUTHOR)}:Turn"}})
    found = Served(host)
    yield found
    found.close()


def test_no_process_for_a_plan_that_may_not_run(served: Served) -> None:
    """A stranger's HELLO costs nothing before it is judged."""
    served.host.judge = lambda listener, plan: "not here"
    client = served.client()
    client.hello()
    while not served.host.checks:
        served.host.serve(1.0)
    assert client.heard().kind is Kind.REFUSE
    assert _children(served.host.process.pid) == []


def test_the_other_end_is_told_of_a_fault(served: Served) -> None:
    """And begins anew, with another process."""
    clients = [served.client() for _ in range(2)]
    for client in clients:
        client.begin(served.host)
    before = _children(served.host.process.pid)
    clients[0].say(b"raise")
    assert clients[0].heard().kind is Kind.END
    clients[1].say(b"unhurt")
    assert served.taken() == b"unhurt"
    _wait_for_processes(served.host.process.pid, 1)
    clients[0].session += 1
    clients[0].begin(served.host)
    clients[0].say(b"again")
    assert served.taken() == b"again"
    assert len(set(_children(served.host.process.pid)) - set(before)) == 1
    served.wait_for("raised ValueError: no such word (chunnel_0.py line 21)")
    served.close()
    log = served.host.close()
    assert log.count("Traceback") == 1 and "no such word" in log


def test_a_helper_of_its_lives_on(served: Served) -> None:
    """It has the process's end of the pair: the carrier does not wait for more to come from there."""
    clients = [served.client() for _ in range(2)]
    for client in clients:
        client.begin(served.host)
    clients[0].say(b"helper")
    try:
        assert clients[0].heard().kind is Kind.END
        _wait_for_processes(served.host.process.pid, 1)
        clients[1].say(b"unhurt")
        assert served.taken() == b"unhurt"
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "b-helper":
                    process.kill()


def test_its_process_is_killed(served: Served) -> None:
    client = served.client()
    client.begin(served.host)
    (pid,) = _children(served.host.process.pid)
    os.kill(int(pid), signal.SIGKILL)
    assert client.heard().kind is Kind.END
    served.close()
    assert "died (signal 9)" in served.host.close()


def test_it_ends_with_the_carrier(served: Served) -> None:
    """Also one that blocks, whom nobody watches then."""
    client = served.client()
    client.begin(served.host)
    client.say(b"block")
    (process,) = psutil.Process(served.host.process.pid).children()
    end = time.monotonic() + 20
    while process.name() != "blocked":
        assert time.monotonic() < end
        time.sleep(0.01)
    served.host.process.kill()
    served.host.process.wait()
    try:
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "it lives on"
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        pass
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        with contextlib.suppress(AssertionError):  # which it has ended with
            served.host.close()


def test_there_is_a_bound(served: Served) -> None:
    """Who finds no room is not answered; when somebody has gone he is."""
    first, second, third = (served.client() for _ in range(3))
    for client in (first, second):
        client.begin(served.host)
    third.hello()
    first.say(b"one")
    assert served.taken() == b"one"
    served.host.serve()
    assert len(_children(served.host.process.pid)) == 2
    first.udp.send(envelope.sealed(Kind.END, first.session))
    _wait_for_processes(served.host.process.pid, 1)
    third.begin(served.host)
    third.say(b"three")
    assert served.taken() == b"three"
    served.wait_for("others have processes")


def test_what_one_makes_up_does_not_fill_the_carrier(served: Served) -> None:
    """Nobody takes it: some is lost, and told."""
    client = served.client()
    client.begin(served.host)
    client.say(b"flood")
    served.wait_for("dropped for want of room")
    got: list[bytes] = []
    served.program.settimeout(0.2)

    def dropped() -> int:
        return int(served.status.detail.split()[0])

    end = time.monotonic() + 20
    while len(got) + dropped() < 20_000:
        assert time.monotonic() < end, (len(got), served.status.detail)
        with contextlib.suppress(TimeoutError):
            got.append(served.taken())
    assert len(got) + dropped() == 20_000 and dropped() > 0
    assert got[:4096] == [b"%d" % i for i in range(4096)]


def test_what_is_too_long_for_udp(served: Served) -> None:
    client = served.client()
    client.begin(served.host)
    client.say(b"long")
    came = client.heard()
    assert (came.kind, came.body) == (Kind.DATA, b"the next")
    served.wait_for("1 datagrams dropped")


def test_what_it_has_counted_of_each(served: Served) -> None:
    """The shim is told sums before the program has the datagram; the carrier's log has each at its end."""
    clients = [served.client() for _ in range(2)]
    for i, client in enumerate(clients):
        client.begin(served.host)
        for _ in range(i + 2):
            client.say(b"word")
            assert served.taken() == b"word"
    assert served.status.chunnels[0]["counts"] == {"words": 5}
    clients[0].udp.send(envelope.sealed(Kind.END, clients[0].session))
    _wait_for_processes(served.host.process.pid, 1)
    clients[1].say(b"word")
    assert served.taken() == b"word"
    assert served.status.chunnels[0]["counts"] == {"words": 6}, "what has ended has counted, too"
    names = [text_of(c.udp.getsockname()) for c in clients]
    served.close()
    log = served.host.close()
    assert f"server {names[0]}: ended, turn.words=2" in log
    assert f"server {names[1]}: ended, turn.words=4" in log


def test_they_end_with_the_programs_socket(served: Served) -> None:
    for _ in range(2):
        served.client().begin(served.host)
    assert len(_children(served.host.process.pid)) == 2
    served.close()
    _wait_for_processes(served.host.process.pid, 0)
    served.host.close()


@pytest.mark.parametrize("key", [None, KEY])
def test_strangers_are_not_told_why_without_end(served: Served, key: bytes | None) -> None:
    """Each may have written somebody else's address on it, and is told more than he said."""
    served.host.judge = lambda listener, plan: "not here, " + 50 * "by no means "
    client = served.client()
    client.udp.settimeout(0.01)
    begun, said, heard = time.monotonic(), 0, 0
    client.udp.send(envelope.hello(1500, PLAN, key))
    served.host.serve(20.0)  # it has begun
    for session in range(1500):
        hello = envelope.hello(session, PLAN, key)
        said += len(hello)
        client.udp.send(hello)
        if session % 50 == 49:
            served.host.serve()
            with contextlib.suppress(TimeoutError):
                while client.udp.recv(65536):
                    heard += 1
    client.udp.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while client.udp.recv(65536):
            heard += 1
    assert 0 < heard <= 100 * (2 + int(time.monotonic() - begun))
    time.sleep(1)
    asked = -1
    while asked != len(
        served.host.checks
    ):  # those that wait for an answer would all be let in by the next one
        asked = len(served.host.checks)
        served.host.serve(1.0)
    served.host.judge = lambda listener, plan: None
    served.client().begin(served.host)
