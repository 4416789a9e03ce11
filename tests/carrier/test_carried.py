"""The carrier in Python, alone: a test plays the agents and the shims, TCP goes over loopback."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import struct
import time

import pytest

from bertha_socket import keys
from tests.carrier.conftest import NATIVE, MakeCarrier
from tests.carrier.host import (
    MAYBE,
    PENDING,
    PLAIN,
    PYTHON,
    READY,
    REFUSED,
    RESET,
    Carried,
    CarrierHost,
    Status,
    chunnel,
    exchange,
    plan_of,
    tcp_pair,
)

ZSTD = chunnel("compress", "zstd/1", level=3)
LZ4 = chunnel("compress", "lz4/1")
TLS = chunnel("encrypt", "tls1.3")
PLANS = {
    "zstd": plan_of(ZSTD),
    "lz4": plan_of(LZ4),
    "tls": plan_of(TLS),
    "zstd-tls": plan_of(ZSTD, TLS),
    "lz4-tls": plan_of(LZ4, TLS),
    "tls-zstd": plan_of(TLS, ZSTD),
    "zstd-tls-lz4": plan_of(ZSTD, TLS, LZ4),
    "tls-tls": plan_of(TLS, TLS),
}
Hosts = tuple[CarrierHost, CarrierHost]


def some_bytes(count: int, seed: int) -> bytes:
    """Half of it compressible."""
    maker = random.Random(seed)
    half = maker.randbytes(count // 2)
    words = (b"a line that says little, again and again\n" * (count // 80 + 1))[: count - len(half)]
    return half + words


def chunks(seed: int, most: int = 70_000) -> itertools.chain[int]:
    """Sizes of pieces: many small ones, some large."""
    maker = random.Random(seed)
    return itertools.chain.from_iterable(
        iter(lambda: [maker.choice((1, 7, 1000, most, most, maker.randint(1, most)))], [])
    )


@pytest.mark.parametrize("name", PLANS)
def test_ten_megabytes_both_ways(python_hosts: Hosts, name: str) -> None:
    carried = Carried(*python_hosts, PLANS[name])
    up, down = some_bytes(10_000_000, 1), some_bytes(10_000_000, 2)
    at_client, at_server = exchange(carried, up, down, chunks(3))
    assert at_server == up and at_client == down
    assert carried.client_status.state == carried.server_status.state == READY
    carried.close()


def test_the_log_names_the_chunnels(hosts: Hosts) -> None:
    carried = Carried(*hosts, PLANS["zstd-tls"])
    carried.wait(READY, READY)
    expected = [{"type": t, "implementation": "python", "where": "host"} for t in ("compress", "encrypt")]
    assert carried.client_status.chunnels == carried.server_status.chunnels == expected
    carried.close()


@pytest.mark.parametrize("name", ["zstd", "zstd-tls"])
def test_many_connections_at_once(hosts: Hosts, name: str) -> None:
    many = [Carried(*hosts, PLANS[name]) for _ in range(20)]
    for i, carried in enumerate(many):
        carried.client.sendall(b"to %d" % i)
    for i, carried in enumerate(many):
        carried.wait(READY, READY)
        assert carried.server.recv(100) == b"to %d" % i
        carried.server.sendall(b"back %d" % i)
        assert carried.client.recv(100) == b"back %d" % i
    assert {c["plan"] for c in hosts[1].checks} == {PLANS[name]}
    for carried in many:
        carried.close()


def test_half_close_leaves_the_other_direction(hosts: Hosts) -> None:
    carried = Carried(*hosts, PLANS["zstd-tls"])
    carried.client.sendall(b"request")
    carried.client.shutdown(socket.SHUT_WR)
    carried.wait(READY, READY)
    assert carried.server.recv(100) == b"request"
    assert carried.server.recv(100) == b""
    for _ in range(3):
        carried.server.sendall(b"answer")
        assert carried.client.recv(100) == b"answer"
    carried.server.close()
    assert carried.client.recv(100) == b""
    carried.close()


def test_what_was_sent_before_close_arrives(hosts: Hosts) -> None:
    data = some_bytes(500_000, 4)
    carried = Carried(*hosts, PLANS["zstd-tls"])
    carried.wait(READY, READY)
    carried.client.settimeout(20)
    carried.client.sendall(data[:200_000])
    carried.client.close()
    got = b""
    while part := carried.server.recv(65536):
        got += part
    assert got == data[:200_000]
    carried.close()


def test_who_does_not_read_makes_the_other_wait(hosts: Hosts) -> None:
    carried = Carried(*hosts, PLANS["tls"])
    carried.wait(READY, READY)
    carried.client.setblocking(False)
    sent = 0
    piece = random.Random(5).randbytes(65536)
    idle = 0
    while idle < 50:
        try:
            sent += carried.client.send(piece)
            idle = 0
        except BlockingIOError:
            idle += 1
            assert sent < 64_000_000, "nobody holds the sender back"
            select_a_little()
    got = 0
    carried.server.settimeout(20)
    carried.client.shutdown(socket.SHUT_WR)
    while part := carried.server.recv(1 << 20):
        got += len(part)
    assert got == sent
    carried.close()


def select_a_little() -> None:
    import select

    select.select([], [], [], 0.01)


def test_a_reset_is_a_reset_at_the_other_end(hosts: Hosts) -> None:
    carried = Carried(*hosts, PLANS["tls"])
    carried.wait(READY, READY)
    carried.server.sendall(b"never read")
    while not carried.client.recv(1, socket.MSG_PEEK):
        pass
    carried.client.close()  # with bytes unread: the kernel resets
    carried.server_status.wait(RESET)
    assert "reset" in carried.server_status.detail
    carried.close()


def test_an_unaware_client_is_reset_where_chunnels_are_required(hosts: Hosts) -> None:
    client, tcp = tcp_pair()
    with tcp, client:
        program, status = hosts[1].carry(tcp)
        with program:
            tcp.close()
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            status.wait(REFUSED)
            assert "chunnels" in status.detail
            assert program.recv(100) == b""
            client.settimeout(20)
            with pytest.raises(ConnectionResetError):
                client.recv(100)


_PLAIN_FIRST = [
    b"GET / HTTP/1.0\r\n",
    b"\x16\x03\x01\x00\x03abc",
    b"\xbd",
    # Of protocols with any first byte; those that begin as a carrier does, and say no more, wait for us.
    b"\xbe\x01\x02\x03hello",
    b"\xbe",
    b"\xbeBR",
    b"\x16\xff\xff\xff\xffhello",
    b"\x16\x03",
]


@pytest.mark.parametrize("first", _PLAIN_FIRST)
def test_an_unaware_client_is_served_where_they_are_preferred(hosts: Hosts, first: bytes) -> None:
    client, tcp = tcp_pair()
    with tcp, client:
        program, status = hosts[1].carry(tcp, mode=MAYBE)
        with program:
            client.sendall(first)
            program.settimeout(20)
            assert program.recv(100) == first
            assert status.state == PLAIN
            program.sendall(b"200")
            assert client.recv(100) == b"200"


def test_a_server_that_speaks_first_serves_unaware_clients(hosts: Hosts) -> None:
    client, tcp = tcp_pair()
    with tcp, client:
        program, status = hosts[1].carry(tcp, mode=MAYBE)
        with program:
            program.sendall(b"220 ready\r\n")
            client.settimeout(20)
            assert client.recv(100) == b"220 ready\r\n"
            assert status.state == PLAIN
            client.sendall(b"\x16 whatever it is")
            assert program.recv(100) == b"\x16 whatever it is"


def test_the_agent_says_no(hosts: Hosts) -> None:
    hosts[1].judge = lambda listener, plan: "level is not what was agreed"
    for name in ("zstd", "zstd-tls"):
        carried = Carried(*hosts, PLANS[name])
        carried.client.sendall(b"early")
        carried.wait(REFUSED, REFUSED)
        assert "level is not what was agreed" in carried.client_status.detail
        assert carried.server.recv(10) == b""
        carried.close()


@pytest.mark.parametrize("name", ["zstd", "tls"])
@pytest.mark.parametrize(("at_client", "at_server"), [(None, 1), (1, None), (2, 1)])
def test_another_key_is_refused(
    make_carrier: MakeCarrier, name: str, at_client: int | None, at_server: int | None
) -> None:
    def key(number: int | None) -> bytes | None:
        return bytes([number]) * 32 if number is not None else None

    client, server = make_carrier(key(at_client)), make_carrier(key(at_server))
    carried = Carried(client, server, PLANS[name])
    carried.wait(REFUSED, REFUSED)
    assert carried.client_status.detail
    assert carried.server_status.detail
    assert carried.server.recv(10) == b""
    carried.close()
    client.close()
    server.close()


def test_the_agents_word_comes_before_what_a_shim_says_later(hosts: Hosts) -> None:
    """Another key, said between two connections that the carrier has not looked at yet."""
    client, server = hosts
    key = bytes(reversed(range(32)))
    server.context(material=keys.material(key), key=key)
    pairs = [tcp_pair(), tcp_pair()]
    carried = [server.carry(b) for _, b in pairs]
    client.process.send_signal(signal.SIGSTOP)
    early = client.carry(pairs[0][0], plan=PLANS["zstd"])
    client.context(material=keys.material(key), key=key)
    late = client.carry(pairs[1][0], plan=PLANS["zstd"])
    client.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 20
    while PENDING in (late[1].state, carried[1][1].state) and time.monotonic() < end:
        server.serve(0.01)
    assert (late[1].state, carried[1][1].state) == (READY, READY), late[1].detail
    for sock in itertools.chain(*pairs, [early[0], late[0]], [s for s, _ in carried]):
        sock.close()


@pytest.mark.parametrize("command", [PYTHON, (str(NATIVE),)], ids=["python", "native"])
def test_an_agent_that_does_not_read_hurts_no_connection(
    make_carrier: MakeCarrier, command: tuple[str, ...]
) -> None:
    """More questions than its socket has room for: who asks is refused, who speaks already goes on."""
    if not os.path.exists(command[0]):
        pytest.skip("the native carrier is not built here")
    client, server = (make_carrier(command=command, count=1024) for _ in range(2))
    carried = Carried(client, server, PLANS["zstd"])
    carried.wait(READY, READY)
    waiting = []
    for number in range(500):
        a, b = tcp_pair()
        ours, _ = server.carry(b, listener=1000 + number)
        theirs, _ = client.carry(a, plan=PLANS["zstd"])
        waiting += [a, b, ours, theirs]
    carried.server.settimeout(3)
    try:
        for _ in range(20):
            carried.client.sendall(b"still there")
            assert carried.server.recv(100) == b"still there"
            time.sleep(0.05)
    finally:
        for sock in waiting:
            sock.close()
        server.serve(0.2)
        carried.close()
    client.close()
    server.close()


def test_tls_is_all_that_is_on_the_wire(hosts: Hosts) -> None:
    """A relay between both looks at the bytes."""
    client, near = tcp_pair()
    far, server = tcp_pair()
    secret = b"the secret words"
    with client, near, far, server:
        at_server, server_status = hosts[1].carry(server)
        at_client, client_status = hosts[0].carry(client, plan=PLANS["zstd-tls"])
        with at_server, at_client:
            at_client.sendall(secret)
            seen = b""
            near.setblocking(False)
            far.setblocking(False)
            at_server.setblocking(False)
            got = b""
            while got != secret or client_status.state != READY:
                hosts[1].serve()
                for a, b in ((near, far), (far, near)):
                    try:
                        data = a.recv(65536)
                    except BlockingIOError:
                        continue
                    seen += data
                    b.sendall(data)
                try:
                    got += at_server.recv(100)
                except BlockingIOError:
                    assert server_status.state < REFUSED, server_status.detail
            assert client_status.state == READY
            assert seen[0] == 0x16
            assert secret not in seen and b"BRT" not in seen and b"compress" not in seen


def test_a_dead_agent_hurts_no_connection(make_carrier: MakeCarrier) -> None:
    client, server = make_carrier(), make_carrier()
    carried = Carried(client, server, PLANS["zstd-tls"])
    carried.wait(READY, READY)
    client.control.close()
    server.control.close()
    for i in range(3):
        carried.client.sendall(b"after %d" % i)
        assert carried.server.recv(100) == b"after %d" % i
    carried.close()
    client.close()
    server.close()


def test_rubbish_from_a_shim_ends_that_shim_only(hosts: Hosts) -> None:
    carried = Carried(*hosts, PLANS["zstd"])
    carried.wait(READY, READY)
    for rubbish in (b"x", bytes(100), b"BCAR" + bytes(4), b"BCAR\x01\x00\x02\x00" + b"\xff" * 40):
        bad = hosts[0].new_shim()
        with bad:
            bad.send(rubbish)
            bad.settimeout(20)
            assert bad.recv(10) == b""
    carried.client.sendall(b"still here")
    assert carried.server.recv(100) == b"still here"
    carried.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\xbeBRT\xff\xff\xff\xff",
        b"\xbeBRT\x00\x00\x00\x01\x80",
        b"\xbeXXX",
        b"\xbeBRT\x00\x00\x00\x05aaaaa",
        b"\xbeBRT\x00\x00\x00\x04\x81\xa1v\x02",
    ],
)
def test_rubbish_in_a_preamble_is_refused(hosts: Hosts, data: bytes) -> None:
    client, tcp = tcp_pair()
    with client, tcp:
        program, status = hosts[1].carry(tcp)
        with program:
            client.sendall(data)
            status.wait(REFUSED)
            assert status.detail and "raised" not in status.detail
            assert program.recv(100) == b""


def test_a_reset_behind_the_end_is_told(hosts: Hosts) -> None:
    client, tcp = tcp_pair()
    with client, tcp:
        program, status = hosts[1].carry(tcp, mode=MAYBE)
        with program:
            program.settimeout(20)
            client.sendall(b"hello")
            assert program.recv(100) == b"hello"
            client.shutdown(socket.SHUT_WR)
            assert program.recv(100) == b""
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            status.wait(RESET)


def test_one_question_for_a_plan(hosts: Hosts) -> None:
    """More come at once than an agent has room for questions."""
    client, server = hosts
    ends: list[tuple[socket.socket, ...]] = []
    statuses = []
    for _ in range(20):
        a, b = tcp_pair()
        with a, b:
            (at_server, status), (at_client, _) = server.carry(b), client.carry(a, plan=PLANS["zstd"])
        statuses.append(status)
        ends.append((at_client, at_server))
        at_client.sendall(b"early")
    time.sleep(0.3)
    server.serve(5.0)
    for (_, program), status in zip(ends, statuses, strict=True):
        status.wait(READY)
        program.settimeout(20)
        assert program.recv(100) == b"early"
    assert len(server.checks) <= 2  # they are not all there when it is asked first
    for sock in itertools.chain(*ends):
        sock.close()


@pytest.mark.parametrize("command", [PYTHON, (str(NATIVE),)], ids=["python", "native"])
def test_no_descriptors_left(make_carrier: MakeCarrier, command: tuple[str, ...]) -> None:
    """Who comes too late is told so, and reset; the others' connections, also of the same program, go on."""
    limited = ("sh", "-c", 'ulimit -n 40; exec "$0" "$@"', *command)
    host = make_carrier(None, command=limited)
    made = []
    for _ in range(20):
        client, tcp = tcp_pair()
        with tcp:
            made.append((client, *host.carry(tcp, mode=MAYBE)))
    late = [(c, p, s) for c, p, s in made if _is(s, REFUSED)]
    assert 0 < len(late) < len(made)
    for client, program, status in made:
        client.settimeout(20)
        program.settimeout(20)
        if (client, program, status) in late:
            assert "descriptors" in status.detail
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            client.sendall(b"hello")
            assert program.recv(100) == b"hello"
    for client, program, _ in made:
        client.close()
        program.close()
    host.close()


def _is(status: Status, state: int) -> bool:
    """Once it says nothing new."""
    time.sleep(0.1)
    return status.state == state
