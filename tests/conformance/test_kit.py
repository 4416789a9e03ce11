"""The kit finds what it is there to find: each of these chunnels does one thing wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from bertha_socket.chunnels import ChunnelError, Interface, Pipe
from bertha_socket.testing import ChunnelFault, check_chunnel

Up = tuple[Iterable[Any], Iterable[Any]]


class Loses(Pipe):
    def down(self, item: Any) -> Iterable[Any]:
        return (item[:-1],)


class Doubles(Pipe):
    def up(self, item: Any) -> Up:
        return (item, item), ()


class HoldsBack(Pipe):
    held: tuple[Any, ...] = ()

    def down(self, item: Any) -> Iterable[Any]:
        before, self.held = self.held, (item,)
        return before

    def down_end(self) -> Iterable[Any]:
        return self.held


class ForgetsTheEnd(Pipe):
    held: tuple[Any, ...] = ()

    def up(self, item: Any) -> Up:
        self.held = (*self.held, item)
        return ((), ()) if len(self.held) % 2 else ((b"".join(self.held[-2:]),), ())


class NeverEnds(Pipe):
    def down_end(self) -> Iterable[Any]:
        self.lingers_down = True
        return ()


class StaysFull(Pipe):
    def down(self, item: Any) -> Iterable[Any]:
        self.full_down = True
        return (item,)


class CutsMessages(Pipe):
    """Right for a stream, wrong for messages."""

    def down(self, item: Any) -> Iterable[Any]:
        return [item[i : i + 10] for i in range(0, len(item), 10)]


class TrustsTheNetwork(Pipe):
    def down(self, item: Any) -> Iterable[Any]:
        return (item.hex().encode() + b"\n",)

    got = b""

    def up(self, item: Any) -> Up:
        *lines, self.got = (self.got + item).split(b"\n")
        return [bytes.fromhex(line.decode("ascii")) for line in lines], ()


class ClosesOnce(Pipe):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class Ticks(Pipe):
    def deadline(self) -> float | None:
        return self.context.clock() + 1


class MakesThingsUp(Pipe):
    """A length that nobody checks becomes as many bytes."""

    got = b""

    def down(self, item: Any) -> Iterable[Any]:
        return (len(item).to_bytes(3, "big") + item,)

    def up(self, item: Any) -> Up:
        self.got += item
        out = []
        while len(self.got) >= 3:
            length = int.from_bytes(self.got[:3], "big")
            if len(self.got) < 3 + length and length < 1_500_000:
                break
            out.append(self.got[3 : 3 + length].ljust(length))
            self.got = self.got[3 + length :]
        return out, ()

    def up_end(self) -> Iterable[Any]:
        if self.got:
            raise ChunnelError("cut off")
        return ()


class TakesNumbers(Pipe):
    """`bytes(5)`."""

    def down(self, item: Any) -> Iterable[Any]:
        return (bytes(item),)


class SendsAllAgain(Pipe):
    """After its end it begins anew."""

    sent: tuple[Any, ...] = ()
    ended = False

    def down(self, item: Any) -> Iterable[Any]:
        self.sent = (*self.sent, item)
        return self.sent if self.ended else (item,)

    def down_end(self) -> Iterable[Any]:
        self.ended = True
        return ()


@pytest.mark.parametrize(
    ("pipe", "upper", "found"),
    [
        (Loses, Interface.STREAM, "order: what the"),
        (Doubles, Interface.STREAM, "order: what the"),
        (HoldsBack, Interface.STREAM, "nothing_is_held_back: "),
        (ForgetsTheEnd, Interface.STREAM, "(order|nothing_is_held_back): "),
        (NeverEnds, Interface.STREAM, "order: the end does not come through"),
        (StaysFull, Interface.STREAM, "order: the chunnel stays full"),
        (CutsMessages, Interface.MESSAGES, "order: what the"),
        (TrustsTheNetwork, Interface.STREAM, "(rubbish|cut_off|flipped_bits): it raised"),
        (Ticks, Interface.STREAM, "(order|nothing_is_held_back|idle_costs_nothing): "),
        (MakesThingsUp, Interface.STREAM, "rubbish: .* bytes of rubbish became"),
        (TakesNumbers, Interface.STREAM, r"wrong_types: int that was sent became \[b'\\x00"),
        (SendsAllAgain, Interface.STREAM, "sent_after_the_end: what the client sent after its end"),
    ],
)
def test_what_is_wrong_is_found(pipe: type[Pipe], upper: Interface, found: str) -> None:
    lower = Interface.MESSAGES if upper is Interface.MESSAGES else Interface.STREAM
    with pytest.raises(ChunnelFault) as raised:
        check_chunnel(lambda: (pipe(), pipe()), upper=upper, lower=lower)
    assert re.match(found, str(raised.value)), raised.value


def test_a_pipe_that_does_nothing_is_right() -> None:
    assert "order" in check_chunnel(lambda: (Pipe(), Pipe()))
    assert "order" in check_chunnel(
        lambda: (Pipe(), Pipe()), upper=Interface.MESSAGES, lower=Interface.MESSAGES
    )


def test_a_second_close_that_raises_takes_nothing_down() -> None:
    """`Pipeline.close` tells everybody, whatever they do."""
    check_chunnel(lambda: (ClosesOnce(), ClosesOnce()), only=["cancellation"])
