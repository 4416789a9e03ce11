"""Order statistics: medians and spreads, no means, since the noise of a shared machine has long tails."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (5, 25, 50, 75, 95, 99)


def percentile(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile (0..100) of an already sorted, non-empty sequence, linearly interpolated."""
    if not ordered:
        raise ValueError("no samples: a percentile needs at least one")
    rank = (len(ordered) - 1) * p / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """``{"p5": ..., ..., "p99": ...}`` of unsorted samples, in their own unit."""
    ordered = sorted(samples)
    return {f"p{p}": percentile(ordered, p) for p in PERCENTILES}


@dataclass(frozen=True)
class Spread:
    """What a number was over the rounds: its median, quartiles and extremes."""

    median: float
    p25: float
    p75: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        return cls(
            median=statistics.median(ordered),
            p25=percentile(ordered, 25),
            p75=percentile(ordered, 75),
            low=ordered[0],
            high=ordered[-1],
            rounds=len(ordered),
        )
