"""The scene of a local twin: read, and put into the remote's state."""

from __future__ import annotations

from typing import Any

import gymnasium

from remote_env.errors import Unsupported
from remote_env.state import SceneState


class TwinScene:
    """Reads and writes the state of a task of this process, as its server does with one of its own.

    Args:
        env: the twin. Its unwrapped object has `get_scene_state` and `set_scene_state`, or is a MuJoCo task with
            `model` and `data`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._task: Any = env.unwrapped
        self._scene: Any = None

    def read(self, *, native: bool = False) -> SceneState:
        """The twin's scene now.

        Raises:
            Unsupported: it has no scene state.
        """
        if hasattr(self._task, "get_scene_state"):
            state: SceneState = self._task.get_scene_state(native=native)
            return state
        return self._mujoco_scene().read(self._task.data, native=native)  # type: ignore[no-any-return]

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
        if hasattr(self._task, "set_scene_state"):
            self._task.set_scene_state(state)
        else:
            self._mujoco_scene().write(state, self._task.data)

    def _mujoco_scene(self) -> Any:
        model = getattr(self._task, "model", None)
        if type(model).__name__ != "MjModel":
            raise Unsupported(
                f"{type(self._task).__name__} has no scene state: it is no MuJoCo task, and it offers no "
                "get_scene_state(native=...) and set_scene_state(state)"
            )
        if self._scene is None or self._scene.model is not model:
            from remote_env.tasks.mujoco_scene import MujocoScene

            self._scene = MujocoScene(model)
        return self._scene
