"""What goes wrong with an Isaac Lab environment over a real server: each fault is told, and the next reset is clean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import START_TIMEOUT_S

from remote_env import RemoteEnv
from remote_env.errors import InputError, TaskError
from remote_env.state import SceneState

REST = np.zeros(2, np.float32)
TASK = f"{Path(__file__).parent / 'isaac_tasks.py'}:FaultySwingEnv"


@pytest.fixture(scope="module")
def shared(isaac_python: str, isolated_home: Path) -> Iterator[RemoteEnv]:
    with RemoteEnv(env=TASK, simulator="isaaclab", python=isaac_python, start_timeout_s=START_TIMEOUT_S) as env:
        env.reset(seed=0)
        env.step(REST)
        yield env


@pytest.fixture
def env(shared: RemoteEnv) -> RemoteEnv:
    shared.reset(seed=0)
    return shared


def plan(env: RemoteEnv, how: str) -> None:
    env.call("plan", how)


def check_clean(env: RemoteEnv) -> None:
    """The next episode is as if nothing had been."""
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, np.zeros(4, np.float32))
    observation, reward, terminated, truncated, info = env.step(REST)
    assert np.isfinite(observation).all()
    assert (reward, terminated, truncated, "final_obs" in info) == (1.0, False, False, False)
    env.get_state().check()


@pytest.mark.parametrize("where", ["before physics", "in dones", "in observations"])
def test_what_the_task_raises_in_a_step_is_told(env: RemoteEnv, where: str) -> None:
    env.get_state()
    env.step(np.ones(2, np.float32))  # its scene comes along
    before = env.get_state()
    plan(env, f"raise {where}")
    with pytest.raises(TaskError, match=rf"ValueError in step: {where}") as caught:
        env.step(np.ones(2, np.float32))
    assert "isaac_tasks.py" in caught.value.remote_traceback
    moved = not np.array_equal(env.get_state().values, before.values)
    assert moved == (where != "before physics"), "the state is that of now"
    check_clean(env)


def test_what_the_task_raises_in_a_reset_is_told(env: RemoteEnv) -> None:
    plan(env, "raise in reset")
    with pytest.raises(TaskError, match=r"ValueError in reset: in reset"):
        env.reset(seed=0)
    check_clean(env)


def test_a_reset_that_raises_within_the_last_step_leaves_the_end_to_be_seen(env: RemoteEnv) -> None:
    plan(env, "raise in reset")
    for _ in range(4):
        env.step(REST)
    with pytest.raises(TaskError, match="in reset"):
        env.step(REST)
    assert env.get_state().time_s == pytest.approx(0.05)
    check_clean(env)


def test_extras_of_every_odd_kind_cross_or_are_left_out(env: RemoteEnv) -> None:
    plan(env, "odd extras")
    odd = env.step(REST)[4]["odd"]
    np.testing.assert_array_equal(odd["graph"], [2, 2])
    assert (odd["none"], odd["3"], odd["empty"].shape) == (None, "a number's", (0, 3))
    assert not {"tensors", "texts", "complex", "sparse", "small", "bytes", "huge"} & odd.keys()
    assert env.step(REST)[1] == 2.0, "once"
    check_clean(env)


def test_nan_rewards_are_told(env: RemoteEnv) -> None:
    plan(env, "NaN reward")
    with pytest.raises(TaskError, match=r"NaN in \['reward'\]"):
        env.step(REST)
    check_clean(env)


def test_an_observation_of_another_shape_arrives_as_it_is(env: RemoteEnv) -> None:
    plan(env, "wider")
    assert env.step(REST)[0].shape == (8,)
    check_clean(env)


def test_episodes_of_one_step(env: RemoteEnv) -> None:
    plan(env, "short")
    first, _ = env.reset(seed=0)
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step(np.ones(2, np.float32))
        assert (reward, terminated, truncated, info["final_observation"]) == (1.0, False, True, True)
        assert env.get_state().time_s == pytest.approx(0.01)
        np.testing.assert_array_equal(env.reset()[0], first)
        assert env.get_state().time_s == 0.0
    plan(env, "long")
    check_clean(env)


def test_a_step_after_the_end_is_the_next_episodes_first(env: RemoteEnv) -> None:
    for _ in range(5):
        env.step(REST)
    assert env.step(REST)[1] == 1.0
    assert env.get_state().time_s == pytest.approx(0.01)
    env.reset()
    assert env.reset()[0].tolist() == [0.0] * 4
    assert env.step(REST)[1] == 1.0


def test_states_that_cannot_be_are_refused_and_physics_that_diverged_starts_anew(env: RemoteEnv) -> None:
    state = env.get_state()
    for index, value, said in (
        (0, -1.0, "begins at 0 s"),
        (4, 5.0, "norm"),
        (1, 1e300, "float32"),
        (2, np.nan, "fini"),
    ):
        values = state.values.copy()
        values[index] = value
        with pytest.raises(InputError, match=said):
            env.set_state(SceneState(state.layout, values))
    np.testing.assert_array_equal(env.get_state().values, state.values)
    state["arm"].joint_velocities[:] = 1e30
    env.set_state(state)
    with pytest.raises(TaskError, match=r"NaN.*diverged.*reset\(\)"):
        env.step(REST)
    check_clean(env)
