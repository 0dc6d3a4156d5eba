"""A task whose observation is an image, and whose info cannot always cross."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Painting(gymnasium.Env[Any, Any]):
    """A number of steps painted as an image; action 1 returns an info that cannot cross."""

    observation_space = spaces.Box(0, 255, (48, 64, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A black image."""
        super().reset(seed=seed)
        self.steps = 0
        return self._paint(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One more row."""
        self.steps += 1
        return self._paint(), 0.0, False, False, {"odd": object()} if action else {}

    def _paint(self) -> Any:
        image = np.zeros((48, 64, 3), np.uint8)
        image[: self.steps] = 10 * self.steps
        return image
