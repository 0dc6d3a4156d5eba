"""gymnasium.make with our ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from leak_check import isolated_home, no_leaks

import remote_env
from remote_env import RemoteEnv, registration
from remote_env.errors import ConfigError

__all__ = ["isolated_home", "no_leaks"]


def test_ids_are_there_after_the_import() -> None:
    for name in ("Remote-v0", "Remote-Aloha-v0"):
        assert name in gymnasium.registry
    registration.register_remote_envs()  # again does nothing


def test_any_environment_by_name() -> None:
    with gymnasium.make("Remote-v0", env="CartPole-v1", max_episode_steps=3) as env:
        env.reset(seed=0)
        assert [env.step(i % 2)[3] for i in range(3)] == [False, False, True]
        assert isinstance(env.unwrapped, RemoteEnv)
        assert env.spec is not None
        assert env.spec.id == "Remote-v0"


def test_without_a_task_it_says_what_to_name() -> None:
    with pytest.raises(ConfigError, match="name the task with env="):
        gymnasium.make("Remote-v0").reset()


@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_aloha(task: str) -> None:
    pytest.importorskip("gym_aloha")
    with gymnasium.make("Remote-Aloha-v0", task=task, obs_type="state", step_timeout_s=30.0) as env:
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        env.step(env.action_space.sample())
        assert env.unwrapped.remote_spec["id"] == registration.ALOHA_TASKS[task.replace("_", "-")]
        assert env.unwrapped._step_timeout_s == 30.0


def test_a_batch_of_aloha() -> None:
    pytest.importorskip("gym_aloha")
    arguments: dict[str, Any] = {"obs_type": "state", "env_kwargs": {"vectorization_mode": "async"}}
    made: Any = gymnasium.make_vec("Remote-Aloha-v0", 3, "vector_entry_point", host=[None, None], **arguments)
    with made as env:
        assert [server.num_envs for server in env.servers] == [2, 1]
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        assert env.step(env.action_space.sample())[1].shape == (3,)


def test_no_such_aloha_task() -> None:
    with pytest.raises(ConfigError, match="task='juggling' is no ALOHA task; allowed: transfer-cube, insertion"):
        gymnasium.make("Remote-Aloha-v0", task="juggling")


def test_public_names_are_there() -> None:
    for name in remote_env.__all__:
        assert getattr(remote_env, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = remote_env.nothing  # type: ignore[attr-defined]


def test_importing_us_imports_nothing_heavy() -> None:
    heavy = ("mujoco", "paramiko", "h5py", "imageio", "torch")
    code = f"import sys, remote_env; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True, timeout=20).strip() == "[]"
