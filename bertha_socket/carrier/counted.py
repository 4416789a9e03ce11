"""What a connection's chunnels have counted, in the text that the connection log and `bertha ps` show.

The text lies in memory that the shim and the agent read at any moment, without a word between us.  So each
number has room for its digits from the start, on the left of spaces, and is changed in such steps that what
is there after each of them is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from bertha_socket.carrier.plans import TEXT_MAX, entries_of, log_text
from bertha_socket.negotiation.plan import Plan

#: Digits of a number.
_WIDTH: Final = 16
_MOST: Final = 10**_WIDTH - 1
_COUNTERS_MAX: Final = 32


class _Place(NamedTuple):
    name: str
    at: int


def _digits(number: object) -> bytes:
    """What is no number, as an author's chunnel may write it, is none."""
    if not isinstance(number, int):
        return b"0"
    return str(max(0, min(int(number), _MOST))).encode("ascii")


def _steps(old: bytes, new: bytes) -> list[tuple[int, bytes]]:
    """(where, what): from one number to the other, through numbers only."""
    if old == new:
        return []
    # Nothing begins with 0 but 0 itself, and no digit stands behind a space.
    steps = [(0, new[:1])] if old == b"0" else []
    steps += [(i, b" ") for i in range(len(old) - 1, len(new) - 1, -1)]
    steps += [(i, new[i : i + 1]) for i in range(len(old), len(new))]
    return [*steps, (0, new)]


class Counted:
    """The text of one connection.  `counts` goes on being changed by its chunnels."""

    def __init__(self, plan: Plan, side: str, counts: Mapping[str, object]) -> None:
        """Counters that are there now are shown, each with the chunnel that it is named after: `NAME.what`,
        where NAME is the chunnel's argument `name`, or else its type."""
        self._counts = counts
        self._shown: dict[str, bytes] = {}
        self._places: list[_Place] = []
        self._text = bytearray()
        free = [n for n in counts if "." in n][:_COUNTERS_MAX]
        parts = []
        for chunnel, entry in zip(plan.chunnels, entries_of(plan, side), strict=True):
            own: list[str] = []
            if chunnel.implementation(side) is not None:
                prefix = f"{chunnel.kwargs.get('name') or chunnel.type}."
                own = [n for n in free if n.startswith(prefix)]
                free = [n for n in free if n not in own]
            parts.append((json.dumps(entry, separators=(",", ":")), own))
        self._lay_out(parts)
        if len(self._text) > TEXT_MAX:  # the chunnels themselves matter more
            self._places.clear()
            self._text = bytearray(log_text(plan, side).encode("ascii"))
        for place in self._places:
            self._shown[place.name] = b"0"
        self.changes()

    def _lay_out(self, parts: list[tuple[str, list[str]]]) -> None:
        text = self._text
        text += b"["
        for i, (entry, own) in enumerate(parts):
            text += b"," if i else b""
            text += entry.encode("ascii")
            if own:
                text[-1:] = b',"counts":{'
                for j, name in enumerate(own):
                    text += b"," if j else b""
                    text += json.dumps(name.partition(".")[2]).encode("ascii") + b":"
                    self._places.append(_Place(name, len(text)))
                    text += b"0".ljust(_WIDTH)
                text += b"}}"
        text += b"]"

    @property
    def text(self) -> str:
        """A JSON array as `plans.log_text` makes it, where a chunnel that has counted has `counts` too."""
        return self._text.decode("ascii")

    def changes(self) -> list[tuple[int, bytes]]:
        """What has changed since: (offset, bytes), to be written one after the other."""
        found = []
        for name, at in self._places:
            new = _digits(self._counts.get(name))
            for offset, data in _steps(self._shown[name], new):
                found.append((at + offset, data))
                self._text[at + offset : at + offset + len(data)] = data
            self._shown[name] = new
        return found
