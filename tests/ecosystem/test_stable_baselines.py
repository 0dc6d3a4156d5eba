"""stable-baselines3 takes a RemoteEnv for what it is: an ordinary environment. Run by make test-ecosystem."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import remote_env

ROOT = Path(__file__).resolve().parents[2]
STEPS = 512


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make_remote():
    return remote_env.RemoteEnv(env="CartPole-v1")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_check_env_finds_nothing(env_id):
    with remote_env.RemoteEnv(env=env_id) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        # Its advice on ranges of actions is about the task, not about us.
        warnings.filterwarnings("ignore", message="We recommend you to use a symmetric and normalized Box")
        check_env(env, skip_render_check=True)


def train(env):
    model = PPO("MlpPolicy", env, n_steps=STEPS // 2, batch_size=64, n_epochs=2, seed=3, device="cpu")
    model.learn(STEPS)
    return {name: value.numpy() for name, value in model.policy.state_dict().items()}


def test_training_ends_with_the_same_weights_as_local():
    local = gymnasium.make("CartPole-v1")
    expected = train(local)
    local.close()
    with make_remote() as env:
        got = train(env)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_vectorised_environments_step_together(kind):
    env = kind([make_remote, make_remote])
    try:
        env.seed(5)
        first = env.reset()
        assert first.shape == (2, 4)
        for _ in range(60):  # past the end of an episode of random actions
            observations, rewards, dones, infos = env.step(np.array([1, 0]))
        assert observations.shape == (2, 4)
        assert rewards.shape == dones.shape == (2,)
        assert len(infos) == 2
    finally:
        env.close()


def test_example_leaves_checkpoint_and_curve(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "examples" / "train_ppo.py"),
        "--steps",
        "2048",
        "--output-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.zip",
        "learning_curve.csv",
        "learning_curve.png",
    ]
    with make_remote() as env:
        model = PPO.load(tmp_path / "checkpoint.zip", env=env)
        action, _ = model.predict(env.reset(seed=0)[0])
        env.step(action)
