"""One episode: what is planned, and what came out, as plain JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# How an episode ended: by the environment (terminated, truncated), at our --max_steps, a robot's at its time, or given
# up by the task (details["error"] says why).
ENDS = ("terminated", "truncated", "max_steps", "error")


@dataclass(frozen=True)
class EpisodePlan:
    """An episode to run.

    Attributes:
        env: the environment's name.
        index: of the episode, from 0.
        seed: what the environment is reset with.
    """

    env: str
    index: int
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """Names it within an evaluation."""
        return self.env, self.index


@dataclass(frozen=True)
class EpisodeResult:
    """An episode that was run to its end.

    Attributes:
        env: the environment's name.
        index: of the episode, from 0.
        seed: what the environment was reset with.
        success: whether an info said `is_success` or `success`; None where the environment does not say.
        episode_return: the sum of rewards.
        length: steps.
        max_reward: the largest reward of a step.
        end: one of `ENDS`.
        actions_digest: 16 hex digits of all actions as they were applied: equal when they were equal to the bit.
        latencies_ms: of each inference, as the worker waited for it [ms].
        wall_s: how long it took, reset included [s].
        worker_peak_bytes: the largest memory so far of the process that ran it.
        attempts: how many times it was begun: 2 when the first worker died.
        details: what else was measured, such as the starvation of asynchronous chunks.
    """

    env: str
    index: int
    seed: int
    success: bool | None
    episode_return: float
    length: int
    max_reward: float
    end: str
    actions_digest: str
    latencies_ms: tuple[float, ...] = ()
    wall_s: float = 0.0
    worker_peak_bytes: int = 0
    attempts: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """Names it within an evaluation."""
        return self.env, self.index

    @property
    def inferences(self) -> int:
        """How often the policy was asked."""
        return int(self.details.get("inferences", len(self.latencies_ms)))

    @property
    def outcome(self) -> tuple[Any, ...]:
        """What does not depend on the clock: equal for equal checkpoints, seeds and machines."""
        ends = (self.success, self.episode_return, self.length, self.max_reward, self.end, self.actions_digest)
        return (self.env, self.index, self.seed, *ends)

    def to_plain(self) -> dict[str, Any]:
        """This result as a JSON object."""
        return {**dataclasses.asdict(self), "latencies_ms": [round(value, 3) for value in self.latencies_ms]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> EpisodeResult:
        """The opposite of `to_plain`."""
        known = {each.name: plain[each.name] for each in dataclasses.fields(cls) if each.name in plain}
        return cls(**{**known, "latencies_ms": tuple(known.get("latencies_ms", ()))})
