"""Carriers of UDP sockets and what strangers send: answers, memory and sessions are bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable

import pytest

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Kind
from bertha_socket.chunnels import reliable
from tests.carrier.conftest import KEY, NATIVE
from tests.carrier.datagram_rig import (
    BESIDE,
    HEAD,
    LARGE,
    RELIABLE,
    Make,
    Program,
    Stranger,
    accepted,
    numbered,
    until,
)
from tests.carrier.datagram_rig import client as client
from tests.carrier.datagram_rig import make_program as make_program
from tests.carrier.datagram_rig import server as server
from tests.carrier.datagram_rig import strangers_end as strangers_end
from tests.carrier.host import (
    MAYBE,
)

pytestmark = [
    pytest.mark.skipif(not NATIVE.exists(), reason="the native carrier is not built here"),
    pytest.mark.alone,  # waits for silence, and counts what comes within a second
]


def test_what_has_no_session(server: Program) -> None:
    """It is told so, a hundred times a second at the most; what makes no sense gets no answer."""
    stranger = Stranger(server.name)
    for nonsense in (b"\xbeBRD", b"\xbeBRD\x09" + bytes(8), envelope.sealed(Kind.HELLO, 1, b"\x81\xa1v\x01")):
        stranger.udp.send(nonsense)
    for kind in (Kind.ACCEPT, Kind.REFUSE, Kind.UNKNOWN, Kind.END, Kind.ASK):
        stranger.udp.send(envelope.sealed(kind, 1))
    server.has_read()
    assert stranger.quiet()
    for i in range(250):
        stranger.udp.send(envelope.sealed(Kind.DATA, i))
    server.has_read()
    count = 0
    assert not stranger.quiet(20)  # the carrier has yet to start
    while not stranger.quiet():
        assert stranger.heard().kind is Kind.UNKNOWN
        count += 1
    assert count == 100
    assert server.host.checks == []


def test_strangers_are_told_why_a_hundred_times_a_second(server: Program) -> None:
    """What they are told may be longer than what they said, and nobody knows whose address they gave."""
    stranger = Stranger(server.name)
    for i in range(250):
        stranger.udp.send(envelope.hello(i, RELIABLE, None))
    server.has_read()
    count = 0
    assert not stranger.quiet(20)  # the carrier has yet to start
    while not stranger.quiet():
        assert stranger.heard().kind is Kind.REFUSE
        count += 1
    assert count == 100


def test_one_question_for_a_plan(server: Program) -> None:
    """However many show it; once answered, none for a while."""
    strangers = [Stranger(server.name) for _ in range(50)]
    for i, stranger in enumerate(strangers):
        stranger.udp.send(envelope.hello(i, RELIABLE, KEY))
    server.has_read()
    server.host.serve(5.0)
    for i, stranger in enumerate(strangers):
        came = stranger.heard()
        assert (came.kind, came.session) == (Kind.ACCEPT, i)
        assert envelope.is_accepted(came, RELIABLE, KEY)
    late = Stranger(server.name)
    late.udp.send(envelope.hello(99, RELIABLE, KEY))
    assert late.heard().kind is Kind.ACCEPT
    assert len(server.host.checks) == 1


def test_sessions_of_one_address_are_few(server: Program) -> None:
    """Those that came first make room."""
    stranger = Stranger(server.name)
    for session in range(10):
        stranger.udp.send(envelope.hello(session, RELIABLE, KEY))
        until(lambda: not stranger.quiet(0), server.host)
        assert stranger.heard().kind is Kind.ACCEPT
    known = 0
    for session in range(10):
        stranger.udp.send(envelope.sealed(Kind.DATA, session, b"x"))
        server.has_read()
        if stranger.quiet(0.05):
            known += 1
        else:
            assert stranger.heard().kind is Kind.UNKNOWN
    assert 1 <= known <= 5


def test_a_flood_for_the_carrier_beside_keeps_no_program_waiting(make_program: Make) -> None:
    """It takes less than strangers can send: what waits for it then is theirs, not the program's."""
    server = make_program("native", MAYBE)
    client, flood = accepted(server), Stranger(server.name)
    client.udp.send(numbered(1, b"question"))
    assert server.heard()[3] == b"question"
    beside, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with beside, theirs:
        socket.send_fds(server.pair, [HEAD.pack(0xBD47, BESIDE, 0, 0, 0, 0, 0, bytes(16))], [theirs.fileno()])
        beside.settimeout(20)
        server.send(("127.0.0.1", 9), b"first")
        assert beside.recv(100)[HEAD.size :] == b"first"
        for i in range(2000):
            flood.udp.send(bytes(1000))
            if i % 50 == 0:
                time.sleep(0.002)
        server.send(client.name, b"answer")
        while not client.heard().body.endswith(b"answer"):
            pass  # acknowledgements
        # Nor is there no room for what the program has to say there, behind it.
        server.send(("127.0.0.1", 9), b"to another")
        found = b""
        while not found.endswith(b"to another"):
            found = beside.recv(2000)


def _memory(server: Program) -> int:
    """MB that its carrier has."""
    with open(f"/proc/{server.host.process.pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def _floods(server: Program, session: int, datagrams: Iterable[bytes], pause: Callable[[], None]) -> Stranger:
    """One that has agreed, and goes on with these."""
    stranger = Stranger(server.name)
    stranger.udp.send(envelope.hello(session, LARGE, KEY))
    server.host.serve(0.0 if session > 1 else 5.0)
    assert stranger.heard().kind is Kind.ACCEPT
    for i, data in enumerate(datagrams):
        stranger.udp.send(data)
        if i % 4 == 3:
            pause()
    return stranger


def _told(server: Program) -> Callable[[], None]:
    """Waits until the carrier has read all that was sent there."""
    probe = Stranger(server.name)

    def wait() -> None:
        probe.udp.send(envelope.sealed(Kind.DATA, 99))  # of a session that is not there
        time.sleep(0.001)
        with contextlib.suppress(TimeoutError):
            probe.udp.settimeout(0.02)
            probe.udp.recv(100)

    return wait


def test_what_strangers_make_a_carrier_keep_is_bounded(server: Program) -> None:
    """Far ahead of what is wanted, by many at once; whoever goes on in order gets on all the same."""
    payload, wait = bytes(59_000), _told(server)
    before = 0
    for session in range(1, 13):
        ahead = (numbered(n, payload, session=session) for n in range(2, 300))
        _floods(server, session, ahead, wait)
        before = before or _memory(server)
    assert _memory(server) - before < 90  # 200 without a bound
    good = _floods(server, 100, (), wait)
    for n in range(1, 21):
        good.udp.send(numbered(n, b"part", reliable.MORE if n % 2 else 0, session=100))
    assert [server.heard()[3] for _ in range(10)] == [b"partpart"] * 10


def test_messages_that_do_not_end(server: Program) -> None:
    """No program could be given a longer one than UDP has, and of all only so many are kept."""
    wait = _told(server)
    long = (numbered(n, bytes(30_000), reliable.MORE) for n in range(1, 4))
    _floods(server, 1, long, wait)
    until(lambda: "a message of more than 65507 bytes came" in server.status.detail, server.host)
    before = _memory(server)
    many = [
        _floods(server, session, [numbered(1, bytes(59_000), reliable.MORE, session=session)], wait)
        for session in range(2, 700)
    ]
    until(lambda: "too many messages are not whole" in server.status.detail, server.host)
    assert _memory(server) - before < 200  # with all that Python has of 700 sessions
    many[-1].udp.send(numbered(2, b"end", session=699))
    assert server.heard()[3] == bytes(59_000) + b"end"
    many[0].udp.send(numbered(2, b"end", session=2))  # the one that began first is gone
    while True:
        if (came := many[0].heard()).kind is Kind.UNKNOWN:
            break
        assert came.kind is Kind.DATA


def test_who_may_be_nobody_makes_room_first(server: Program) -> None:
    """HELLOs said again from forged addresses: before one that has answered, and long before its time."""
    good = accepted(server)
    good.udp.send(numbered(1, b"question"))
    assert server.heard()[3] == b"question"
    server.send(good.name, b"answer")
    while not good.heard().body.endswith(b"answer"):
        pass
    good.udp.send(envelope.sealed(Kind.DATA, 1, reliable.HEADER.pack(reliable.ACK, 0, 77, 1024, 2)))
    for i in range(1024):
        forged = Stranger(server.name, f"127.1.{i >> 8}.{i & 255}")
        for session in range(4):
            forged.udp.send(envelope.hello(session, RELIABLE, KEY))
            assert i == 1023 or forged.heard().kind is Kind.ACCEPT
        forged.udp.close()
    late = Stranger(server.name)
    end = time.monotonic() + 10
    while late.quiet(0.5):
        assert time.monotonic() < end
        late.udp.send(envelope.hello(1, RELIABLE, KEY))
    assert late.heard().kind is Kind.ACCEPT
    good.udp.send(numbered(2, b"another"))
    assert server.heard()[3] == b"another"
