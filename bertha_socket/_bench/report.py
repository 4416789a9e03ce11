"""What a bench hands back, and its JSON form.

A report has *cells* (one variant in one configuration, its numbers over the rounds) and *ratios* (between two
cells, computed round by round and then summarised, so that a slow phase of the machine hits both alike).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertha_socket._bench import stats

SCHEMA = 1


@dataclass
class Sample:
    """One round of one cell: its numbers, and raw latencies (microseconds) by series, to be pooled."""

    values: dict[str, float]
    pooled: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Cell:
    """One variant in one configuration."""

    variant: str
    params: dict[str, Any]
    measure: Callable[[], Sample]
    units: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    #: What a run apart from the rounds counted, per request.
    counted: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people: the variant and its parameters."""
        return " ".join([self.variant, *(f"{key}={value}" for key, value in self.params.items())])

    def values(self, metric: str) -> list[float]:
        return [s.values[metric] for s in self.samples]

    def pooled(self) -> dict[str, list[float]]:
        series: dict[str, list[float]] = {}
        for sample in self.samples:
            for name, values in sample.pooled.items():
                series.setdefault(name, []).extend(values)
        return series

    def as_json(self) -> dict[str, Any]:
        metrics = self.samples[0].values if self.samples else {}
        return {
            "variant": self.variant,
            "params": self.params,
            "metrics": {
                name: {"unit": self.units.get(name, ""), **asdict(stats.Spread.of(self.values(name)))}
                | {"values": self.values(name)}
                for name in metrics
            },
            "counted": self.counted,
            "pooled_us": {
                name: {"samples": len(values), **stats.percentiles(values)}
                for name, values in self.pooled().items()
            },
        }


@dataclass(frozen=True)
class Target:
    """What a ratio has to be: at most or at least ``bound``; ``source`` says who asks for it."""

    bound: float
    at_least: bool
    source: str = "issue 2"

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass
class Figure:
    """One line of the result: a ratio (or a plain number) with its spread, and what it should be."""

    what: str
    spread: stats.Spread
    target: Target | None = None
    unit: str = "ratio"

    @property
    def holds(self) -> bool | None:
        return None if self.target is None else self.target.holds(self.spread.median)

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            **asdict(self.spread),
            "target": None if self.target is None else str(self.target),
            "holds": self.holds,
        }


@dataclass
class Report:
    """Everything about one run of one bench."""

    bench: str
    compared: str
    host: dict[str, object] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    carried: dict[str, Counter[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    started: str = ""
    took_s: float = 0.0

    def fail(self, what: str) -> None:
        """Something was not as it should be; the same is said only once."""
        if what not in self.failures:
            self.failures.append(what)

    def cell(self, variant: str, **params: Any) -> Cell | None:
        """The measured cell with this variant and these parameters, None when it was skipped."""
        for cell in self.cells:
            if cell.variant == variant and cell.samples and params.items() <= cell.params.items():
                return cell
        return None

    def ratio(
        self,
        what: str,
        metric: str,
        over: tuple[str, dict[str, Any]],
        under: tuple[str, dict[str, Any]],
        target: Target | None = None,
    ) -> Figure | None:
        """Add the ratio of a metric between two cells, each round by itself; None when one is missing."""
        top, bottom = self.cell(over[0], **over[1]), self.cell(under[0], **under[1])
        if top is None or bottom is None:
            return None
        pairs = zip(top.values(metric), bottom.values(metric), strict=False)
        values = [a / b for a, b in pairs if b > 0]
        if not values:
            return None
        figure = Figure(what=what, spread=stats.Spread.of(values), target=target)
        self.figures.append(figure)
        return figure

    def number(self, what: str, value: float, unit: str, target: Target | None = None) -> Figure:
        """Add a number that is not a ratio."""
        return self.spread(what, [value], unit, target)

    def spread(self, what: str, values: list[float], unit: str, target: Target | None = None) -> Figure:
        """Add a number that is not a ratio, one value for each round."""
        figure = Figure(what=what, spread=stats.Spread.of(values), target=target, unit=unit)
        self.figures.append(figure)
        return figure

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "compared": self.compared,
            "started": self.started,
            "took_s": round(self.took_s, 3),
            "host": self.host,
            "options": self.options,
            "commands": self.commands,
            "cells": [cell.as_json() for cell in self.cells if cell.samples],
            "figures": [figure.as_json() for figure in self.figures],
            "carried": {name: dict(counts) for name, counts in self.carried.items()},
            "skipped": self.skipped,
            "failures": self.failures,
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
