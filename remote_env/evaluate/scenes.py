"""Scene states of an environment that is evaluated, wherever it runs; and the capture of an episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from remote_env.errors import Unsupported
from remote_env.state import SceneState

ReadScene = Callable[[], SceneState]


def scene_reader(env: gymnasium.Env[Any, Any]) -> ReadScene | None:
    """What reads the present scene of `env`, which has been reset; None where it has no scene states."""
    from remote_env.env import RemoteEnv

    task: Any = env.unwrapped
    if isinstance(task, RemoteEnv):
        return task.get_state if _has_scene(task) else None
    if hasattr(task, "get_scene_state"):
        return task.get_scene_state  # type: ignore[no-any-return]
    if type(getattr(task, "model", None)).__name__ != "MjModel":
        return None
    from remote_env.tasks.mujoco_scene import MujocoScene

    scene = MujocoScene(task.model)
    return lambda: scene.read(task.data)


def _has_scene(env: Any) -> bool:
    try:
        env.get_state()
    except Unsupported:
        return False
    return True


@dataclass
class Trace:
    """What an episode was like, step by step, kept in memory until it is known whether anybody wants it.

    Attributes:
        error: why the task gave the episode up in the middle; "" when it did not.
    """

    infos: list[dict[str, Any]] = field(default_factory=list)
    states: list[SceneState] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    error: str = ""

    def save(self, path: Path, *, rate_hz: float, task: str, env_kwargs: dict[str, Any], seed: int) -> None:
        """Write a capture, as `remote_env.record` reads it.

        Raises:
            CaptureError: the disk does not take it.
        """
        from remote_env.record import Episode, EpisodeInfo
        from remote_env.record.hdf5 import write_episode
        from remote_env.record.recorder import to_plain

        path.parent.mkdir(parents=True, exist_ok=True)
        layout = self.states[0].layout if self.states else None
        about = EpisodeInfo(rate_hz=rate_hz, task=task, env_kwargs=to_plain(env_kwargs), seed=seed)
        episode = Episode(
            about,
            np.stack([np.asarray(action) for action in self.actions]),
            np.array(self.rewards, np.float64),
            np.array(self.terminated, np.bool_),
            np.array(self.truncated, np.bool_),
            [to_plain(info) for info in self.infos],
            {},
            {},
            layout,
            np.stack([state.values for state in self.states]) if layout is not None else None,
        )
        write_episode(episode, path)
