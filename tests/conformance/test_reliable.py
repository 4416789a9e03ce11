"""`reliable` where the network is at its worst, on numbers' edges, and over the kernel's UDP."""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bertha_socket.chunnels import ChunnelError, Context, Interface
from bertha_socket.chunnels._reliable_native import NativeReliablePipe, held_by_all
from bertha_socket.chunnels.pipeline import Moved, Pipeline
from bertha_socket.chunnels.reliable import HEADER, WIRE, ReliablePipe, Timing, _near
from bertha_socket.testing import Duplex, pair_of

#: Who the client and the server are.
PAIRINGS = [(client, server) for client in ("native", "python") for server in ("native", "python")]


@pytest.fixture(params=PAIRINGS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """pair_of("reliable", ...) with either implementation at either end."""
    return lambda **args: replace(pair_of("reliable", **args), implementations=request.param)


def _data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return HEADER.pack(1, flags, 5, number, 1) + payload


@pytest.mark.parametrize("kind", [ReliablePipe, NativeReliablePipe])
def test_what_several_hold_is_bounded(kind: type[ReliablePipe | NativeReliablePipe]) -> None:
    """Out of order so much and no more; what is wanted is always taken; nothing stays of those that end."""
    context = Context("server", held=held_by_all(100_000), clock=lambda: 1.0)
    pipes = [kind({"mtu": 1200, "give_up": 30.0}, WIRE, "server", context) for _ in range(3)]
    for pipe in pipes:
        for number in range(2, 500):
            assert list(pipe.up(_data(number, bytes(100)))[0]) == []
    assert 80_000 < context.held.early <= 100_000
    for number in range(1, 100):
        assert list(pipes[2].up(_data(number, b"next"))[0]) == [b"next"]
    assert len(list(pipes[0].up(_data(1, b"next"))[0])) > 300
    assert context.held.early < 60_000
    assert pipes[2].begun_at == math.inf
    pipes[2].up(_data(100, b"begins", 1))
    assert (context.held.begun, pipes[2].begun_at) == (4096 + 6, 1.0)
    for pipe in pipes:
        pipe.close()
    assert (context.held.early, context.held.begun) == (0, 0)


@pytest.mark.parametrize("kind", [ReliablePipe, NativeReliablePipe])
def test_messages_are_bounded(kind: type[ReliablePipe | NativeReliablePipe]) -> None:
    context = Context("server", held=held_by_all(1000), clock=lambda: 1.0)
    args = {"mtu": 1200, "give_up": 30.0, "message_max": 1000}
    pipe = kind(args, WIRE, "server", context)
    assert list(pipe.up(_data(1, bytes(1000)))[0]) == [bytes(1000)]
    pipe.up(_data(2, bytes(1000), 1))
    with pytest.raises(ChunnelError, match="more than 1000 bytes came"):
        pipe.up(_data(3, b"x"))
    with pytest.raises(ChunnelError, match=r"1001 bytes, more than 1000|more than 1000 bytes came"):
        pipe.down(bytes(1001))
    pipe = kind({**args, "piece": 400}, WIRE, "server", context)
    pipe.up(_data(1, b""))
    sent = list(pipe.down(bytes(1001)))
    assert [(d[1], len(d) - HEADER.size) for d in sent] == [(0, 400), (0, 400), (0, 201)]
    assert not pipe.answered
    pipe.up(HEADER.pack(2, 0, 5, 1024, 2))
    assert pipe.answered


@pytest.mark.parametrize("loss", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_doubled_or_reordered(pair: Callable[..., Any], loss: float, seed: int) -> None:
    duplex = Duplex(pair(give_up=3600.0), Interface.DATAGRAMS, seed, loss)
    sent = {
        side: [duplex.random.randbytes(duplex.random.choice((0, 1, 100, 5000))) for _ in range(40)]
        for side in ("client", "server")
    }
    for side, messages in sent.items():
        duplex.send_all(side, messages)
        duplex.end(side)
    duplex.run(lambda: all(duplex.ended.values()))
    assert duplex.got["server"] == sent["client"]
    assert duplex.got["client"] == sent["server"]


def test_without_loss_nothing_is_sent_twice(pair: Callable[..., Any]) -> None:
    duplex = Duplex(pair(), Interface.DATAGRAMS, loss=0.0)
    duplex.send_all("client", [b"x" * 1000] * 200)
    duplex.settle()
    data = [d for d in duplex.sent["client"] if d[0] == 1]
    assert len(data) == len(set(data)) == 200


def test_it_begins_slowly_and_waits_for_acknowledgements(pair: Callable[..., Any]) -> None:
    duplex = Duplex(pair(), Interface.DATAGRAMS, loss=0.0)
    duplex.settle(1.0)
    duplex.flowing = False
    for _ in range(300):
        duplex.send("client", b"x" * 1000)
    assert len([d for d in duplex.sent["client"] if d[0] == 1]) == 10


def test_a_silent_other_end_is_given_up(pair: Callable[..., Any]) -> None:
    duplex = Duplex(pair(give_up=5.0), Interface.DATAGRAMS, loss=1.0)
    duplex.send("client", b"anybody there?")
    with pytest.raises(ChunnelError, match="has not answered for 5 s"):
        duplex.settle(600)


def test_strangers_are_ignored(pair: Callable[..., Any]) -> None:
    duplex = Duplex(pair(), Interface.DATAGRAMS, loss=0.0)
    duplex.send_all("client", [b"one"])
    duplex.settle()
    _, _, connection, number, acknowledged = HEADER.unpack_from(duplex.sent["client"][-1])
    for datagram in (
        b"",
        b"short",
        HEADER.pack(1, 0, connection ^ 1, number + 1, acknowledged) + b"another connection's",
        HEADER.pack(9, 0, connection, number + 1, acknowledged) + b"no such kind",
        HEADER.pack(1, 0, connection, number + 5000, acknowledged) + b"far beyond the window",
        HEADER.pack(1, 0, connection, number, acknowledged) + b"the old number again",
    ):
        duplex.inject("server", datagram)
    duplex.send_all("client", [b"two"])
    duplex.settle()
    assert duplex.got["server"] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("low", "reference", "full"),
    [
        (5, 3, 5),
        (1, 0xFFFFFFFF, 0x100000001),
        (0xFFFFFFFF, 0x100000001, 0xFFFFFFFF),
        (7, 1 << 40, (1 << 40) + 7),
    ],
)
def test_numbers_go_around(low: int, reference: int, full: int) -> None:
    assert _near(low, reference) == full


def test_the_timer_of_rfc_6298() -> None:
    timing = Timing()
    assert timing.rto == 1.0
    timing.sample(0.5)
    assert timing.rto == pytest.approx(0.5 + 4 * 0.25)
    timing.sample(0.5)
    assert timing.rto == pytest.approx(0.5 + 4 * 0.1875)
    timing.backoff()
    assert timing.rto == pytest.approx(2 * (0.5 + 4 * 0.1875))
    for _ in range(50):
        timing.sample(0.001)
    assert timing.rto == 0.2
    for _ in range(50):
        timing.backoff()
    assert timing.rto == 8.0


class _End:
    """One end over a UDP socket."""

    def __init__(self, pipes: Any) -> None:
        self.pipeline = Pipeline(list(pipes))
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.got: list[bytes] = []

    def begin(self, other: _End) -> None:
        self.socket.connect(other.socket.getsockname())
        self.do(self.pipeline.start())

    def do(self, moved: Moved) -> None:
        self.got += moved.up
        for datagram in moved.down:
            try:
                self.socket.send(datagram)
            except (BlockingIOError, ConnectionRefusedError):
                pass  # lost

    def turn(self) -> None:
        while True:
            try:
                self.do(self.pipeline.up(self.socket.recv(65536)))
            except (BlockingIOError, ConnectionRefusedError):
                break
        now = time.monotonic()
        due = self.pipeline.deadline()
        if due is not None and due <= now:
            self.do(self.pipeline.tick(now))


def test_over_udp(pair: Callable[..., Any]) -> None:
    client, server = (_End(pipes) for pipes in pair()())
    with client.socket, server.socket:
        client.begin(server)
        server.begin(client)
        sent = [bytes([i % 256]) * (i * 37 % 4000) for i in range(1000)]
        left = list(sent)
        end = time.monotonic() + 60
        while not (client.pipeline.up_done and server.pipeline.up_done and client.pipeline.down_done):
            assert time.monotonic() < end
            while left and not client.pipeline.full_down:
                client.do(client.pipeline.down(left.pop(0)))
                if not left:
                    client.do(client.pipeline.down_end())
            if server.pipeline.up_done:
                server.do(server.pipeline.down_end())
            select.select([client.socket, server.socket], [], [], 0.01)
            client.turn()
            server.turn()
        assert server.got == sent
