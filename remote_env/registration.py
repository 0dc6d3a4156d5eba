"""gymnasium.make and make_vec of "Remote-Aloha-v0", "Remote-v0" and the tasks that come along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from remote_env.errors import ConfigError
from remote_env.tasks import register_tasks

REMOTE_ID = "Remote-v0"
ALOHA_ID = "Remote-Aloha-v0"
ALOHA_TASKS = {"transfer-cube": "remote_env/AlohaTransferCube-v0", "insertion": "remote_env/AlohaInsertion-v0"}
_ALOHA_KWARGS = ("obs_type", "cameras", "width", "height", "quality", "model_dir")


def register_remote_envs() -> None:
    """Register our ids with Gymnasium, and those of the tasks that come along; calling it again does nothing."""
    register_tasks()
    if REMOTE_ID in gymnasium.registry:
        return
    # The far end enforces the order of calls and the time limit; checks of every step here would only cost time.
    for name, entry_point, vector_entry_point in (
        (REMOTE_ID, "remote_env.env:RemoteEnv", "remote_env.vector:RemoteVectorEnv"),
        (ALOHA_ID, "remote_env.registration:make_aloha", "remote_env.registration:make_aloha_batch"),
    ):
        gymnasium.register(
            name,
            entry_point=entry_point,
            disable_env_checker=True,
            order_enforce=False,
            vector_entry_point=vector_entry_point,
        )


def make_aloha(
    host: str | None = None, port: int | None = None, *, task: str = "transfer-cube", **kwargs: Any
) -> gymnasium.Env[Any, Any]:
    """A bimanual ALOHA task, on an embedded local server unless `host` says otherwise.

    Args:
        host: as `RemoteEnv`.
        port: as `RemoteEnv`.
        task: "transfer-cube" or "insertion".
        **kwargs: `obs_type`, `cameras`, `width`, `height`, `quality`, `model_dir` go to the task (see
            `remote_env.tasks.aloha.AlohaEnv`), everything else to `RemoteEnv`.
    """
    from remote_env.env import RemoteEnv

    env, env_kwargs, others = _aloha_task(task, kwargs)
    return RemoteEnv(host, port, env=env, env_kwargs=env_kwargs, **others)


def make_aloha_batch(
    host: str | Sequence[str | None] | None = None,
    port: int | Sequence[int | None] | None = None,
    *,
    num_envs: int,
    task: str = "transfer-cube",
    **kwargs: Any,
) -> Any:
    """`num_envs` bimanual ALOHA tasks as one `RemoteVectorEnv`, on one server or, given a list of hosts, on several.

    `gymnasium.make_vec` keeps its own `vectorization_mode` and `vector_kwargs` to itself; those of the far end go into
    `env_kwargs`: `env_kwargs={"vectorization_mode": "async"}` has a process for each environment there.

    Args:
        host: as `RemoteVectorEnv`.
        port: as `RemoteVectorEnv`.
        num_envs: how many.
        task: as `make_aloha`.
        **kwargs: as `make_aloha`, with `RemoteVectorEnv` in place of `RemoteEnv`.
    """
    from remote_env.vector import RemoteVectorEnv

    env, env_kwargs, others = _aloha_task(task, kwargs)
    return RemoteVectorEnv(host, port, env=env, num_envs=num_envs, env_kwargs=env_kwargs, **others)  # type: ignore[arg-type]  # several are another class


def _aloha_task(task: str, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The task's id, its keyword arguments, and those that are left."""
    name = task.replace("_", "-")
    if name not in ALOHA_TASKS:
        raise ConfigError(f"task={task!r} is no ALOHA task; allowed: {', '.join(ALOHA_TASKS)}")
    own = {key: value for key, value in kwargs.items() if key in _ALOHA_KWARGS}
    others = {key: value for key, value in kwargs.items() if key not in _ALOHA_KWARGS}
    return ALOHA_TASKS[name], {**(others.pop("env_kwargs", None) or {}), **own}, others
