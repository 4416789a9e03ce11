"""`reliable` in C and in Python are the same: given the same, at the same time, they say the same."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest

from bertha_socket.chunnels import ChunnelError, Context, Interface, Pipe
from bertha_socket.chunnels._reliable_native import NativeReliablePipe
from bertha_socket.chunnels.reliable import HEADER, WIRE, ReliablePipe
from bertha_socket.testing import Duplex

SIDES = ("client", "server")


class _InPython(ReliablePipe):
    """With a connection's number and a first number of the test's choosing."""

    def __init__(self, args: dict[str, Any], context: Context, first: int) -> None:
        super().__init__(args, WIRE, context.side, context)
        self._out.next = self._out.acknowledged = self._in.wanted = first
        self._out._recover = first - 1


class Twins(Pipe):
    """Both of them as one pipe, which says what the one in Python says; they must not differ."""

    def __init__(self, side: str, first: int = 1, mtu: int = 1200) -> None:
        args = {"mtu": mtu, "give_up": 3600.0}
        super().__init__(args, WIRE, side)
        numbers = iter([7] * 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("secrets.randbits", lambda bits: next(numbers))
            self.python = _InPython(args, self.context, first)
            self.native = NativeReliablePipe(args, WIRE, side, self.context, first)

    def _both(self, call: str, *args: Any) -> Any:
        said: list[Any] = []
        for pipe in (self.python, self.native):
            try:
                found = getattr(pipe, call)(*args)
                said.append([list(part) for part in found] if call in ("up", "tick") else list(found))
            except ChunnelError as error:
                said.append(error)
        one, other = said
        if isinstance(one, ChunnelError):
            assert str(one) == str(other)
            raise one
        assert one == other
        for state in ("full_down", "ended_up", "lingers_down"):
            assert getattr(self.python, state) == getattr(self.native, state), state
            setattr(self, state, getattr(self.python, state))
        assert self.python.deadline() == self.native.deadline()
        return one

    def start(self) -> Iterable[bytes]:
        found: list[bytes] = self._both("start")
        return found

    def down(self, item: Any) -> Iterable[bytes]:
        found: list[bytes] = self._both("down", item)
        return found

    def down_end(self) -> Iterable[bytes]:
        found: list[bytes] = self._both("down_end")
        return found

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        risen, answered = self._both("up", item)
        return risen, answered

    def up_end(self) -> Iterable[bytes]:
        found: list[bytes] = self._both("up_end")
        return found

    def tick(self, now: float) -> tuple[Iterable[bytes], Iterable[bytes]]:
        risen, answered = self._both("tick", now)
        return risen, answered

    def deadline(self) -> float | None:
        return self.python.deadline()


def _network(seed: int, loss: float, **how: int) -> Duplex:
    return Duplex(lambda: (Twins("client", **how), Twins("server", **how)), Interface.DATAGRAMS, seed, loss)


def _talk(duplex: Duplex, sizes: tuple[int, ...], count: int) -> None:
    """Both ways, to both ends' ends."""
    sent = {s: [duplex.random.randbytes(duplex.random.choice(sizes)) for _ in range(count)] for s in SIDES}
    for side, messages in sent.items():
        duplex.send_all(side, messages)
        duplex.end(side)
    duplex.run(lambda: all(duplex.ended.values()))
    assert duplex.got["server"] == sent["client"]
    assert duplex.got["client"] == sent["server"]
    duplex.settle(600)


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_datagrams(seed: int, loss: float) -> None:
    _talk(_network(seed, loss), (0, 1, 100, 5000, 30_000), 40)


@pytest.mark.parametrize("mtu", [64, 100, 9000, 65507])
def test_datagrams_of_every_size(mtu: int) -> None:
    _talk(_network(mtu, 0.1, mtu=mtu), (0, 1, mtu - 14, mtu - 13, 3000), 30)


@pytest.mark.parametrize("before", [0, 1, 20, 300])
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_where_numbers_go_around(before: int, loss: float) -> None:
    _talk(_network(before, loss, first=(1 << 32) - before), (1, 100, 5000), 60)


def test_one_that_stops_half_way() -> None:
    """One end has said its all; the other goes on, and both are told the ends in their order."""
    duplex = _network(3, 0.2)
    duplex.send_all("client", [b"first", b"last"])
    duplex.end("client")
    duplex.run(lambda: duplex.ended["server"])
    later = [duplex.random.randbytes(2000) for _ in range(50)]
    duplex.send_all("server", later)
    assert not duplex.ended["client"]
    duplex.end("server")
    duplex.run(lambda: duplex.ended["client"])
    assert duplex.got == {"client": later, "server": [b"first", b"last"]}


def test_one_that_does_not_answer() -> None:
    duplex = _network(4, 1.0)
    duplex.send("client", b"anybody there?")
    with pytest.raises(ChunnelError, match="has not answered for 3600 s"):
        duplex.settle(20_000)


def _altered(chance: random.Random, datagram: bytes) -> bytes:
    """One that is like it, but is not."""
    kind, flags, connection, a, b = HEADER.unpack_from(datagram)
    payload = datagram[HEADER.size :]
    match chance.randrange(7):
        case 0:
            kind = chance.choice((0, 1, 2, 3, 9))
        case 1:
            flags = chance.randrange(256)
        case 2:
            a = (a + chance.choice((-1 << 31, -1025, -1, 1, 5, 1023, 1024, 1 << 31))) & 0xFFFFFFFF
        case 3:
            b = (b + chance.choice((-1 << 31, -50, -1, 1, 50, 1 << 31))) & 0xFFFFFFFF
        case 4:
            payload = chance.randbytes(chance.randrange(80))
        case 5:
            connection ^= 1
        case _:
            return datagram[: chance.randrange(len(datagram))]
    return HEADER.pack(kind, flags, connection, a, b) + payload


@pytest.mark.parametrize("seed", range(30))
def test_what_no_other_end_says(seed: int) -> None:
    """Datagrams that somebody has altered: they may spoil a connection, but both in the same way."""
    chance = random.Random(seed)
    first = chance.choice((1, 1 << 32, (1 << 32) - 5))
    duplex = _network(seed, 0.1, first=first)
    with suppress(ChunnelError):  # said by both
        for _ in range(300):
            side = chance.choice(SIDES)
            if not duplex.full(side):
                duplex.send(side, chance.randbytes(chance.choice((0, 10, 3000))))
            for _ in range(chance.randrange(4)):
                duplex.step()
            if chance.random() < 0.3 and (sent := duplex.sent[side]):
                duplex.inject("server" if side == "client" else "client", _altered(chance, sent[-1]))


def test_a_message_that_is_too_long() -> None:
    with pytest.raises(ChunnelError, match="a message of 16777217 bytes, more than 16777216"):
        Twins("client").down(bytes((1 << 24) + 1))


def test_one_that_takes_no_bytes() -> None:
    with pytest.raises(ChunnelError, match="takes bytes and was given int"):
        Twins("client").down(5)
