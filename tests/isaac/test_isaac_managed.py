"""An environment by managers, whose policy group is a dict of terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import START_TIMEOUT_S
from gymnasium import spaces

from remote_env import RemoteEnv


@pytest.fixture(scope="module")
def env(isaac_python: str, isolated_home: Path) -> Iterator[RemoteEnv]:
    with RemoteEnv(
        env="isaaclab.envs:ManagerBasedRLEnv",
        env_kwargs={"cfg_class": "isaac_tasks:ManagedEnvCfg", "cfg": {"episode_length_s": 0.05}},
        simulator="isaaclab",
        python=isaac_python,
        server_env={"PYTHONPATH": str(Path(__file__).parent)},
        start_timeout_s=START_TIMEOUT_S,
        capture_state=True,
    ) as env:
        yield env


def test_a_group_of_terms_is_a_dict(env: RemoteEnv) -> None:
    observation, _ = env.reset(seed=0)
    assert isinstance(env.observation_space, spaces.Dict)
    assert list(env.observation_space) == ["position", "velocity"]
    assert env.observation_space.contains(observation)


def test_an_episode_by_managers_ends_by_its_terms(env: RemoteEnv) -> None:
    env.reset(seed=0)
    for _ in range(5):
        observation, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert reward > 0
        assert info["is_success"] is False
    assert (terminated, truncated) == (False, True)
    np.testing.assert_allclose(observation["position"], env.get_state()["arm"].joint_positions, atol=1e-6)
    env.reset()
    assert env.get_state().time_s == 0.0
    outcomes = [env.step(np.full(2, 3.0, np.float32))[2:] for _ in range(4)]
    assert any(terminated and info["is_success"] for terminated, _, info in outcomes), "by the term called success"
