"""The scripted experts as policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy import load_policy
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.scripted import SCRIPTED
from remote_env.tasks.aloha import AlohaEnv


def batch_of(*states: Any) -> dict[str, Any]:
    return {"state": np.stack(states).astype(np.float32)}


@pytest.mark.parametrize("name", SCRIPTED)
def test_an_expert_solves_its_task(name: str) -> None:
    task = name.removeprefix("scripted:aloha-")
    env = AlohaEnv(task, obs_type="state")
    with load_policy(name, chunk_size=50) as policy:
        mapping = ObservationMapping.between(env.observation_space, policy.metadata, state_names=env.state_names)
        state, _ = env.reset(seed=5)
        actions, rewards = [], [0.0]
        while len(rewards) < 301 and rewards[-1] < 4:
            if not actions:
                actions = list(policy.infer(mapping.batch([state]), episode_ids=["e"])[0])
            state, reward, *_ = env.step(actions.pop(0))
            rewards.append(reward)
    assert rewards[-1] == 4.0


def test_episodes_are_kept_apart() -> None:
    env = AlohaEnv("transfer_cube", obs_type="state")
    states = [env.reset(seed=seed)[0] for seed in (0, 1)]
    policy = load_policy("scripted:aloha-transfer-cube", chunk_size=100)
    both = policy.infer(batch_of(*states), episode_ids=["a", "b"])
    assert both.shape == (2, 100, 14)
    assert both.dtype == np.float32
    assert both.flags.c_contiguous
    assert not np.array_equal(both[0], both[1])
    other = load_policy("scripted:aloha-transfer-cube", chunk_size=100)
    np.testing.assert_array_equal(other.infer(batch_of(states[1]), episode_ids=["x"])[0], both[1])
    # "b" goes on while "a" begins anew.
    policy.reset(["a"])
    again = policy.infer(batch_of(*states), episode_ids=["a", "b"])
    np.testing.assert_array_equal(again[0], both[0])
    assert not np.array_equal(again[1], both[1])
    policy.reset()
    np.testing.assert_array_equal(policy.infer(batch_of(*states), episode_ids=["a", "b"]), both)


def test_after_the_plan_the_last_action_repeats() -> None:
    env = AlohaEnv("transfer_cube", obs_type="state")
    state = env.reset(seed=0)[0]
    policy = load_policy("scripted:aloha-transfer-cube", chunk_size=299)
    policy.infer(batch_of(state), episode_ids=["a"])
    rest = policy.infer(batch_of(state), episode_ids=["a"])[0]
    np.testing.assert_array_equal(rest, np.broadcast_to(rest[0], rest.shape))


def test_metadata_names_every_number() -> None:
    metadata = load_policy("scripted:aloha-insertion").metadata
    assert metadata.observation["state"].names == AlohaEnv("insertion").state_names
    assert metadata.has_memory
    assert metadata.control_rate_hz == 50.0
    assert metadata.chunk_size == 64


def test_what_cannot_be_planned_is_a_policy_error() -> None:
    env = AlohaEnv("transfer_cube", obs_type="state")
    state, _ = env.reset(options={"poses": {"box": (-0.6, 0.9, 0.05, 1, 0, 0, 0)}})
    policy = load_policy("scripted:aloha-transfer-cube")
    with pytest.raises(PolicyError, match="right arm cannot reach") as raised:
        policy.infer(batch_of(state), episode_ids=["a"])
    assert "aloha_expert" in raised.value.remote_traceback
    with pytest.raises(InputError, match="2 episode ids"):
        policy.infer(batch_of(state), episode_ids=["a", "b"])


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="scripted:aloha-transfer-cube, scripted:aloha-insertion"):
        load_policy("scripted:juggling")
    with pytest.raises(ConfigError, match="runs on the CPU alone; run it with --device cpu"):
        load_policy("scripted:aloha-insertion", device="cuda")
    with pytest.raises(ConfigError, match="does not normalise"):
        load_policy("scripted:aloha-insertion", dataset_id="mine")
    with pytest.raises(ConfigError, match="at least one action"):
        load_policy("scripted:aloha-insertion", chunk_size=0)
