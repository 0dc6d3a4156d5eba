"""A Backend of a user's own: no Gymnasium environment anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from remote_env.errors import Unsupported
from remote_env.server.backend import Backend
from remote_env.state import EntityLayout, SceneLayout, SceneState


class CounterBackend(Backend):
    """Counts; its scene is one body whose height is the count."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(10)
    metadata: Mapping[str, Any] = {"render_modes": ["ansi"], "odd": object()}
    render_mode = "ansi"
    spec: Mapping[str, Any] = {"id": "Counter", "odd": object()}
    callable_names = frozenset({"double"})
    step_timeout_s = 700.0

    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Remember the arguments."""
        self._name, self._kwargs, self._count = env, dict(kwargs), 0
        self._layout = SceneLayout((EntityLayout("ball"),), source="counter")

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Back to the start."""
        self._count = 0
        return np.array([0.0]), {"made": [self._name, self._kwargs], "seed": seed, "options": options}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Count up."""
        self._count += int(action)
        return np.array([float(self._count)]), float(action), self._count > 20, False, {}

    def state(self, *, native: bool) -> SceneState:
        """The ball at the height of the count."""
        values = np.zeros(self._layout.size)
        values[3], values[4] = self._count, 1.0
        return SceneState(self._layout, values, str(self._count).encode() if native else None)

    def restore(self, state: SceneState) -> None:
        """Take the count back from the height."""
        if state.layout != self._layout:
            raise Unsupported("another scene")
        self._count = int(state.values[3])

    def render(self) -> Any:
        """The count as text."""
        return f"count {self._count}"

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Only `double`."""
        return 2 * args[0]

    def close(self) -> None:
        """Leave a mark where `mark=` says."""
        if "mark" in self._kwargs:
            Path(self._kwargs["mark"]).write_text("closed")


class NotABackend:
    """Something else."""
