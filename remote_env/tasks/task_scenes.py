"""The scenes of unwrapped Gymnasium tasks: by methods of their own, or from MuJoCo's model and data."""

from __future__ import annotations

from typing import Any

from remote_env.errors import Unsupported
from remote_env.state import SceneDescription, SceneState


class TaskScenes:
    """Reads, writes and describes the scenes of tasks; the reader of a MuJoCo model is made once."""

    def __init__(self) -> None:
        self._scenes: dict[int, Any] = {}

    def read(self, task: Any, *, native: bool = False) -> SceneState:
        """The scene now; with `native`, also the bytes that restore this simulator exactly.

        Raises:
            Unsupported: the task has none.
        """
        if hasattr(task, "get_scene_state"):
            state: SceneState = task.get_scene_state(native=native)
            return state
        return self._mujoco(task).read(task.data, native=native)  # type: ignore[no-any-return]

    def write(self, task: Any, state: SceneState) -> None:
        """Put the scene into `state`.

        Raises:
            Unsupported: the task has no scene.
        """
        if hasattr(task, "set_scene_state"):
            task.set_scene_state(state)
        else:
            self._mujoco(task).write(state, task.data)

    def describe(self, task: Any) -> SceneDescription | None:
        """The primitives of a MuJoCo task; None of any other."""
        return self._mujoco(task).describe() if has_mujoco(task) else None

    def _mujoco(self, task: Any) -> Any:
        scene = self._scenes.get(id(task))
        if scene is not None and scene.model is task.model:
            return scene
        if not has_mujoco(task):
            raise Unsupported(
                f"{task_name(task)} has no scene state: it is no MuJoCo environment, and it offers no "
                "get_scene_state(native=...); give it one, or do without get_state()"
            )
        from remote_env.tasks.mujoco_scene import MujocoScene

        self._scenes[id(task)] = scene = MujocoScene(task.model)
        return scene


def has_mujoco(task: Any) -> bool:
    """Whether an unwrapped task holds a model of MuJoCo."""
    return type(getattr(task, "model", None)).__name__ == "MjModel"


def task_name(task: Any) -> str:
    """The id under which it was made, or else its class."""
    spec = getattr(task, "spec", None)
    return type(getattr(task, "unwrapped", task)).__name__ if spec is None else str(spec.id)
