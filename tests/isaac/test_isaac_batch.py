"""A batch of Isaac Lab environments over a real server: rows, ends, scenes of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import START_TIMEOUT_S
from gymnasium import spaces

from remote_env import RemoteVectorEnv
from remote_env.errors import InputError

COUNT = 3
STEPS = 5  # of an episode
TASK = f"{Path(__file__).parent / 'isaac_tasks.py'}:SwingEnv"
REST = np.zeros((COUNT, 2), np.float32)
END_SECOND = np.array([[0, 0], [2, 2], [0, 0]], np.float32)


@pytest.fixture(scope="module")
def envs(isaac_python: str, isolated_home: Path) -> Iterator[RemoteVectorEnv]:
    envs = RemoteVectorEnv(
        env=TASK,
        num_envs=COUNT,
        env_kwargs={"observation": "all", "cfg": {"scene.env_spacing": 7.0}},
        simulator="isaaclab",
        python=isaac_python,
        start_timeout_s=START_TIMEOUT_S,
        capture_state=True,
    )
    envs.reset(seed=0)
    envs.step(REST)
    yield envs
    envs.close()


def test_all_groups_are_advertised_as_they_are_observed(envs: RemoteVectorEnv) -> None:
    space = envs.single_observation_space
    assert isinstance(space, spaces.Dict)
    assert space["policy"] == spaces.Box(-np.inf, np.inf, (4,), np.float32)
    assert space["picture"] == spaces.Box(0, 255, (4, 6, 3), np.uint8), "declared nowhere"
    assert space["critic"].dtype == np.int64, "declared as float32"
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    observation, rewards, terminated, truncated, info = envs.step(REST)
    assert envs.observation_space.contains(observation)
    np.testing.assert_array_equal(rewards, np.ones(COUNT))
    np.testing.assert_array_equal(observation["critic"], [[1, 2]] * COUNT)
    np.testing.assert_array_equal(info["pairs"], [[1, 1]] * COUNT)
    assert (terminated.dtype, truncated.dtype) == (np.bool_, np.bool_)


def test_what_came_before_is_not_changed_by_later_steps(envs: RemoteVectorEnv) -> None:
    envs.reset(seed=0)
    kept = envs.step(REST)[0]["critic"]
    envs.step(REST)
    np.testing.assert_array_equal(kept, [[1, 2]] * COUNT)


def test_one_environments_end_is_its_own(envs: RemoteVectorEnv) -> None:
    envs.reset(seed=0)
    envs.step(REST)
    observation, _, terminated, truncated, info = envs.step(END_SECOND)
    np.testing.assert_array_equal(terminated, [False, True, False])
    assert not truncated.any()
    np.testing.assert_array_equal(info["is_success"], [False, True, False])
    np.testing.assert_array_equal(info["_final_obs"], [False, True, False])
    np.testing.assert_array_equal(info["final_obs"]["critic"][1], [2, 4])
    np.testing.assert_array_equal(observation["critic"], [[2, 4], [0, 0], [2, 4]])
    final = _final_states(envs)
    assert list(final) == [1]
    assert final[1].time_s == pytest.approx(0.02)
    assert [state.time_s for state in envs.get_states()] == pytest.approx([0.02, 0.0, 0.02])
    info = envs.step(REST)[4]
    assert "final_obs" not in info, "it stays in Isaac Lab's extras, and is old by now"
    assert _final_states(envs) == {}


def _final_states(envs: Any) -> dict[int, Any]:
    final = envs.final_states
    return dict(final() if callable(final) else final)


def test_scenes_are_in_their_own_environments_frames(envs: RemoteVectorEnv) -> None:
    envs.reset(seed=0)
    envs.step(REST)
    values = np.stack([state.values for state in envs.get_states()])
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=2e-6)


def test_only_the_named_environments_are_restored(envs: RemoteVectorEnv) -> None:
    envs.reset(seed=0)
    envs.step(REST)
    kept = envs.get_states([1])
    first = envs.step(REST)
    first_states = envs.get_states()
    envs.set_states(kept, [1])
    states = envs.get_states()
    np.testing.assert_allclose(states[1].values, kept[0].values, atol=1e-6)
    np.testing.assert_array_equal(states[0].values, first_states[0].values)
    second = envs.step(REST)
    np.testing.assert_allclose(second[0]["policy"][1], first[0]["policy"][1], atol=1e-5)
    np.testing.assert_allclose(envs.get_states()[1].values, first_states[1].values, atol=1e-5)
    np.testing.assert_array_equal(second[1], [3, 2, 3])


def test_nan_of_one_environment_is_told_and_the_others_go_on(envs: RemoteVectorEnv) -> None:
    envs.reset(seed=0)
    info = envs.step(np.full((COUNT, 2), 90.0, np.float32))[4]
    np.testing.assert_array_equal(info["is_nan"], [True] * COUNT)
    envs.reset(seed=0)
    assert "is_nan" not in envs.step(REST)[4]


def test_actions_of_another_batch_are_refused(envs: RemoteVectorEnv) -> None:
    envs.reset(seed=0)
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        envs.step(np.zeros((2, 2), np.float32))


def test_a_list_of_seeds_is_refused(envs: RemoteVectorEnv) -> None:
    with pytest.raises(InputError, match="one generator"):
        envs.reset(seed=[1, 2, 3])
