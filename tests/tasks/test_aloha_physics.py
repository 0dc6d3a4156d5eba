"""The embedded tasks against gym-aloha itself: the same numbers to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from remote_env.tasks.aloha import AlohaEnv
from remote_env.tasks.aloha_expert import make_expert

ROLLOUT = Path(__file__).with_name("gym_aloha_rollout.py")


def theirs(tmp_path: Path, **given: object) -> dict[str, np.ndarray]:
    asked, answer = tmp_path / "asked.npz", tmp_path / "answer.npz"
    np.savez(asked, **given)
    command = [sys.executable, str(ROLLOUT), str(asked), str(answer)]
    subprocess.run(command, check=True, timeout=100, env={**os.environ, "MUJOCO_GL": "disable"})
    return dict(np.load(answer))


def ours(env: AlohaEnv, first_obs: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    rows = [(env.data.qpos.copy(), env.data.qvel.copy(), first_obs, 0.0, False)]
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        rows.append((env.data.qpos.copy(), env.data.qvel.copy(), obs, reward, terminated))
    names = ("qpos", "qvel", "agent_pos", "reward", "terminated")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def expert_actions(task: str, env: AlohaEnv) -> np.ndarray:
    expert = make_expert(task)
    expert.reset(env.get_scene_state())
    return np.stack([expert.action(step) for step in range(300)])


def wild_actions(task: str, env: AlohaEnv) -> np.ndarray:
    """Arms that sweep the table and each other, in double precision and far outside the action space's bounds."""
    rng = np.random.default_rng(0)
    return np.repeat(rng.uniform(-1.8, 1.8, (15, 14)), 20, axis=0)


@pytest.mark.parametrize("make_actions", [expert_actions, wild_actions])
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_300_steps_are_gym_alohas_bit_by_bit(task: str, make_actions: object, tmp_path: Path) -> None:
    env = AlohaEnv(task)
    obs, _ = env.reset(seed=7)
    poses = env.data.qpos[16:].copy()
    actions = make_actions(task, env)
    mine = ours(env, obs, actions)
    reference = theirs(tmp_path, task=task, poses=poses, actions=actions)
    for name, values in reference.items():
        np.testing.assert_array_equal(mine[name], values, err_msg=name)
    assert mine["qpos"].tobytes() == reference["qpos"].tobytes()
    if make_actions is expert_actions:
        assert {0.0, 1.0, 2.0, 4.0} <= set(mine["reward"])  # the episode went through contacts of every kind
        assert mine["terminated"].any()
