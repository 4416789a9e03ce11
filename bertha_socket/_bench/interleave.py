"""A B C A B C ...: every cell once in each round, so that what the machine does meanwhile hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bertha_socket._bench.report import Report, Sample
from bertha_socket._bench.stage import Failed

#: Seconds, when the caller does not say.
BUDGET_S = 600.0


def _silent(_text: str) -> None:
    pass


@dataclass
class Options:
    """What the caller of a bench chooses.

    ``rounds`` 0 means the bench's own number; ``budget_s`` bounds the measuring (None: the usual time): a run
    that would take longer ends after a whole round and says so.  ``scale`` shrinks the amount of work of a
    round (the tests use it).  ``only``: rows of a bench that has several, by name or by the part before the
    slash.
    """

    rounds: int = 0
    quick: bool = False
    budget_s: float | None = None
    scale: float = 1.0
    only: tuple[str, ...] = ()
    progress: Callable[[str], None] = field(default=_silent)

    def budget(self, usual: float = BUDGET_S) -> float:
        return usual if self.budget_s is None else self.budget_s

    def rounds_or(self, quick: int, full: int) -> int:
        return self.rounds or (quick if self.quick else full)

    def chooses(self, name: str) -> bool:
        """Whether a row is to be measured."""
        return not self.only or any(name == o or name.startswith(f"{o}/") for o in self.only)

    def amount(self, quick: int, full: int, least: int = 1) -> int:
        return max(least, int((quick if self.quick else full) * self.scale))


class Together:
    """Cells that one program measures in one go, itself interleaved.

    It runs when a cell asks for a number that is not there; each cell takes its own.
    """

    def __init__(self, measure: Callable[[], dict[str, Sample]]) -> None:
        self._measure = measure
        self._found: dict[str, Sample] = {}

    def take(self, name: str) -> Sample:
        """What this round has for the cell of that name."""
        if name not in self._found:
            self._found = dict(self._measure())
        return self._found.pop(name)


def run(report: Report, rounds: int, options: Options) -> None:
    """Measure every cell of the report in each round; notes it when the time budget ends that early.

    A cell whose program fails is a failure of the report and takes no part in later rounds.
    """
    begin = time.monotonic()
    broken: set[int] = set()
    for number in range(rounds):
        spent = time.monotonic() - begin
        if number > 0 and spent + spent / number > options.budget():
            report.notes.append(
                f"ended after {number} of {rounds} rounds, at the time budget of {options.budget():g} s"
            )
            return
        for at, cell in enumerate(report.cells):
            if at in broken:
                continue
            options.progress(f"round {number + 1}/{rounds}, {at + 1}/{len(report.cells)}: {cell.name}")
            try:
                cell.samples.append(cell.measure())
            except Failed as failed:
                report.fail(f"{cell.name}: {failed}")
                broken.add(at)
