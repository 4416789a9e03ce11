"""The order of a union of two DAGs (docs/decisions/0005).

The server's order holds.  The client's holds where it does not contradict the server's.  What neither decides
goes by layer (what works on the application's data before what works on the network's: compress before
encrypt), then the server's chunnels before the client's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bertha_socket.negotiation.offer import OfferedChunnel


class Pair(NamedTuple):
    """A chunnel of the union, as each end has it in its DAG."""

    client: OfferedChunnel | None
    server: OfferedChunnel | None

    @property
    def type(self) -> str:
        """The chunnel's type."""
        chunnel = self.server or self.client
        assert chunnel is not None
        return chunnel.type


class _Key(NamedTuple):
    """Chunnels of two DAGs are the same when they are the nth of their type in both."""

    type: str
    nth: int


def union(client: Sequence[OfferedChunnel], server: Sequence[OfferedChunnel]) -> tuple[Pair, ...]:
    """Every chunnel of both, once, in the order in which data from the application takes them."""
    clients, servers = _keyed(client), _keyed(server)
    keys = list({**servers, **clients})  # the server's first: the order that ties leave
    index = {key: i for i, key in enumerate(keys)}
    before = _Order(len(keys))
    for chain in (list(servers), list(clients)):
        # All pairs, not neighbours alone: where one contradicts the server's order, the others still hold.
        for i, first in enumerate(chain):
            for second in chain[i + 1 :]:
                before.add(index[first], index[second])
    left = set(range(len(keys)))
    done: list[_Key] = []
    while left:
        free = [i for i in left if not any(before.holds(other, i) for other in left)]
        best = min(free, key=lambda i: ((servers.get(keys[i]) or clients[keys[i]]).layer, i))
        left.remove(best)
        done.append(keys[best])
    return tuple(Pair(clients.get(k), servers.get(k)) for k in done)


class _Order:
    """A strict order that grows; what would contradict it is not taken.  Sets are the bits of a number."""

    def __init__(self, size: int) -> None:
        self._later = [0] * size

    def holds(self, first: int, second: int) -> bool:
        return bool(self._later[first] >> second & 1)

    def add(self, first: int, second: int) -> None:
        if self.holds(second, first) or self.holds(first, second):
            return
        new = self._later[second] | 1 << second
        self._later[first] |= new
        for i, later in enumerate(self._later):
            if later >> first & 1:
                self._later[i] |= new


def _keyed(chunnels: Sequence[OfferedChunnel]) -> dict[_Key, OfferedChunnel]:
    seen: Counter[str] = Counter()
    found: dict[_Key, OfferedChunnel] = {}
    for chunnel in chunnels:
        found[_Key(chunnel.type, seen[chunnel.type])] = chunnel
        seen[chunnel.type] += 1
    return found
