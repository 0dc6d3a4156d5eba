"""What prediction has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """What prediction has done so far.

    Attributes:
        steps: predicted.
        verified: of these, confirmed by the remote.
        mismatches: how often the remote did otherwise, beyond the tolerance.
        resets_adopted: resets in which the twin was put into the remote's start.
        largest_difference: of numbers within the tolerance, in the task's own unit.
        waits: how often a call waited for the remote: as many steps as may be were ahead, or an episode ended.
        waited_s: how long in all [s].
        most_ahead: the most steps that were not confirmed at one time.
    """

    steps: int = 0
    verified: int = 0
    mismatches: int = 0
    resets_adopted: int = 0
    largest_difference: float = 0.0
    waits: int = 0
    waited_s: float = 0.0
    most_ahead: int = 0
