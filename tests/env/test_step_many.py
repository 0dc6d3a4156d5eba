"""Several steps in one round trip, beside the same steps one by one in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from remote_env import ChunkedActions, RemoteEnv, RemoteVectorEnv
from remote_env.errors import ConfigError, InputError, NotRun, TaskError
from remote_env.protocol.chunks import MAX_STEPS
from remote_env.session.exchange import WINDOW

ALOHA = "remote_env/AlohaTransferCube-v0"


@pytest.fixture(scope="module")
def aloha(isolated_home: object) -> Iterator[RemoteEnv]:
    with RemoteEnv(env=ALOHA, env_kwargs={"obs_type": "state"}) as env:
        yield env


@pytest.fixture(scope="module")
def counting(isolated_home: object) -> Iterator[RemoteEnv]:
    """Observations of a state and an image."""
    with RemoteEnv(env="remote_env.testing.counting:make", env_kwargs={"image": True}) as env:
        yield env


def test_a_chunk_is_what_its_steps_are(cartpole: RemoteEnv) -> None:
    local = gymnasium.make("CartPole-v1")
    actions = np.array([0, 1, 1, 0, 1] * 3)
    first, _ = cartpole.reset(seed=3)
    assert np.array_equal(first, local.reset(seed=3)[0])
    chunk = cartpole.step_many(actions)
    expected = [local.step(int(action)) for action in actions]
    assert chunk.ran == len(actions) == len(chunk.infos)
    for number, (observation, reward, terminated, truncated, info) in enumerate(expected):
        assert chunk.observations[number].tobytes() == observation.tobytes()
        assert (chunk.rewards[number], chunk.terminated[number]) == (reward, terminated)
        assert (chunk.truncated[number], chunk.infos[number]) == (truncated, info)


def test_a_chunk_ends_with_the_episode_and_says_how_many_ran(cartpole: RemoteEnv) -> None:
    cartpole.reset(seed=0)
    chunk = cartpole.step_many([0] * 50, want="last")
    assert chunk.ran < 50
    assert chunk.terminated.tolist() == [False] * (chunk.ran - 1) + [True]
    assert chunk.observations.shape == (1, 4)
    cartpole.reset(seed=0)
    assert cartpole.step_many([0] * 50).observations.shape == (chunk.ran, 4)


def test_scenes_come_along_and_the_last_is_the_present_one(aloha: RemoteEnv) -> None:
    aloha.reset(seed=0)
    chunk = aloha.step_many(np.zeros((3, 14), np.float32), capture_state=True)
    assert chunk.states is not None
    assert np.array_equal(chunk.states[2].values, aloha.get_state().values)
    assert not np.array_equal(chunk.states[1].values, chunk.states[2].values)
    assert [info["touching"] for info in chunk.infos] == ["none"] * 3


@pytest.mark.parametrize("actions", [[], np.zeros((0, 14)), [0] * (MAX_STEPS + 1)])
def test_no_actions_and_too_many_are_refused_and_nothing_was_sent(cartpole: RemoteEnv, actions: object) -> None:
    cartpole.reset(seed=0)
    with pytest.raises(InputError, match="there may be 1 to"):
        cartpole.step_many(actions)
    assert cartpole.step_many([0, 1]).ran == 2


def test_a_tuple_or_a_range_of_actions_is_a_list_of_them(cartpole: RemoteEnv) -> None:
    cartpole.reset(seed=0)
    assert cartpole.step_many((0, 1, 0)).ran == 3
    assert cartpole.step_many(range(2)).ran == 2


def test_actions_of_a_wrong_shape_and_keys_that_are_none_are_refused(aloha: RemoteEnv) -> None:
    aloha.reset(seed=0)
    with pytest.raises(InputError, match=r"takes float32 \(14,\)"):
        aloha.step_many(np.zeros((4, 13), np.float32))
    with pytest.raises(InputError, match="observation_keys"):
        aloha.step_many(np.zeros((4, 14), np.float32), observation_keys=["pixels"])
    with pytest.raises(InputError, match="allowed are all, last"):
        aloha.step_many(np.zeros((4, 14), np.float32), want="some")  # type: ignore[arg-type]
    assert aloha.step_many(np.zeros((4, 14), np.float32)).ran == 4


def test_keys_choose_what_of_each_observation_comes(counting: RemoteEnv) -> None:
    counting.reset(seed=0)
    chunk = counting.step_many(np.zeros((3, 2)), observation_keys=["state"])
    assert list(chunk.observations) == ["state"]
    assert chunk.observations["state"].shape == (3, 4)
    image = counting.step_many(np.zeros((3, 2)), want="last").observations["image"]
    assert image.shape == (1, 480, 640, 3)


def test_more_than_may_be_held_is_refused_with_what_would_fit(counting: RemoteEnv) -> None:
    counting.reset(seed=0)
    with pytest.raises(InputError, match="at most 291 actions"):
        counting.step_many(np.zeros((1000, 2)))


def test_an_error_in_the_middle_brings_what_was_completed() -> None:
    with RemoteEnv(env="tasks_for_tests.misbehaving:RaisesAtThird") as env:
        env.reset(seed=0)
        with pytest.raises(TaskError, match="the third step") as caught:
            env.step_many([0, 1, 0, 1])
        assert caught.value.completed.ran == 2
        env.reset(seed=0)
        assert env.step_many([0, 1]).ran == 2


def test_a_batch_runs_chunks_through_its_ends() -> None:
    local = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    actions = np.zeros((30, 3), np.int64)
    with RemoteVectorEnv(env="CartPole-v1", num_envs=3) as env:
        env.reset(seed=1)
        local.reset(seed=1)
        chunk = env.step_many(actions)
    expected = [local.step(row) for row in actions]
    assert chunk.ran == 30
    assert np.array_equal(chunk.observations, np.stack([row[0] for row in expected]))
    assert np.array_equal(chunk.rewards, np.stack([row[1] for row in expected]))
    assert np.array_equal(chunk.terminated, np.stack([row[2] for row in expected]))
    assert chunk.terminated.any()


def test_chunked_actions_sum_the_rewards_of_their_steps(cartpole: RemoteEnv) -> None:
    env = ChunkedActions(cartpole, 4)
    env.reset(seed=0)
    assert env.action_space.shape == (4,)
    observation, reward, terminated, _, info = env.step(np.array([0, 1, 0, 1]))
    assert (observation.shape, reward, terminated, info["chunk"].ran) == ((4,), 4.0, False, 4)
    for actions in ([0, 1], np.zeros(5, np.int64)):
        with pytest.raises(InputError, match=f"{len(actions)} actions where chunk_size=4"):
            env.step(actions)
    with pytest.raises(ConfigError, match="chunk_size=0"):
        ChunkedActions(cartpole, 0)


def test_a_full_window_refuses_one_more_step_and_loses_none() -> None:
    with RemoteEnv(env="Pendulum-v1") as env:
        env.reset(seed=0)
        action = np.zeros(1, np.float32)
        for _ in range(WINDOW):
            env.step_async(action)
        with pytest.raises(InputError, match=f"{WINDOW} steps are under way, and no more may be"):
            env.step_async(action)
        with pytest.raises(InputError, match="steps are under way"):
            env.step_many([action])
        outcomes: list[Any] = []
        for _ in range(WINDOW):
            try:
                outcomes.append(env.step_wait()[3])
            except NotRun:
                outcomes.append(None)
        assert outcomes == [False] * 199 + [True] + [None] * (WINDOW - 200)  # the time limit ends it
        env.reset(seed=0)
        assert env.step_many([action] * 3).ran == 3
