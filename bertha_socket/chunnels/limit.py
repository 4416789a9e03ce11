"""`limit(rate, burst=None, direction="both")`: no more than so many bytes a second.

Arguments: `rate`, bytes per second; `burst`, bytes that may go at once after a pause (a tenth of a second's
worth, and at least 4096, if not given); `direction`, "send", "receive" or "both", each by itself.
Endpoints: either.  Wire: "none".  What is over the rate waits, and whoever sends waits with it: nothing is
lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from bertha_socket.chunnels._types import (
    ChunnelType,
    Context,
    Implementation,
    Parameter,
    Pipe,
    between,
    one_of,
    wires,
)


class _Bucket:
    """Tokens for bytes, and the items that wait for them.  One item may overdraw it: items stay whole."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None
        self.waiting: deque[Any] = deque()

    def offer(self, item: Any, now: float) -> list[Any]:
        self.waiting.append(item)
        return self.take(now)

    def take(self, now: float) -> list[Any]:
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        out = []
        while self.waiting and self._tokens > 0:
            item = self.waiting.popleft()
            self._tokens -= len(item) if isinstance(item, (bytes, bytearray, memoryview)) else 1
            out.append(item)
        return out

    def due(self) -> float | None:
        if not self.waiting or self._at is None:
            return None
        return self._at + max(0.0, 1 - self._tokens) / self._rate


class LimitPipe(Pipe):
    """A token bucket in each direction."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        rate = float(args["rate"])
        burst = float(args.get("burst") or max(4096.0, rate / 10))
        direction = args.get("direction", "both")
        self._down = _Bucket(rate, burst) if direction in ("send", "both") else None
        self._up = _Bucket(rate, burst) if direction in ("receive", "both") else None
        self._down_over = self._up_over = False

    def _look(self) -> None:
        down = self._down is not None and bool(self._down.waiting)
        up = self._up is not None and bool(self._up.waiting)
        self.full_down, self.full_up = down, up
        self.lingers_down, self.lingers_up = down and self._down_over, up and self._up_over

    def down(self, item: Any) -> Iterable[Any]:
        """What the rate allows."""
        out = [item] if self._down is None else self._down.offer(item, self.context.clock())
        self._look()
        return out

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        """What the rate allows."""
        out = [item] if self._up is None else self._up.offer(item, self.context.clock())
        self._look()
        return out, ()

    def down_end(self) -> Iterable[Any]:
        """After what waits."""
        self._down_over = True
        self._look()
        return ()

    def up_end(self) -> Iterable[Any]:
        """After what waits."""
        self._up_over = True
        self._look()
        return ()

    def deadline(self) -> float | None:
        """When there is a token again."""
        return min(
            (d for b in (self._down, self._up) if b is not None and (d := b.due()) is not None), default=None
        )

    def tick(self, now: float) -> tuple[Iterable[Any], Iterable[Any]]:
        """What may go by now."""
        up = self._up.take(now) if self._up is not None else []
        down = self._down.take(now) if self._down is not None else []
        self._look()
        return up, down


TYPE = ChunnelType(
    name="limit",
    summary="no more than so many bytes a second",
    parameters=(
        Parameter("rate", "float", "bytes per second", check=between(1, 1e12)),
        Parameter("burst", "float", "bytes that may go at once", None, between(1, 1e12)),
        Parameter("direction", "str", "which way", "both", one_of("send", "receive", "both")),
    ),
    endpoints="either",
    layer=85,
    transparent=True,
    implementations=(
        Implementation("python", "limit", wires(), endpoints="either", make=LimitPipe, builtin=True),
    ),
)
