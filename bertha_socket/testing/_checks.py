"""The conformance kit: what every chunnel must do, whatever it does.

    from bertha_socket.testing import check_chunnel, pair_of

    def test_mine():
        check_chunnel(pair_of("mine", level=3))

or with any function that returns the two ends of a new connection: `check_chunnel(lambda: (Mine(), Mine()))`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bertha_socket.chunnels import ChunnelError, Context, Interface, Pipe, get
from bertha_socket.testing._duplex import SIDES, Duplex, MakePair, Stuck, other
from bertha_socket.testing._misuse import MISUSE


class ChunnelFault(AssertionError):
    """What a chunnel does and must not do; begins with the name of the check."""


@dataclass(frozen=True)
class PairOf:
    """Makes both ends of a known chunnel type; knows what is above and below."""

    type: str
    args: tuple[tuple[str, Any], ...]
    wire: str
    upper: Interface
    lower: Interface
    material: tuple[tuple[str, str], ...] = ()
    only: str | None = None  # the one end that runs it
    #: Which implementations the client and the server have; None: the best.
    implementations: tuple[str | None, str | None] = (None, None)

    def __call__(self) -> tuple[Sequence[Pipe], Sequence[Pipe]]:
        return self._end("client"), self._end("server")

    def _end(self, side: str) -> Sequence[Pipe]:
        if self.only not in (None, side):
            return ()
        kind = get(self.type)
        name = self.implementations[side == "server"]
        found = kind.implementation(name, self.wire, dict(self.args))
        if found is None or found.make is None or name not in (None, found.name):
            raise ChunnelFault(f"{self.type}: no implementation in Python speaks {self.wire}")
        context = Context(side, dict(self.material) or None, "127.0.0.1:1", "127.0.0.1:2")
        return (found.make(kind.bound(dict(self.args)), self.wire, side, context),)


def pair_of(
    type_name: str, /, wire: str | None = None, material: dict[str, str] | None = None, **args: Any
) -> PairOf:
    """Both ends of a chunnel type that is known here, over its best wire or that one.

    A type whose endpoints are not "both" runs at the client.  Raises UnknownChunnel, ChunnelArgumentError.
    """
    kind = get(type_name)
    bound = kind.bound(args)
    wires = [w for i in kind.implementations if i.make is not None for w in i.wires(bound)]
    only = None if kind.endpoints == "both" else ("server" if kind.endpoints == "server" else "client")
    return PairOf(
        type_name,
        tuple(args.items()),
        wire or (wires[0] if wires else "none"),
        kind.upper,
        kind.lower,
        tuple((material or {}).items()),
        only,
    )


class Check:
    """One run of one check."""

    def __init__(self, make_pair: MakePair, upper: Interface, lower: Interface, seed: int) -> None:
        self.make_pair = make_pair
        self.upper = upper
        self.lower = lower
        self.seed = seed
        self.random = random.Random(seed)

    def duplex(self, loss: float | None = None) -> Duplex:
        usual = 0.1 if self.lower is Interface.DATAGRAMS else 0.0
        return Duplex(self.make_pair, self.lower, self.seed, usual if loss is None else loss)

    def item(self, size: int | None = None) -> Any:
        """Something that a program sends."""
        if size is None:
            size = self.random.choice((1, 2, 10, 100, 1000, 20_000))
        if self.upper is Interface.OBJECTS:
            return {"text": "x" * size, "list": [size, None, True, -1.5], "map": {"a": {"b": []}}}
        if self.random.random() < 0.5:
            return self.random.randbytes(size)
        return (b"the same again " * (size // 15 + 1))[:size]

    def same(self, sent: list[Any], got: list[Any]) -> bool:
        if self.upper is Interface.STREAM:
            return b"".join(sent) == b"".join(got)
        return sent == got

    def begins(self, sent: list[Any], got: list[Any]) -> bool:
        """Whether what came is a beginning of what was sent."""
        if self.upper is Interface.STREAM:
            return b"".join(sent).startswith(b"".join(got))
        return sent[: len(got)] == got

    def told(self, sent: list[Any], got: list[Any]) -> str:
        def size(items: list[Any]) -> str:
            if self.upper is Interface.OBJECTS:
                return f"{len(items)} objects"
            return f"{len(items)} items, {sum(map(len, items))} bytes"

        return f"sent {size(sent)}; came {size(got)}"


def _arrive(check: Check, duplex: Duplex, sent: dict[str, list[Any]]) -> None:
    """Everything that was sent has come, both ends have heard of the end."""
    for side in SIDES:
        duplex.end(side)
    duplex.run(lambda: all(duplex.ended.values()), "the end does not come through")
    for side in SIDES:
        got = duplex.got[other(side)]
        if not check.same(sent[side], got):
            raise ChunnelFault(f"what the {side} sent is not what came: {check.told(sent[side], got)}")


def order(check: Check) -> None:
    """Everything arrives, once, in order, both ways at once."""
    duplex = check.duplex()
    sent: dict[str, list[Any]] = {s: [] for s in SIDES}
    for _ in range(60):
        side = check.random.choice(SIDES)
        item = check.item()
        sent[side].append(item)
        duplex.send_all(side, [item])
        for _ in range(check.random.randint(0, 5)):
            duplex.step()
    _arrive(check, duplex, sent)
    duplex.close()


def nothing_is_held_back(check: Check) -> None:
    """What was sent arrives although nothing follows it."""
    duplex = check.duplex()
    for side in (*SIDES, *SIDES):
        item = check.item(5)
        before = len(duplex.got[other(side)])
        duplex.send_all(side, [item])
        duplex.run(
            lambda side=side, before=before: len(duplex.got[other(side)]) > before,  # type: ignore[misc]
            f"what the {side} sent does not arrive before something else is sent",
        )
    duplex.close()


def large_messages(check: Check) -> None:
    """A megabyte in one piece."""
    duplex = check.duplex(0.01 if check.lower is Interface.DATAGRAMS else 0.0)
    sent: dict[str, list[Any]] = {s: [check.item(1_000_000), check.item(3)] for s in SIDES}
    for side in SIDES:
        duplex.send_all(side, sent[side])
    _arrive(check, duplex, sent)
    duplex.close()


def empty_messages(check: Check) -> None:
    """Messages without bytes are messages; in a stream they are nothing."""
    duplex = check.duplex()
    empty: Any = {} if check.upper is Interface.OBJECTS else b""
    sent: dict[str, list[Any]] = {s: [empty, check.item(4), empty, empty] for s in SIDES}
    for side in SIDES:
        duplex.send_all(side, sent[side])
    _arrive(check, duplex, sent)
    duplex.close()


def half_close(check: Check) -> None:
    """An end that sends no more still receives."""
    for first in SIDES:
        duplex = check.duplex()
        sent: dict[str, list[Any]] = {s: [check.item()] for s in SIDES}
        duplex.send_all(first, sent[first])
        duplex.end(first)
        duplex.run(lambda d=duplex, f=first: d.ended[other(f)], "the end does not come")  # type: ignore[misc]
        second = other(first)
        for _ in range(20):
            item = check.item()
            sent[second].append(item)
            duplex.send_all(second, [item])
        duplex.send_all(second, sent[second][:1])
        sent[second] = sent[second][1:] + sent[second][:1]
        duplex.end(second)
        duplex.run(lambda d=duplex: all(d.ended.values()), "the end does not come")  # type: ignore[misc]
        for side in SIDES:
            if not check.same(sent[side], duplex.got[other(side)]):
                raise ChunnelFault(check.told(sent[side], duplex.got[other(side)]))
        duplex.close()


def backpressure(check: Check) -> None:
    """While the network takes nothing a chunnel says that it is full or passes on; nothing is lost."""
    duplex = check.duplex()
    duplex.settle(1.0)
    duplex.flowing = False
    sent: dict[str, list[Any]] = {s: [] for s in SIDES}
    for side in SIDES:
        for _ in range(50):
            if duplex.full(side):
                break
            item = check.item(1000)
            sent[side].append(item)
            duplex.send(side, item)
    duplex.flowing = True
    _arrive(check, duplex, sent)
    duplex.close()


def cancellation(check: Check) -> None:
    """`close` is fine at any moment, and twice."""
    for moment in range(12):
        duplex = check.duplex()
        for side in SIDES:
            if not duplex.full(side):
                duplex.send(side, check.item())
        for _ in range(moment):
            duplex.step()
        duplex.close()
        duplex.close()


def cut_off(check: Check) -> None:
    """A network that ends in the midst is an error (ChunnelError), or what came is a beginning of it all."""
    if check.lower is Interface.DATAGRAMS:
        return  # they have no end
    for moment in range(30):
        duplex = check.duplex()
        sent: list[Any] = []
        try:
            for _ in range(4):
                if not duplex.full("client"):
                    sent.append(check.item())
                    duplex.send("client", sent[-1])
                duplex.step()
            for _ in range(moment):
                duplex.step()
            duplex.cut("server")
        except ChunnelError:
            pass
        if not check.begins(sent, duplex.got["server"]):
            raise ChunnelFault(
                f"what came before the cut was not sent: {check.told(sent, duplex.got['server'])}"
            )
        duplex.close()


def rubbish(check: Check) -> None:
    """Bytes that no other end would send are ignored or raise ChunnelError; nothing is made up of them."""
    for round_ in range(40):
        duplex = check.duplex()
        side = SIDES[round_ % 2]
        total = 0
        try:
            if round_ % 4 < 2:
                duplex.settle(1.0)
            for _ in range(5):
                piece = check.random.randbytes(check.random.choice((1, 4, 14, 100, 5000)))
                total += len(piece)
                duplex.inject(side, piece)
            if check.lower is not Interface.DATAGRAMS:
                duplex.cut(side)
        except ChunnelError:
            pass
        size = sum(len(i) for i in duplex.got[side] if isinstance(i, bytes))
        if size > 1_000_000 + total:
            raise ChunnelFault(f"{total} bytes of rubbish became {size}")
        duplex.close()


def flipped_bits(check: Check) -> None:
    """What was altered on its way raises ChunnelError at worst, and nothing else."""
    for round_ in range(40):
        duplex = check.duplex(0.0)
        duplex.settle(0.5)
        duplex.flowing = False
        before = len(duplex.sent["client"])
        if duplex.full("client"):
            continue
        duplex.send("client", check.item(300))
        data = bytearray(b"".join(duplex.sent["client"][before:]))
        if not data:
            continue
        at = check.random.randrange(len(data)) if round_ % 2 else check.random.randrange(min(8, len(data)))
        data[at] ^= 1 << check.random.randrange(8)
        try:
            duplex.inject("server", bytes(data))
            if check.lower is not Interface.DATAGRAMS:
                duplex.cut("server")
        except ChunnelError:
            pass
        duplex.close()


def idle_costs_nothing(check: Check) -> None:
    """With nothing to send and everything arrived there is no timer."""
    duplex = check.duplex(0.0)
    for side in SIDES:
        duplex.send_all(side, [check.item(10)])
    duplex.settle(60.0)
    for side in SIDES:
        if duplex.ends[side].deadline() is not None:
            raise ChunnelFault(f"the {side} still has a timer after a minute without traffic")
    duplex.close()


CHECKS: Final[tuple[Callable[[Check], None], ...]] = (
    order,
    nothing_is_held_back,
    large_messages,
    empty_messages,
    half_close,
    backpressure,
    cancellation,
    cut_off,
    rubbish,
    flipped_bits,
    idle_costs_nothing,
    *MISUSE,
)


def _said(make_pair: MakePair, what: str) -> Interface:
    found = getattr(make_pair, what, None)
    return found if isinstance(found, Interface) else Interface.STREAM


def check_chunnel(
    make_pair: MakePair,
    *,
    upper: Interface | None = None,
    lower: Interface | None = None,
    seed: int = 1,
    only: Sequence[str] = (),
) -> list[str]:
    """Runs every check on new connections that `make_pair()` makes; the names of those that were run.

    `upper` and `lower` are what the chunnel is connected to, if `make_pair` is not from `pair_of` (streams,
    if not given); `only` names checks.  Raises ChunnelFault, which says what went wrong.
    """
    above = upper if upper is not None else _said(make_pair, "upper")
    below = lower if lower is not None else _said(make_pair, "lower")
    done = []
    for check in CHECKS:
        if only and check.__name__ not in only:
            continue
        try:
            check(Check(make_pair, above, below, seed))
        except (ChunnelFault, Stuck) as error:
            raise ChunnelFault(f"{check.__name__}: {error}") from error
        except Exception as error:
            raise ChunnelFault(f"{check.__name__}: it raised {type(error).__name__}: {error}") from error
        done.append(check.__name__)
    return done
