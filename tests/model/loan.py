"""A carrier's turn, lent to the program (native/core/borrow.c, native/carrier/lend.c).

The program has a thread that sends, one that waits by a set and takes the turn when it is offered, and one
that shuts the connection down.  Each step is one access to shared memory; what happens under the loan's lock
is one, but for what others look at without it.  All that was sent has to leave, and the end has to be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class State:
    turn: str = "carrier"
    borrows: bool = False  # the flag that the program's own threads look at
    lent: bool = False  # the carrier's own note
    ring: int = 0  # bytes for the network
    mark: bool = False  # something has changed there
    armed: bool = False
    bell: bool = False
    shut: bool = False
    seen_shut: bool = False
    sender: str = "write"
    sends: int = 1
    ender: str = "shut"
    taker: str = "look"
    looks: int = 2
    carrier: str = "collect"


@dataclass(frozen=True)
class Loan:
    """`without`: the rules that are left out."""

    without: frozenset[str] = frozenset()

    def initial(self) -> Iterable[State]:
        offered = State(turn="offered", lent=True)
        return [State(), offered, replace(offered, ender="end")]

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        for who in ("sender", "ender", "taker", "carrier"):
            for label, after in getattr(self, f"_{who}_{getattr(state, who)}")(state):
                yield f"{who}: {label}", after

    def wrong(self, state: State) -> str | None:
        """It would take from the ring while the other one may."""
        return "both have the turn" if state.carrier == "run" and state.turn == "program" else None

    def wrong_at_rest(self, state: State) -> str | None:
        if state.ring > 0:
            return "what was sent has not left"
        return None if state.seen_shut or not state.shut else "the end is never seen"

    # ---- the program, with the loan's lock ----

    def _drained(self, s: State) -> list[tuple[str, State, bool]]:
        """Sends what is there; or the kernel does not take it, and the turn goes back."""
        back = replace(s, turn="carrier", borrows=False)
        return [("sends all", replace(s, ring=0), True), ("gives back", back, False)]

    def _took(self, s: State) -> State:
        return replace(s, turn="program", borrows=True)

    def _wanted_back(self, s: State) -> bool:
        return s.shut and "looks for who ends" not in self.without

    # ---- who sends ----

    def _sender_write(self, s: State) -> Iterator[tuple[str, State]]:
        if s.sends > 0:
            yield "write", replace(s, ring=s.ring + 1, sends=s.sends - 1, sender="mark")

    def _sender_mark(self, s: State) -> Iterator[tuple[str, State]]:
        yield "mark", replace(s, mark=True, sender="whose")

    def _sender_whose(self, s: State) -> Iterator[tuple[str, State]]:
        yield "whose turn", replace(s, sender="borrowed" if s.borrows else "again")

    def _sender_borrowed(self, s: State) -> Iterator[tuple[str, State]]:
        if s.turn != "program":  # given back meanwhile
            yield "not ours", replace(s, sender="again")
            return
        for label, after, all_sent in self._drained(s):
            yield label, replace(after, sender="write" if all_sent else "again")

    def _sender_again(self, s: State) -> Iterator[tuple[str, State]]:
        mark = s.mark or "marks again" not in self.without
        yield "mark again", replace(s, mark=mark, sender="wake")

    def _sender_wake(self, s: State) -> Iterator[tuple[str, State]]:
        yield "wake", replace(self._woken(s), sender="write")

    def _woken(self, s: State) -> State:
        return replace(s, armed=False, bell=True) if s.armed else s

    # ---- who takes the turn ----

    def _taker_look(self, s: State) -> Iterator[tuple[str, State]]:
        if s.looks > 0:
            yield "look", replace(s, looks=s.looks - 1, taker="take" if s.turn == "offered" else "look")

    def _taker_take(self, s: State) -> Iterator[tuple[str, State]]:
        if s.turn == "offered":
            yield "take", replace(self._took(s), taker="check")
        else:
            yield "too late", replace(s, taker="look")

    def _taker_check(self, s: State) -> Iterator[tuple[str, State]]:
        if s.turn != "program":
            yield "given back", replace(s, taker="look")
        elif self._wanted_back(s):
            yield "wanted back", replace(s, turn="carrier", borrows=False, taker="mark")
        elif "sends what is there" in self.without:
            yield "borrows", replace(s, taker="look")
        else:
            for label, after, all_sent in self._drained(s):
                yield label, replace(after, taker="look" if all_sent else "mark")

    def _taker_mark(self, s: State) -> Iterator[tuple[str, State]]:
        yield "mark", replace(s, mark=True, taker="wake")

    def _taker_wake(self, s: State) -> Iterator[tuple[str, State]]:
        yield "wake", replace(self._woken(s), taker="look")

    # ---- who ends it ----

    def _ender_shut(self, s: State) -> Iterator[tuple[str, State]]:
        if "says so first" in self.without:
            yield "whose turn", replace(s, ender="give" if s.borrows else "late")
        else:
            yield "shut", replace(s, shut=True, ender="whose")

    def _ender_whose(self, s: State) -> Iterator[tuple[str, State]]:
        yield "whose turn", replace(s, ender="give" if s.borrows else "mark")

    def _ender_give(self, s: State) -> Iterator[tuple[str, State]]:
        after = replace(s, turn="carrier", borrows=False) if s.turn == "program" else s
        yield "give back", replace(after, ender="mark" if s.shut else "late")

    def _ender_late(self, s: State) -> Iterator[tuple[str, State]]:
        yield "shut", replace(s, shut=True, ender="mark")

    def _ender_mark(self, s: State) -> Iterator[tuple[str, State]]:
        yield "mark", replace(s, mark=True, ender="wake")

    def _ender_wake(self, s: State) -> Iterator[tuple[str, State]]:
        yield "wake", replace(self._woken(s), ender="end")

    def _ender_end(self, s: State) -> Iterator[tuple[str, State]]:
        yield from ()

    # ---- the carrier ----

    def _carrier_collect(self, s: State) -> Iterator[tuple[str, State]]:
        if s.mark:
            yield "take the mark", replace(s, mark=False, carrier="whose")
        else:
            yield "nothing", replace(s, carrier="arm")

    def _carrier_whose(self, s: State) -> Iterator[tuple[str, State]]:
        if s.lent and s.turn == "program":
            yield "the program's", replace(s, carrier="collect")
        elif s.lent and s.turn == "offered" and "takes its offer back" in self.without:
            yield "runs", replace(s, carrier="run")
        else:
            yield "ours", replace(s, turn="carrier", lent=False, carrier="run")

    def _carrier_run(self, s: State) -> Iterator[tuple[str, State]]:
        yield "send all", replace(s, ring=0, seen_shut=s.seen_shut or s.shut, carrier="offer")

    def _carrier_offer(self, s: State) -> Iterator[tuple[str, State]]:
        if s.seen_shut:
            yield "no more", replace(s, carrier="collect")
        else:
            yield "offer", replace(s, turn="offered", lent=True, carrier="collect")

    def _carrier_arm(self, s: State) -> Iterator[tuple[str, State]]:
        yield "arm", replace(s, armed=True, carrier="last_look")

    def _carrier_last_look(self, s: State) -> Iterator[tuple[str, State]]:
        yield "last look", replace(s, armed=s.armed and not s.mark, carrier="collect" if s.mark else "asleep")

    def _carrier_asleep(self, s: State) -> Iterator[tuple[str, State]]:
        if s.bell:
            yield "wake up", replace(s, bell=False, carrier="collect")
