"""What episodes say together: rates with their uncertainty, and percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z_95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Where the true success rate lies, by Wilson's score interval.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the American
    Statistical Association 22 (1927), 209–212: the rates p for which the observed rate lies within z standard
    deviations sqrt(p (1 - p) / n). It never leaves [0, 1], and is honest for few trials and for rates of 0 and 1.

    Args:
        successes: of the trials, 0 to `trials`.
        trials: n; with none the interval is (0, 1).
        z: standard deviations; the default gives 95 %.
    """
    if not trials:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return low, high


def describe_numbers(values: Sequence[float]) -> dict[str, Any]:
    """count, mean, std, min, p50, p99 and max of some numbers; only the count when there are none."""
    if not len(values):
        return {"count": 0}
    array = np.asarray(values, np.float64)
    return {
        "count": len(array),
        "mean": float(array.mean()),
        "std": float(array.std()),
        "min": float(array.min()),
        "p50": float(np.percentile(array, 50)),
        "p99": float(np.percentile(array, 99)),
        "max": float(array.max()),
    }
