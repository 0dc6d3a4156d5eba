"""A task with a scene of one free cube, for tests of states; it goes wrong on demand as `OnDemand` does."""

from __future__ import annotations

from typing import Any

import numpy as np
from tasks_for_tests.misbehaving import OnDemand, die

from remote_env import errors
from remote_env.state import EntityLayout, SceneLayout, SceneState

LAYOUT = SceneLayout((EntityLayout("cube"),), "toy 1")


class Scene(OnDemand):
    """The cube's height is how often it has been stepped or moved."""

    remote_calls = (*OnDemand.remote_calls, "move", "plan_state")
    height = 0.0
    state_how = ""

    def plan_state(self, how: str) -> None:
        """Go wrong like this in the next `get_scene_state`."""
        self.state_how = how

    def move(self, height: float) -> None:
        """Lift the cube."""
        self.height = height

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`; options["info"] == "bad" gives an info that cannot cross."""
        observation, info = super().reset(seed=seed, options=options)
        self.height = 0.0
        return observation, {"lock": object()} if (options or {}).get("info") == "bad" else info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`; `plan` may also name one of remote_env's own errors."""
        if isinstance(kind := getattr(errors, self.how, None), type):
            self.how = ""
            raise kind("of the task's own")
        self.height += 1.0
        return super().step(action)

    def get_scene_state(self, *, native: bool = False) -> SceneState:
        """Where the cube is."""
        how, self.state_how = self.state_how, ""
        die(how)
        values = np.zeros(LAYOUT.size)
        values[3:5] = self.height, 1.0
        return SceneState(LAYOUT, values, b"native" if native else None)

    def set_scene_state(self, state: SceneState) -> None:
        """Put the cube where it was."""
        self.height = float(state["cube"].root_pose[2])
