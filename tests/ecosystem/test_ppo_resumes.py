"""PPO over a link that is cut again and again learns what it learns without one. Run by make test-ecosystem."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from server_process import serving
from stable_baselines3 import PPO
from trajectories import Events

from remote_env import RemoteEnv
from remote_env.testing import FaultProxy

TASK = "CartPole-v1"
STEPS = 4096
MEAN_BYTES = 6000  # some forty steps


def train(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = PPO("MlpPolicy", env, n_steps=512, batch_size=64, n_epochs=4, seed=3, device="cpu")
    model.learn(STEPS)
    return {name: value.numpy() for name, value in model.policy.state_dict().items()}


@pytest.mark.fault
def test_ppo_ends_with_the_same_weights_as_local_while_its_link_is_cut() -> None:
    local, events = gymnasium.make(TASK), Events()
    expected = train(local)
    local.close()
    with (
        serving(TASK) as server,
        FaultProxy(("127.0.0.1", server.port), seed=3) as proxy,
        RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, on_link=events) as env,
    ):
        proxy.cut_every(MEAN_BYTES)
        got = train(env)
        proxy.cut_every(None)
    assert len(events.resumed_s) >= 20
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
