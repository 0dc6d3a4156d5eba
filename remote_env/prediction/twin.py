"""The scene of a local twin: read, and put into the remote's state."""

from __future__ import annotations

from typing import Any

import gymnasium

from remote_env.state import SceneState
from remote_env.tasks.task_scenes import TaskScenes


class TwinScene:
    """Reads and writes the state of a task of this process, as its server does with one of its own.

    Args:
        env: the twin. Its unwrapped object has `get_scene_state` and `set_scene_state`, or is a MuJoCo task with
            `model` and `data`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._task, self._scenes = env.unwrapped, TaskScenes()

    def read(self, *, native: bool = False) -> SceneState:
        """The twin's scene now.

        Raises:
            Unsupported: it has no scene state.
        """
        return self._scenes.read(self._task, native=native)

    def write(self, state: SceneState) -> None:
        """Put the twin into a state, unless it is in just that already.

        A state that was written is computed from afresh, and some tasks (Gymnasium's Ant and Humanoid) look at what
        their last step left behind: where nothing has to be written, nothing is.

        Raises:
            Unsupported: the twin has no scene state.
            ReplayError: the state's names do not fit the twin's model.
        """
        present = self.read(native=state.native is not None)
        if state.native is not None and present.native == state.native and present.layout == state.layout:
            return
        self._scenes.write(self._task, state)
