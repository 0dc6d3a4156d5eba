"""The MuJoCo models of tasks that this machine has, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote_env.tasks import ALOHA_TASKS

ALOHA = {
    **ALOHA_TASKS,
    "gym_aloha/AlohaTransferCube-v0": "transfer_cube",
    "gym_aloha/AlohaInsertion-v0": "insertion",
}
GYMNASIUM_MUJOCO = "gymnasium.envs.mujoco."


def known_model(task: str, env_kwargs: Mapping[str, Any]) -> Any | None:
    """The model of a task by its id: ALOHA's, or that of Gymnasium's own MuJoCo tasks; None where it is not known.

    A capture is only data: nothing that it names is imported or run, but for what is listed here.

    Raises:
        ConfigError: it is an ALOHA task, and gym-aloha is not installed here.
    """
    if task in ALOHA:
        from remote_env.tasks.aloha_model import aloha_model_path

        return aloha_model_path(ALOHA[task])
    return _gymnasium_model(task, env_kwargs)


def _gymnasium_model(task: str, env_kwargs: Mapping[str, Any]) -> Any | None:
    import gymnasium

    spec = gymnasium.registry.get(task)
    if spec is None or not str(spec.entry_point).startswith(GYMNASIUM_MUJOCO) or env_kwargs:
        return None
    env = gymnasium.make(task)
    try:
        return getattr(env.unwrapped, "model", None)
    finally:
        env.close()
