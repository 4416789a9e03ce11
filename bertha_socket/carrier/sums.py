"""What the chunnels of one UDP socket's exchanges have counted, as sums: a socket has one line in the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from bertha_socket.carrier.counted import Counted
from bertha_socket.negotiation.plan import Plan

_COUNTERS_MAX: Final = 256


class Sums:
    """The text of one socket: the chunnels of the exchange that was shown last, the counters of all."""

    def __init__(self, side: str) -> None:
        self._side = side
        self._sums: dict[str, int] = {}
        self._counted: Counted | None = None
        self._plan = b""
        #: What was left out of the plan that is shown.
        self.left_out = ""
        #: Goes up when another plan is shown.
        self.version = 0

    @property
    def text(self) -> str:
        """A JSON array; "": nobody has agreed on anything yet."""
        return "" if self._counted is None else self._counted.text

    def adder(self, counts: Mapping[str, object]) -> Callable[[], bool]:
        """For one exchange, whose chunnels go on changing `counts`: a call that adds what is new, and says
        whether that was something."""
        added: dict[str, int] = {}

        def add() -> bool:
            news = False
            for name, number in counts.items():
                if not isinstance(number, int) or number == added.get(name):
                    continue
                if name in self._sums or len(self._sums) < _COUNTERS_MAX:
                    self._sums[name] = self._sums.get(name, 0) + number - added.get(name, 0)
                    added[name] = number
                    news = True
            return news

        return add

    def show(self, plan: bytes) -> None:
        """That exchanges by this plan are shown from now on."""
        if plan != self._plan:
            self._plan = plan
            decoded = Plan.decode(plan)
            self._counted = Counted(decoded, self._side, self._sums)
            self.left_out = decoded.left_out
            self.version += 1

    def changes(self) -> list[tuple[int, bytes]]:
        """See Counted."""
        return [] if self._counted is None else self._counted.changes()
