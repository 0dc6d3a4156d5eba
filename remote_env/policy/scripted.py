"""Policies that need no training: the scripted experts of the ALOHA tasks, "scripted:aloha-transfer-cube" for one."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy.observation import check_batch
from remote_env.policy.policy import Chunk, Feature, ObservationBatch, Policy, PolicyMetadata
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.tasks import INSERTION_ID, TRANSFER_CUBE_ID
from remote_env.tasks.aloha_model import ACTION_NAMES, CONTROL_STEP_S, OBJECTS, Task, state_names

PREFIX = "scripted:"
_TASKS: dict[str, tuple[Task, str]] = {
    "scripted:aloha-transfer-cube": ("transfer_cube", TRANSFER_CUBE_ID),
    "scripted:aloha-insertion": ("insertion", INSERTION_ID),
}
SCRIPTED = tuple(_TASKS)
_CHUNK_SIZE = 64
_POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")


class ScriptedPolicy(Policy):
    """Plans an episode from its first observation, and hands the plan out in chunks.

    Of each episode it counts what it has handed out, so whoever asks must apply whole chunks: load it with the
    `chunk_size` that is applied, 1 to be asked at each step. After the plan's 300 actions the last one repeats.

    Args:
        name: one of `SCRIPTED`.
        chunk_size: K; None takes 64.
        model_dir: folder with gym-aloha's XML and STL files; None takes the installed gym-aloha's.

    Raises:
        ConfigError: there is no such policy, or MuJoCo or the ALOHA model files are missing here.
    """

    def __init__(self, name: str, *, chunk_size: int | None = None, model_dir: str | Path | None = None) -> None:
        if name not in _TASKS:
            raise ConfigError(f"no scripted policy {name!r}; there are {', '.join(SCRIPTED)}")
        task, env = _TASKS[name]
        names = state_names(task)
        self.metadata = PolicyMetadata(
            name=name,
            observation={"state": Feature("state", (len(names),), names=names)},
            action_names=ACTION_NAMES,
            chunk_size=chunk_size or _CHUNK_SIZE,
            control_rate_hz=1 / CONTROL_STEP_S,
            has_memory=True,
            extra={"env": env, "env_kwargs": {"obs_type": "state"}, "whole_chunks": True},
        )
        self._expert = _make_expert(task, model_dir)
        self._layout = SceneLayout(tuple(EntityLayout(name) for name in OBJECTS[task]))
        self._pose_columns = {name: [names.index(f"{name}_{axis}") for axis in _POSE] for name in OBJECTS[task]}
        self._plans: dict[str, tuple[NDArray[np.float32], int]] = {}
        self._lock = threading.Lock()

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """The next K actions of each episode's plan, as `Policy.infer`."""
        count = check_batch(observation, self.metadata)
        if len(episode_ids) != count:
            raise InputError(f"{count} observations came with {len(episode_ids)} episode ids")
        with self._lock:
            return np.stack(
                [self._next_chunk(name, row) for name, row in zip(episode_ids, observation["state"], strict=True)]
            )

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """Plan these episodes anew at their next observation; all when None."""
        with self._lock:
            for name in tuple(self._plans) if episode_ids is None else episode_ids:
                self._plans.pop(name, None)

    def _next_chunk(self, episode_id: str, state: NDArray[np.float32]) -> NDArray[np.float32]:
        if episode_id not in self._plans:
            self._plans[episode_id] = (self._plan(state), 0)
        plan, step = self._plans[episode_id]
        steps = np.arange(step, step + self.metadata.chunk_size)
        self._plans[episode_id] = (plan, step + self.metadata.chunk_size)
        return plan[np.minimum(steps, len(plan) - 1)]

    def _plan(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.zeros(self._layout.size)
        for name, columns in self._pose_columns.items():
            start = self._layout.offsets[name]
            values[start : start + len(columns)] = state[columns]
        try:
            self._expert.reset(SceneState(self._layout, values))
        except InputError as error:
            raise PolicyError(
                f"{self.metadata.name} cannot plan from this observation: {error}",
                remote_traceback=traceback.format_exc(),
            ) from error
        return np.stack([self._expert.action(step) for step in range(self._expert.num_steps)])


def _make_expert(task: Task, model_dir: str | Path | None) -> Any:
    try:
        from remote_env.tasks.aloha_expert import make_expert
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the scripted policies need {error.name!r}, which is not installed here: pip install 'remote-env[aloha]'"
        ) from error
    return make_expert(task, model_dir=model_dir)
