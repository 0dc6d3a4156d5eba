"""A served batch of Isaac Lab environments beside the same ones stepped directly: bit for bit, ends included."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from conftest import START_TIMEOUT_S

from remote_env import RemoteVectorEnv

FOLDER = Path(__file__).parent
COUNT, STEPS, SEED = 3, 60, 3


def test_served_numbers_are_the_simulators_own(isaac_python: str, isolated_home: Path) -> None:
    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (STEPS, COUNT, 2)).astype(np.float32)
    actions[random.random((STEPS, COUNT)) < 0.05] = 1.5  # ends that episode
    direct = _run_directly(isaac_python, isolated_home, actions)
    with RemoteVectorEnv(
        env=f"{FOLDER / 'isaac_tasks.py'}:SwingEnv",
        num_envs=COUNT,
        simulator="isaaclab",
        python=isaac_python,
        start_timeout_s=START_TIMEOUT_S,
    ) as envs:
        _same(envs.reset(seed=SEED)[0], direct["observation"][0])
        for step, action in enumerate(actions):
            observation, reward, terminated, truncated, info = envs.step(action)
            _same(observation, direct["observation"][step + 1])
            _same(reward, direct["reward"][step])
            _same(terminated, direct["terminated"][step])
            _same(truncated, direct["truncated"][step])
            _same(info["lengths"], direct["lengths"][step])
            assert info["log"]["length"] == float(direct["log"][step])
            ended = terminated | truncated
            np.testing.assert_array_equal(info.get("_final_obs", np.zeros(COUNT, bool)), ended)
            if ended.any():
                _same(info["final_obs"], direct["final"][step])
    assert direct["terminated"].any()
    assert direct["truncated"].any()


def _run_directly(isaac_python: str, folder: Path, actions: Any) -> dict[str, Any]:
    np.save(folder / "actions.npy", actions)
    program = [isaac_python, str(FOLDER / "direct_run.py"), str(folder / "actions.npy"), str(folder / "direct.npz")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "direct.npz") as values:
        return dict(values)


def _same(ours: Any, theirs: Any) -> None:
    assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
