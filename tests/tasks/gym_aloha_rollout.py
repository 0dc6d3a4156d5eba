"""Plays actions on gym-aloha itself, its camera rendering stubbed out; run as `python gym_aloha_rollout.py IN OUT`.

A process of its own, because importing gym-aloha brings dm_control, which picks an OpenGL platform for the process.
"""

from __future__ import annotations

import sys

import numpy as np


def roll_out(task: str, poses: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    import gym_aloha.env
    from dm_control import mujoco

    blank = np.zeros((480, 640, 3), np.uint8)
    mujoco.Physics.render = lambda *args, **kwargs: blank
    gym_aloha.env.sample_box_pose = lambda seed: poses
    gym_aloha.env.sample_insertion_pose = lambda seed: (poses[:7], poses[7:])
    env = gym_aloha.env.AlohaEnv(task, obs_type="pixels_agent_pos")
    obs, _ = env.reset()
    data = env._env.physics.data
    rows = {"qpos": [data.qpos.copy()], "qvel": [data.qvel.copy()], "agent_pos": [obs["agent_pos"]]}
    rows |= {"reward": [0], "terminated": [False]}
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
        row = (data.qpos.copy(), data.qvel.copy(), obs["agent_pos"], reward, terminated)
        for name, value in zip(rows, row, strict=True):
            rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


if __name__ == "__main__":
    given = np.load(sys.argv[1])
    np.savez(sys.argv[2], **roll_out(str(given["task"]), given["poses"], given["actions"]))
