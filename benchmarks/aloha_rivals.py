"""gym-aloha for bench_step, as shipped and with its camera rendering stubbed out; and the expert's actions."""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import gymnasium
import numpy as np

from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks
from remote_env.tasks.aloha_expert import make_expert

AS_SHIPPED_STEPS = 10


def expert_actions(seed: int) -> np.ndarray[Any, Any]:
    """What the scripted expert does on the transfer task from `seed`; (T, 14) float32."""
    register_tasks()
    env: Any = gymnasium.make(TRANSFER_CUBE_ID, obs_type="agent_pos", end_on_success=False)
    env.reset(seed=seed)
    expert = make_expert("transfer_cube")
    expert.reset(env.unwrapped.get_scene_state())
    env.close()
    return np.stack([expert.action(step) for step in range(expert.num_steps)])


def make_gym_aloha(*, stub_rendering: bool) -> gymnasium.Env[Any, Any]:
    """gym-aloha's transfer task; it renders three cameras each step whatever is asked, unless `stub_rendering`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gym_aloha  # noqa: F401  registers its ids
        from dm_control.mujoco import Physics

        env = gymnasium.make("gym_aloha/AlohaTransferCube-v0", obs_type="pixels_agent_pos", disable_env_checker=True)
    physics: Any = env.unwrapped._env.physics  # type: ignore[attr-defined]
    assert isinstance(physics, Physics)
    if stub_rendering:
        frame = np.zeros((480, 640, 3), np.uint8)
        physics.render = lambda *_args, **_kwargs: frame
    return env


def time_episode(env: Any, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Seconds that each step took."""
    clock, stamps = time.perf_counter, np.empty(len(actions) + 1)
    stamps[0] = clock()
    for index, action in enumerate(actions):
        env.step(action)
        stamps[index + 1] = clock()
    return np.diff(stamps)


def main() -> int:
    """Print, as JSON, the seconds of a few steps as shipped; they take a fifth of a second each."""
    env = make_gym_aloha(stub_rendering=False)
    env.reset(seed=0)
    seconds = time_episode(env, expert_actions(seed=0)[:AS_SHIPPED_STEPS])
    env.close()
    print(json.dumps(seconds.tolist()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
