"""Policies beside `OnDemand` and `Pendulum`, for tests; each is made by a function here, as "module:function"."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tasks_for_tests.misbehaving import OnDemand, wait_for_file

from remote_env.policy import Feature, Policy, PolicyMetadata


class Counting(Policy):
    """Remembers how often it was asked in an episode, and says so: [asked, row of the chunk + what it saw last / 100].

    Args:
        before: called with that count before each answer.
    """

    def __init__(self, before: Callable[[int], Any] = lambda _count: None) -> None:
        self.metadata = PolicyMetadata(
            name="counting",
            observation={"state": Feature("state", (2,), "float64")},
            action_names=("asked", "row"),
            chunk_size=3,
            has_memory=True,
        )
        self._before = before
        self._asked: dict[str, int] = {}

    def infer(self, observation: Any, *, episode_ids: Sequence[str]) -> Any:
        """See `Policy.infer`."""
        [name] = episode_ids
        self._asked[name] = self._asked.get(name, 0) + 1
        self._before(self._asked[name])
        rows = [[self._asked[name], row + observation["state"][0, 1] / 100] for row in range(3)]
        return np.array([rows], np.float32)

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """See `Policy.reset`."""
        for name in self._asked if episode_ids is None else episode_ids:
            self._asked.pop(name, None)


class Swing(Policy):
    """Acts on Pendulum by its observation alone; four actions at once."""

    def __init__(self) -> None:
        self.metadata = PolicyMetadata("swing", {"state": Feature("state", (3,))}, ("torque",), chunk_size=4)

    def infer(self, observation: Any, *, episode_ids: Sequence[str]) -> Any:
        """See `Policy.infer`."""
        torque = 2 * np.tanh(observation["state"] @ np.array([0.3, -1.7, 0.9], np.float32))
        return (torque[:, None, None] * np.linspace(1, 0.4, 4, dtype=np.float32)[None, :, None]).astype(np.float32)


class Filmed(OnDemand):
    """Renders how many steps there were, as grey."""

    def render(self) -> Any:
        """A flat picture; None without a render mode."""
        return None if self.render_mode is None else np.full((16, 24, 3), self.total_steps, np.uint8)


def fail(count: int) -> None:
    """Raise when asked the second time."""
    if count == 2:
        raise ZeroDivisionError("the weights are gone")


def make_failing() -> Policy:
    """One that fails the second time that it is asked in an episode."""
    return Counting(fail)


def make_waiting() -> Policy:
    """One that waits, the second time, for the file that POLICY_GATE names, and says that it does in POLICY_MARK."""

    def wait(count: int) -> None:
        if count == 2:
            Path(os.environ["POLICY_MARK"]).touch()
            wait_for_file(Path(os.environ["POLICY_GATE"]))

    return Counting(wait)


def make_flat() -> Policy:
    """One whose chunks lack the batch."""
    policy: Any = Counting()
    with_batch = policy.infer
    policy.infer = lambda *args, **kwargs: with_batch(*args, **kwargs)[0]
    return policy  # type: ignore[no-any-return]


def make_nothing() -> str:
    """No policy."""
    return "not a policy"


def make_broken() -> Policy:
    """A factory that fails."""
    raise OSError("the weights cannot be read")
