"""The environment that bench_step serves through every rival: it does nothing, so that only the way is measured."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from remote_env.state import EntityLayout, SceneLayout, SceneState

_LAYOUT = SceneLayout((EntityLayout("cube"),), "trivial 1")


class TrivialEnv(gymnasium.Env[Any, Any]):
    """Hands out the same observation each step, with a counter in it, and never ends.

    Args:
        image: a (480, 640, 3) uint8 observation instead of (14,) float64.
    """

    def __init__(self, *, image: bool = False) -> None:
        if image:
            self.observation_space = gymnasium.spaces.Box(0, 255, (480, 640, 3), np.uint8)
        else:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (14,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (14,), np.float32)
        self._observation = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start again."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count."""
        self._steps += 1
        self._observation.flat[0] = self._steps & 0xFF
        return self._observation, 0.0, False, False, {}


class TrivialScene(TrivialEnv):
    """The same with a scene of one cube, so that its state can be asked for."""

    def get_scene_state(self, *, native: bool = False) -> SceneState:
        """Where the cube is: as high as there were steps."""
        values = np.zeros(_LAYOUT.size)
        values[3:5] = self._steps, 1.0
        return SceneState(_LAYOUT, values, b"" if native else None)
