"""Whether the times of captured states are those of a clock that ticks at the capture's rate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from remote_env.state import Floats

TOLERANCE = 0.01  # of a step: simulators count time in float32, too


@dataclass(frozen=True)
class TimeBase:
    """The times of an episode's states.

    Attributes:
        states: how many.
        rate_hz: what the capture says, 0 where it says nothing.
        duration_s: from the first state to the last [s].
        median_step_s: between neighbours [s].
        smallest_step_s: likewise.
        largest_step_s: likewise.
        repeated: how many states have the time of the one before.
        backwards: how many have an earlier one.
        uneven: how many of the others are more than a hundredth of a step off the median.
        first_odd: the first state that is any of these, or None.
    """

    states: int
    rate_hz: float
    duration_s: float
    median_step_s: float
    smallest_step_s: float
    largest_step_s: float
    repeated: int
    backwards: int
    uneven: int
    first_odd: int | None

    @property
    def is_even(self) -> bool:
        """Whether each state follows the one before by the same time."""
        return self.first_odd is None

    @property
    def matches_rate(self) -> bool:
        """Whether that time is the one that `rate_hz` says."""
        return bool(self.states > 1 and abs(self.median_step_s * self.rate_hz - 1.0) <= TOLERANCE)

    def to_plain(self) -> dict[str, object]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "is_even": self.is_even, "matches_rate": self.matches_rate}

    def notes(self) -> list[str]:
        """What is wrong with it, in words."""
        if self.states < 2:
            return []
        said = []
        if self.largest_step_s <= 0 <= self.smallest_step_s:
            return ["the states carry no time: all have the same"]
        if self.rate_hz and not self.matches_rate:
            found = f"{1.0 / self.median_step_s:.6g}" if self.median_step_s > 0 else "none"
            said.append(f"the states' own rate is {found} Hz; the capture says {self.rate_hz:.6g} Hz")
        odd = {"have the time of the one before": self.repeated, "go back in time": self.backwards}
        odd["do not follow at the same distance"] = self.uneven
        told = ", ".join(f"{count} {words}" for words, count in odd.items() if count)
        return said + ([f"of {self.states} states {told}, the first at state {self.first_odd}"] if told else [])


def measure_time_base(times_s: Floats, rate_hz: float = 0.0) -> TimeBase:
    """What (T,) times [s] say.

    Args:
        times_s: of an episode's states.
        rate_hz: what the capture says; 0: nothing.
    """
    if len(times_s) < 2:
        return TimeBase(len(times_s), rate_hz, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, None)
    steps = np.diff(times_s)
    median = float(np.median(steps))
    slack = TOLERANCE * abs(median) + 4 * float(np.spacing(np.float32(np.abs(times_s).max())))
    repeated, backwards = steps == 0, steps < 0
    uneven = ~repeated & ~backwards & (np.abs(steps - median) > slack)
    odd = np.flatnonzero(repeated | backwards | uneven)
    return TimeBase(
        len(times_s),
        rate_hz,
        float(times_s[-1] - times_s[0]),
        median,
        float(steps.min()),
        float(steps.max()),
        int(repeated.sum()),
        int(backwards.sum()),
        int(uneven.sum()),
        int(odd[0]) + 1 if odd.size else None,
    )
