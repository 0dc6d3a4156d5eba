"""Scenes of a batch: with each step, asked for, set, and those in which environments ended; a Backend with a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from leak_check import isolated_home, no_leaks
from tasks_for_tests.scene import LAYOUT

from remote_env import RemoteVectorEnv, SceneState
from remote_env.errors import InputError, TaskError, Unsupported
from remote_env.state import EntityLayout, SceneLayout

__all__ = ["isolated_home", "no_leaks"]

SHORT = "tasks_for_tests.batches:ShortScene"
FLOCK = "tasks_for_tests.batches:Flock"


def heights(states: list[SceneState]) -> list[float]:
    return [float(next(iter(state)).root_pose[2]) for state in states]


def cube_at(height: float) -> SceneState:
    values = np.zeros(LAYOUT.size)
    values[3:5] = height, 1.0
    return SceneState(LAYOUT, values)


def act(*ends: float) -> Any:
    return np.array([[end / 10, 0.0] for end in ends], np.float32)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_states_come_with_each_step_and_those_that_ended_are_told(mode: str) -> None:
    with RemoteVectorEnv(env=SHORT, num_envs=3, capture_state=True, autoreset_mode=mode) as env:
        env.reset(seed=0)
        assert (heights(env.get_states()), env.final_states) == ([0.0] * 3, {})
        env.step(act(9, 9, 9))
        assert (heights(env.get_states()), env.final_states) == ([1.0] * 3, {})
        terminated = env.step(act(9, 2, 9))[2]
        assert terminated.tolist() == [False, True, False]
        final = env.final_states
        assert list(final) == [1]
        assert heights([final[1]]) == [2.0]
        assert heights(env.get_states()) == ([2.0, 2.0, 2.0] if mode == "NextStep" else [2.0, 0.0, 2.0])
        env.step(act(9, 9, 9))
        assert env.final_states == {}
        assert heights(env.get_states()) == ([3.0, 0.0, 3.0] if mode == "NextStep" else [3.0, 1.0, 3.0])
        env.step(act(4, 9, 9))
        assert list(env.final_states) == [0]
        env.reset(seed=1)
        assert (heights(env.get_states()), env.final_states) == ([0.0] * 3, {})


@pytest.fixture(scope="module")
def scenes(isolated_home: Any) -> Iterator[RemoteVectorEnv]:
    with RemoteVectorEnv(env=SHORT, num_envs=4) as env:
        env.reset()
        yield env


def test_states_are_set_where_they_are_meant(scenes: RemoteVectorEnv) -> None:
    scenes.reset()
    scenes.set_states([cube_at(3), cube_at(7)], [2, 0])
    assert heights(scenes.get_states()) == [7.0, 0.0, 3.0, 0.0]
    assert heights(scenes.get_states([2, 1])) == [3.0, 0.0]
    assert scenes.get_state(2) == cube_at(3)
    scenes.set_states([cube_at(number) for number in range(4)])
    assert heights(scenes.get_states(np.array([3, 2]))) == [3.0, 2.0]
    assert scenes.get_states([]) == []
    scenes.set_states([], [])
    state = scenes.get_state(1)
    state.values[3] = 99.0  # the caller's own
    assert heights([scenes.get_state(1)]) == [1.0]


@pytest.mark.parametrize(
    ("env_ids", "text"),
    [
        ([4], "names 4; this batch has the environments 0 to 3"),
        ([-1], "names -1"),
        ([1, 1], "twice"),
        ([0.5], "whole numbers"),
        ("ab", "whole numbers"),
        ([[1]], "whole numbers"),
    ],
)
def test_environments_that_there_are_not(scenes: RemoteVectorEnv, env_ids: Any, text: str) -> None:
    for call in (lambda: scenes.get_states(env_ids), lambda: scenes.set_states([cube_at(1)], env_ids)):
        with pytest.raises(InputError, match=text):
            call()
    assert len(scenes.get_states()) == 4


def test_states_that_do_not_fit(scenes: RemoteVectorEnv) -> None:
    other = SceneLayout((EntityLayout("ball", ("hinge",)),), "toy 2")
    ball = SceneState(other, np.zeros(other.size))
    ball["ball"].root_pose[3] = 1.0
    with pytest.raises(InputError, match="1 states for 4 environments"):
        scenes.set_states([cube_at(1)])
    with pytest.raises(InputError, match="takes a list of SceneState"):
        scenes.set_states([np.zeros(14)], [0])  # type: ignore[list-item]
    with pytest.raises(InputError, match="different layouts"):
        scenes.set_states([cube_at(1), ball], [0, 1])
    scenes.reset()
    with pytest.raises(InputError, match="no entity 'cube'"):
        scenes.set_states([ball], [1])
    assert heights(scenes.get_states()) == [0.0] * 4


def test_a_task_without_states() -> None:
    with RemoteVectorEnv(env="CartPole-v1", num_envs=2, autoreset_mode="SameStep") as env:
        env.reset(seed=0)
        for _ in range(30):
            env.step(np.zeros(2, np.int64))  # episodes end, and nobody needs their states
        with pytest.raises(Unsupported, match="no scene state"):
            env.get_states()
        with pytest.raises(Unsupported, match="no scene state"):
            env.get_states([])
        env.step(np.zeros(2, np.int64))


# A backend with a batch of its own


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_backend_with_a_batch_of_its_own(dtype: str) -> None:
    arguments: dict[str, Any] = {"simulator": FLOCK, "env": "meadow", "env_kwargs": {"dtype": dtype}}
    with RemoteVectorEnv(**arguments, num_envs=3, capture_state=True) as env:
        assert env.metadata["autoreset_mode"].name == "SAME_STEP"
        assert env.reset(seed=[1, 2, None])[1] == {"seed": [1, 2, None]}
        assert heights(env.get_states()) == [1.0, 2.0, 0.0]
        env.step(np.array([2, 1, 0]))
        observations, rewards, terminated, _, infos = env.step(np.array([2, 2, 1]))
        assert (rewards.dtype, rewards.tolist(), terminated.tolist()) == (dtype, [2, 2, 1], [True, True, False])
        assert infos["final_obs"].dtype == np.object_
        assert [None if each is None else each.tolist() for each in infos["final_obs"]] == [[5.0], [5.0], None]
        assert observations.tolist() == [[0.0], [0.0], [1.0]]
        assert {index: heights([state]) for index, state in env.final_states.items()} == {0: [5.0], 1: [5.0]}
        env.set_states([env.get_state(2)], [0])
        assert heights(env.get_states()) == [1.0, 0.0, 1.0]
        env.reset(seed=[4, 4, 4], options={"reset_mask": np.array([False, True, False])})
        assert heights(env.get_states()) == [1.0, 4.0, 1.0]
        with pytest.raises(Unsupported, match="Flock lets clients set no attributes"):
            env.set_attr("size", 1)
        assert env.call("size") == 3


def test_a_backend_whose_states_are_no_rows() -> None:
    with RemoteVectorEnv(simulator=FLOCK, env="x", env_kwargs={"wrong": "rows"}, num_envs=2) as env:
        env.reset()
        with pytest.raises(TaskError, match=r"ValueError in get_state.*float64 \(2, 13\); 2 of this layout.*\(2, 14\)"):
            env.get_states()
        env.step(np.array([1, 1]))
