"""`count(name="")`: how many items and bytes go by, in each direction.

Arguments: `name`, under which they are counted.
Endpoints: either.  Wire: "none".  The numbers are in the connection's context as `NAME.sent`,
`NAME.sent_bytes`, `NAME.received`, `NAME.received_bytes`; the connection log and `bertha ps` show them with
this chunnel, and a carrier logs them when the connection ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bertha_socket.chunnels._types import ChunnelType, Context, Implementation, Parameter, Pipe, wires


class CountPipe(Pipe):
    """Two pairs of numbers."""

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._prefix = args.get("name") or "count"
        for what in ("sent", "sent_bytes", "received", "received_bytes"):
            context.counts.setdefault(f"{self._prefix}.{what}", 0)

    def _add(self, what: str, item: Any) -> None:
        self.context.counts[f"{self._prefix}.{what}"] += 1
        size = len(item) if isinstance(item, (bytes, bytearray, memoryview)) else 0
        self.context.counts[f"{self._prefix}.{what}_bytes"] += size

    def down(self, item: Any) -> Iterable[Any]:
        """Counted as sent."""
        self._add("sent", item)
        return (item,)

    def up(self, item: Any) -> tuple[Iterable[Any], Iterable[Any]]:
        """Counted as received."""
        self._add("received", item)
        return (item,), ()


TYPE = ChunnelType(
    name="count",
    summary="how many items and bytes go by",
    parameters=(Parameter("name", "str", "under which they are counted", ""),),
    endpoints="either",
    transparent=True,
    implementations=(
        Implementation("python", "count", wires(), endpoints="either", make=CountPipe, builtin=True),
    ),
)
