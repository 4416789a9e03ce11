"""A small explicit-state model checker: breadth first, so that a counterexample is a shortest one.

A model is a `Model`: hashable states, labelled steps, an invariant that every state must satisfy, and a
judgement of *resting* states (those from which nothing can happen any more).  `explore` visits everything
that is reachable and reports the first of:

* an invariant that does not hold;
* a resting state that the model calls wrong (somebody waits for ever while data is there);
* a state from which no resting state can be reached (a livelock).

The models are bounded by their own parameters (messages, ring sizes), never by the explorer, except for
`limit`, which turns a model that grew beyond what a test run can afford into an error rather than into a
silent half-check.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """What the explorer asks of a model."""

    def initial(self) -> Iterable[S]:
        """The states in which the world may begin."""
        ...

    def steps(self, state: S) -> Iterable[tuple[str, S]]:
        """What may happen next, each with a label for the trace."""
        ...

    def wrong(self, state: S) -> str | None:
        """Why this state must not be, or None."""
        ...

    def wrong_at_rest(self, state: S) -> str | None:
        """Why it must not end here, or None; asked of states without a next step."""
        ...


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """What an exploration found."""

    states: int
    resting: int
    problem: str | None
    trace: tuple[tuple[str, S], ...]

    def report(self) -> str:
        """The counterexample as text, one step a line, or a line that says that there is none."""
        if self.problem is None:
            return f"holds: {self.states} states, {self.resting} resting"
        lines = [f"{self.problem} (after {len(self.trace) - 1} steps, {self.states} states seen)"]
        lines += [f"  {n:3d}. {label:<46} {state}" for n, (label, state) in enumerate(self.trace)]
        return "\n".join(lines)


class TooLargeError(AssertionError):
    """The model has more states than the caller allowed."""


def explore(model: Model[S], limit: int = 3_000_000, check_livelock: bool = True) -> Outcome[S]:
    """Visit every reachable state of `model`; at most `limit` of them (TooLargeError beyond)."""
    parent: dict[S, tuple[str, S] | None] = {}
    order: list[S] = []
    queue: deque[S] = deque()
    before: dict[S, list[S]] = {}
    resting: list[S] = []

    def trace(state: S) -> tuple[tuple[str, S], ...]:
        steps: list[tuple[str, S]] = []
        at: S = state
        while (link := parent[at]) is not None:
            steps.append((link[0], at))
            at = link[1]
        steps.append(("(begin)", at))
        return tuple(reversed(steps))

    for state in model.initial():
        if state not in parent:
            parent[state] = None
            queue.append(state)
    while queue:
        state = queue.popleft()
        order.append(state)
        if len(parent) > limit:
            raise TooLargeError(f"more than {limit} states")
        problem = model.wrong(state)
        if problem is not None:
            return Outcome(len(parent), len(resting), problem, trace(state))
        moved = False
        for label, after in model.steps(state):
            if after == state:
                continue
            moved = True
            if check_livelock:
                before.setdefault(after, []).append(state)
            if after not in parent:
                parent[after] = (label, state)
                queue.append(after)
        if not moved:
            resting.append(state)
            problem = model.wrong_at_rest(state)
            if problem is not None:
                return Outcome(len(parent), len(resting), problem, trace(state))
    if check_livelock:
        live = set(resting)
        stack = list(resting)
        while stack:
            for earlier in before.get(stack.pop(), ()):
                if earlier not in live:
                    live.add(earlier)
                    stack.append(earlier)
        for state in order:
            if state not in live:
                return Outcome(len(parent), len(resting), "never comes to rest from here", trace(state))
    return Outcome(len(parent), len(resting), None, ())
