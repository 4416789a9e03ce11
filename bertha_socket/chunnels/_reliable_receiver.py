"""The receiving half of `reliable` (reliable.py has the wire): puts in order what has come, within bounds."""

from __future__ import annotations

import math
from typing import Any, Final

from bertha_socket.chunnels import _reliable_native
from bertha_socket.chunnels._types import ChunnelError

#: Flags of data.
MORE, END = 1, 2
#: Of an acknowledgement.
RANGES_MAX: Final = 8
MESSAGE_MAX: Final = 16 * 1024 * 1024
#: Datagrams that are kept out of order.
WINDOW: Final = 1024
#: Bytes of them; what is counted for each of those, and for a message that is not whole.
EARLY_BYTES: Final = 8 * 1024 * 1024
_EARLY_COST: Final = 48
_BEGUN_COST: Final = 4096


class Receiver:
    """What has come, and puts it in order."""

    def __init__(self, message_max: int = MESSAGE_MAX, held: Any = None) -> None:
        self.wanted = 1
        self._message_max = message_max
        self._held = held if held is not None else _reliable_native.Held()
        self._early: dict[int, tuple[int, bytes]] = {}
        self._early_bytes = 0
        self._message = bytearray()
        self._counted = 0  # what is counted for that
        self.begun_at = math.inf
        self.ended = False

    @property
    def room(self) -> int:
        return WINDOW - len(self._early)

    def take(self, number: int, flags: int, payload: bytes, now: float) -> tuple[list[bytes], bool]:
        """Whole messages, and whether something is missing before it (or it came twice)."""
        if number < self.wanted or number in self._early or number >= self.wanted + WINDOW:
            return [], True
        if number != self.wanted:
            self._keep(number, flags, payload)
            return [], True
        messages: list[bytes] = []
        self._join(flags, payload, now, messages)
        while self.wanted in self._early:
            flags, payload = self._early.pop(self.wanted)
            self._count_early(-len(payload), -_EARLY_COST)
            self._join(flags, payload, now, messages)
        return messages, bool(self._early)

    def _keep(self, number: int, flags: int, payload: bytes) -> None:
        """If there is room for it: it comes again."""
        size, held = len(payload), self._held
        if self._early_bytes + size <= EARLY_BYTES and held.early + size + _EARLY_COST <= held.early_max:
            self._early[number] = (flags, payload)
            self._count_early(size, _EARLY_COST)

    def _join(self, flags: int, payload: bytes, now: float, messages: list[bytes]) -> None:
        """One whose turn it is, which is always taken."""
        self.wanted += 1
        if self.ended:
            return
        if flags & END:
            self.ended = True
            self._message.clear()  # it will never be whole
            self._count_begun(-self._counted)
            return
        if len(self._message) + len(payload) > self._message_max:
            raise ChunnelError(f"reliable: a message of more than {self._message_max} bytes came")
        self._message += payload
        if flags & MORE:
            if not self._counted:
                self.begun_at = now
                self._count_begun(_BEGUN_COST)
            self._count_begun(len(payload))
            return
        self._count_begun(-self._counted)
        messages.append(bytes(self._message))
        self._message.clear()

    def _count_early(self, size: int, cost: int) -> None:
        self._early_bytes += size
        self._held.early += size + cost

    def _count_begun(self, size: int) -> None:
        self._counted += size
        self._held.begun += size
        if not self._counted:
            self.begun_at = math.inf

    def drop(self) -> None:
        """Holds nothing any more."""
        self._count_early(-self._early_bytes, -_EARLY_COST * len(self._early))
        self._early.clear()
        self._message.clear()
        self._count_begun(-self._counted)

    def ranges(self) -> list[tuple[int, int]]:
        """What has come beyond what is wanted."""
        found: list[tuple[int, int]] = []
        for number in sorted(self._early):
            if found and found[-1][1] == number:
                found[-1] = (found[-1][0], number + 1)
            elif len(found) < RANGES_MAX:
                found.append((number, number + 1))
            else:
                break
        return found
