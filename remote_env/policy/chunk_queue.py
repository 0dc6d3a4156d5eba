"""The queue between a policy that gives chunks and a robot that applies one action per step; pure: no thread, no clock.

The words and defaults are those of LeRobot's asynchronous inference, so that what was tuned there can be used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError

Action = NDArray[np.float32]
Aggregate = Callable[[Action, Action], Action]

DEFAULT_AGGREGATE = "weighted_average"
DEFAULT_THRESHOLD = 0.5


def _blend(old_share: float) -> Aggregate:
    old_weight, new_weight = np.float32(old_share), np.float32(1 - old_share)
    return lambda old, new: old_weight * old + new_weight * new


# How two actions for the same step become one: function(old, new), both (D,) float32.
AGGREGATES: Mapping[str, Aggregate] = {
    "weighted_average": _blend(0.3),
    "latest_only": lambda old, new: new,  # noqa: ARG005
    "average": _blend(0.5),
    "conservative": _blend(0.7),
}


def aggregate_function(name: str | Aggregate) -> Aggregate:
    """The function of that name; a function of your own is passed through.

    Raises:
        ConfigError: there is none of that name.
    """
    if callable(name):
        return name
    if name not in AGGREGATES:
        raise ConfigError(f"no aggregate function {name!r}; choose one of {', '.join(AGGREGATES)}, or pass a function")
    return AGGREGATES[name]


@dataclass(frozen=True)
class QueuedAction:
    """An action that waits for its step.

    Attributes:
        action: (D,) float32.
        chunk: the number, from 0, of the latest chunk that has a part in it.
    """

    action: Action
    chunk: int


class ChunkQueue:
    """Actions by the step that they are for.

    A chunk that was inferred from the observation of step s holds the actions of s, s+1, …. When it arrives, steps have
    passed: actions of these are stale and dropped. Where an action for a step is already queued, old and new are
    aggregated.

    Args:
        actions_per_chunk: so many actions of each chunk are used, from its first on; None uses all.
        chunk_size_threshold: ask for the next chunk when at most this share of the largest chunk so far is queued;
            0 asks when the queue is empty, 1 at every step.
        aggregate: a name of `AGGREGATES`, or function(old, new) -> action.

    Attributes:
        stale_actions: dropped so far because their step had passed.

    Raises:
        ConfigError: an argument is out of range, or there is no such aggregate function.
    """

    def __init__(
        self,
        *,
        actions_per_chunk: int | None = None,
        chunk_size_threshold: float = DEFAULT_THRESHOLD,
        aggregate: str | Aggregate = DEFAULT_AGGREGATE,
    ) -> None:
        if actions_per_chunk is not None and actions_per_chunk < 1:
            raise ConfigError(f"actions_per_chunk={actions_per_chunk}: at least one action of a chunk must be used")
        if not 0 <= chunk_size_threshold <= 1:
            raise ConfigError(f"chunk_size_threshold={chunk_size_threshold}: it is a share of a chunk, from 0 to 1")
        self._actions_per_chunk = actions_per_chunk
        self._threshold = chunk_size_threshold
        self._aggregate = aggregate_function(aggregate)
        self._largest = 0
        self._chunks = 0
        self._action_size: int | None = None
        self.stale_actions = 0
        self.clear()

    def __len__(self) -> int:
        return len(self._queued)

    @property
    def must_go(self) -> bool:
        """Whether nothing is queued, so that the robot stands still until a chunk arrives."""
        return not self._queued

    @property
    def wants_chunk(self) -> bool:
        """Whether it is time to ask for the next chunk."""
        return self.must_go or len(self._queued) / self._largest <= self._threshold

    @property
    def largest_chunk(self) -> int:
        """The most actions that a chunk has brought so far."""
        return self._largest

    def clear(self) -> None:
        """Forget all actions and start to count steps anew, for another episode."""
        self._queued: dict[int, QueuedAction] = {}
        self._next_step = 0

    def put(self, chunk: NDArray[Any], first_step: int) -> int:
        """Queue the actions of a chunk whose steps have not passed.

        Args:
            chunk: (K, D) actions, K ≥ 1.
            first_step: that its first action is for: the step of the observation it was inferred from.

        Returns:
            How many actions were stale.

        Raises:
            InputError: `chunk` is not of that shape, or its D is not that of the chunks before; the queue is unchanged.
        """
        actions = self._checked(chunk)[: self._actions_per_chunk]
        self._largest = max(self._largest, len(actions))
        stale = min(max(self._next_step - first_step, 0), len(actions))
        for step, action in enumerate(actions[stale:], first_step + stale):
            self._add(step, action)
        self._chunks += 1
        self.stale_actions += stale
        return stale

    def pop(self, step: int) -> QueuedAction | None:
        """Take the action for `step`; actions of earlier steps become stale.

        Args:
            step: of the episode; later than that of the call before which got an action.

        Returns:
            The action, or None when none is queued for this step.

        Raises:
            InputError: the step has passed.
        """
        if step < self._next_step:
            raise InputError(
                f"step {step} has passed: the next one is {self._next_step}; a new episode needs a reset first"
            )
        missed = [queued for queued in self._queued if queued < step]
        for queued in missed:
            del self._queued[queued]
        self.stale_actions += len(missed)
        found = self._queued.pop(step, None)
        self._next_step = step if found is None else step + 1
        return found

    def _checked(self, chunk: NDArray[Any]) -> NDArray[np.float32]:
        actions = np.array(chunk, np.float32)  # a copy: the chunk is its giver's own
        if actions.ndim != 2 or not len(actions):
            raise InputError(f"a chunk has shape (K, D) with K ≥ 1 actions; got {actions.shape}")
        if self._action_size not in (None, actions.shape[1]):
            raise InputError(f"actions have {self._action_size} numbers so far; this chunk's have {actions.shape[1]}")
        self._action_size = actions.shape[1]
        return actions

    def _add(self, step: int, action: Action) -> None:
        old = self._queued.get(step)
        value = action if old is None else np.asarray(self._aggregate(old.action, action), np.float32)
        self._queued[step] = QueuedAction(value, self._chunks)
