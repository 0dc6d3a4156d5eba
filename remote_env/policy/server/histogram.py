"""Counts of values in ranges, for the metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

LATENCY_BOUNDS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """How many values fell at or below each bound and above the one before; the last count is of those above all.

    Args:
        bounds: ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value; callers take turns."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @classmethod
    def sum(cls, bounds: Sequence[float], parts: Iterable[Histogram]) -> Histogram:
        """All values of `parts`, which have these bounds."""
        whole = cls(bounds)
        for part in parts:
            whole.counts = [ours + theirs for ours, theirs in zip(whole.counts, part.counts, strict=True)]
            whole.total += part.total
        return whole
