"""PredictiveEnv against real servers: the remote's trajectory at once, and told wherever it is another."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from exact_values import assert_same
from gymnasium.utils.env_checker import check_env
from tasks_for_tests.misbehaving import OnDemand

from remote_env import PredictiveEnv, RemoteEnv
from remote_env.errors import ConfigError, InputError, PredictionMismatch, SessionLost, TaskError
from remote_env.prediction.differences import compare
from remote_env.state import SceneState
from remote_env.tasks import register_tasks
from remote_env.testing import CountingEnv

ALOHA = "remote_env/AlohaTransferCube-v0"
PENDULUM = "InvertedPendulum-v5"  # MuJoCo, and quick
COUNTING = "remote_env.testing.counting:make"
ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
MODES = ("every", "chunk")


@pytest.fixture(scope="module")
def far(isolated_home: object) -> Iterator[RemoteEnv]:
    """A remote MuJoCo task, for all tests that it survives."""
    with RemoteEnv(env=PENDULUM) as far:
        yield far


@pytest.fixture(scope="module")
def on_demand(isolated_home: object) -> Iterator[RemoteEnv]:
    """A task that goes wrong as it is told."""
    with RemoteEnv(env=ON_DEMAND) as far:
        yield far


@pytest.fixture(scope="module")
def counting(isolated_home: object) -> Iterator[RemoteEnv]:
    """A task whose episodes end after three steps, with the scenes."""
    with RemoteEnv(env=COUNTING, env_kwargs={"episode_length": 3}, capture_state=True) as far:
        yield far


def counting_twin(far: RemoteEnv, length: int | None = None, **kwargs: Any) -> PredictiveEnv:
    """Of `counting`, which hashes every call of its life."""
    twin = CountingEnv(episode_length=length)
    twin._life, twin._calls = bytes.fromhex(far.call("digest")), far.call("calls")
    env = PredictiveEnv(far, twin, **kwargs)
    env.reset(seed=0)
    return env


def on_demand_twin(far: RemoteEnv, **kwargs: Any) -> PredictiveEnv:
    """Of `on_demand`, which counts its steps over all its life."""
    twin = OnDemand()
    twin.total_steps = far.call("total_steps")
    env = PredictiveEnv(far, twin, **kwargs)
    env.reset(seed=0)
    return env


def pushes(count: int, seed: int = 0, size: float = 0.1) -> np.ndarray:
    """Actions; small ones leave the pendulum up for a while."""
    return np.random.default_rng(seed).uniform(-size, size, (count, 1)).astype(np.float32)


def walk(env: Any, actions: Any, seed: int | None = 0) -> list[Any]:
    """A reset, and steps up to the episode's end."""
    seen = [env.reset(seed=seed)]
    for action in actions:
        seen.append(env.step(action))
        if seen[-1][2] or seen[-1][3]:
            break
    return seen


def step_all(env: PredictiveEnv, actions: Any) -> list[Any]:
    """All of these, verified."""
    seen = [env.step(action) for action in actions]
    env.verify()
    return seen


class Pretending(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Says at a reset that all is done."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "is_success": True}


class Elsewhere(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Starts where it was not told to."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.env.reset(seed=5, options=options)


def predicted(far: RemoteEnv, **kwargs: Any) -> PredictiveEnv:
    """With a twin; not closed by tests that share the remote."""
    return PredictiveEnv(far, gymnasium.make(PENDULUM), **kwargs)


@pytest.mark.parametrize("verify", MODES)
def test_what_it_returns_is_the_remotes_trajectory(far: RemoteEnv, verify: str) -> None:
    large = {"size": 3.0}
    expected = walk(far, pushes(60, **large)) + walk(far, pushes(60, 1, **large), None)
    env = predicted(far, verify=verify, window=3)
    seen = walk(env, pushes(60, **large)) + walk(env, pushes(60, 1, **large), None)
    assert expected[-1][2]  # it ended
    assert_same(seen, expected)
    assert env.ahead == 0
    assert env.statistics.verified == env.statistics.steps == len(expected) - 2
    assert 1 <= env.statistics.most_ahead <= 3
    assert (env.statistics.mismatches, env.statistics.largest_difference) == (0, 0.0)


def test_an_aloha_trajectory_is_the_remotes_to_the_bit_and_has_the_twins_images() -> None:
    register_tasks()
    task = {"obs_type": "pixels_agent_pos", "width": 64, "height": 48, "quality": "fast"}
    actions = np.random.default_rng(2).uniform(-0.5, 0.5, (12, 14)).astype(np.float32)
    with RemoteEnv(env=ALOHA, env_kwargs=task, observation_keys=["agent_pos"]) as far:
        expected = walk(far, actions)
        for verify in MODES:
            env = PredictiveEnv(far, gymnasium.make(ALOHA, **task), verify=verify)
            seen = walk(env, actions)
            assert all(each[0].pop("pixels")["top"].any() for each in seen)
            assert_same(seen, expected)
            env.verify()
            assert env.get_state(native=True) == far.get_state(native=True)
        env.twin = Pretending(env.twin)
        with pytest.raises(PredictionMismatch, match=r"step 0 .*does not bring all that the twin shows: call reset"):
            env.reset(seed=0)
        env.twin.close()


@pytest.mark.parametrize("verify", MODES)
def test_a_mismatch_names_its_step_and_the_episode_goes_on_as_the_remotes(far: RemoteEnv, verify: str) -> None:
    actions = pushes(10)
    expected = walk(far, actions)
    env = predicted(far, verify=verify, window=4)
    env.reset(seed=0)
    for action in actions[:3]:
        env.step(action)
    env.verify()
    env.twin.unwrapped.data.qvel[0] += 0.01
    with pytest.raises(PredictionMismatch, match=r"step 4 .*observation differs by up to 0\.0") as told:
        step_all(env, actions[3:])
    error = told.value
    assert (error.step, error.must_reset) == (4, False)
    assert 4 <= error.steps <= 7  # the window is 4
    assert {difference.where for difference in error.differences} == {"observation"}
    for came, due in zip(error.transitions, expected[4 : error.steps + 1], strict=True):
        assert compare(came, due) == []  # of a chunk rewards are floats
    assert_same(step_all(env, actions[error.steps :]), expected[error.steps + 1 :])
    assert env.statistics.mismatches == 1


def test_what_is_within_the_tolerance_is_noted_not_told(far: RemoteEnv) -> None:
    env = predicted(far, tolerance=0.01)
    env.reset(seed=0)
    env.twin.unwrapped.data.qpos[0] += 1e-6
    for action in pushes(3):
        env.step(action)
    env.verify()
    assert 1e-8 < env.statistics.largest_difference < 0.01


def test_a_twin_that_starts_elsewhere_is_put_into_the_remotes_start(far: RemoteEnv) -> None:
    expected = walk(far, pushes(8))
    env = PredictiveEnv(far, Elsewhere(gymnasium.make(PENDULUM)))
    assert_same(walk(env, pushes(8)), expected)
    env.verify()
    assert env.statistics.resets_adopted == 1


@pytest.mark.parametrize("verify", MODES)
def test_scenes_that_the_remote_captures_are_compared_too(counting: RemoteEnv, verify: str) -> None:
    env = counting_twin(counting, verify=verify)
    step_all(env, np.zeros((1, 2)))
    read = env.twin.get_scene_state
    env.twin.get_scene_state = lambda **kwargs: SceneState(read().layout, read().values + 1, read(**kwargs).native)
    with pytest.raises(PredictionMismatch, match=r"step 2 .*: state differs by up to 1 \(allowed: 0\)"):
        step_all(env, np.zeros((1, 2)))


def test_steps_do_not_wait_for_the_remote(on_demand: RemoteEnv, tmp_path: Path) -> None:
    env = on_demand_twin(on_demand)
    on_demand.call("plan", f"until:{tmp_path / 'go'}")
    for _ in range(5):
        env.step(np.zeros(2, np.float32))
    assert env.ahead == 5
    (tmp_path / "go").touch()
    env.verify()
    assert env.ahead == 0


@pytest.mark.parametrize("verify", MODES)
def test_an_end_that_was_not_predicted_is_told_with_all_that_ran(counting: RemoteEnv, verify: str) -> None:
    env = counting_twin(counting, verify=verify, window=5)
    text = r"step 3 .*truncated is True.*run 3 steps.*ended there.*reset\(\)"
    with pytest.raises(PredictionMismatch, match=text) as told:
        step_all(env, np.zeros((10, 2)))
    assert told.value.must_reset
    assert len(told.value.transitions) == 1
    with pytest.raises(InputError, match=r"the episode has ended there; call reset\(\)"):
        env.step(np.zeros(2))


def test_an_end_that_the_remote_does_not_know_is_told_in_the_same_call(counting: RemoteEnv) -> None:
    env = counting_twin(counting, 2)
    env.step(np.zeros(2))
    with pytest.raises(PredictionMismatch, match=r"step 2 .*truncated is False"):
        env.step(np.zeros(2))


@pytest.mark.parametrize("verify", MODES)
def test_a_task_that_raises_is_told_at_its_step_and_reset_goes_on(on_demand: RemoteEnv, verify: str) -> None:
    env = on_demand_twin(on_demand, verify=verify)
    step_all(env, np.zeros((1, 2), np.float32))
    on_demand.call("plan", "raise")
    with pytest.raises(TaskError, match="fell through the table") as told:
        step_all(env, np.zeros((3, 2), np.float32))
    assert told.value.step == 2
    with pytest.raises(InputError, match=r"cannot be put into the remote's state .*has no scene state.*reset\(\)"):
        env.step(np.zeros(2, np.float32))
    env.twin.total_steps = on_demand.call("total_steps")
    env.reset(seed=0)
    step_all(env, np.zeros((3, 2), np.float32))


def test_a_twin_that_raises_alone_is_a_mismatch(on_demand: RemoteEnv) -> None:
    env = on_demand_twin(on_demand)
    env.twin.plan("raise")
    with pytest.raises(PredictionMismatch, match="the step is 'no error' where ValueError"):
        env.step(np.zeros(2, np.float32))


def test_a_bad_action_costs_nothing(far: RemoteEnv) -> None:
    for verify in MODES:
        env = predicted(far, verify=verify)
        expected = walk(far, pushes(3))
        env.reset(seed=0)
        with pytest.raises(InputError, match="the task takes"):
            env.step(np.zeros(7))
        assert_same([env.step(action) for action in pushes(3)], expected[1:])
        env.verify()


@pytest.mark.fault
def test_a_lost_simulator_is_told_and_reset_starts_anew() -> None:
    with PredictiveEnv(RemoteEnv(env=ON_DEMAND), OnDemand()) as env:
        env.reset(seed=0)
        env.remote.call("plan", "kill")
        with pytest.raises(SessionLost) as told:
            step_all(env, np.zeros((2, 2), np.float32))
        assert told.value.step == 1
        with pytest.raises(InputError, match=r"gone; call reset\(\)"):
            env.step(np.zeros(2, np.float32))
        env.twin.total_steps = 0
        env.reset(seed=0)
        step_all(env, np.zeros((2, 2), np.float32))


def test_an_interrupted_step_asks_for_a_reset(far: RemoteEnv) -> None:
    class Interrupted(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            raise KeyboardInterrupt

    twin = gymnasium.make(PENDULUM)
    env = PredictiveEnv(far, Interrupted(twin))
    env.reset(seed=0)
    with pytest.raises(KeyboardInterrupt):
        env.step(pushes(1)[0])
    with pytest.raises(InputError, match=r"cut short.*call reset\(\)"):
        env.step(pushes(1)[0])
    env.twin = twin
    assert_same(walk(env, pushes(4)), walk(far, pushes(4)))


def test_leaving_verifies_and_closing_says_what_is_unverified(
    on_demand: RemoteEnv, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(on_demand, "close", lambda: closed.append(True))  # the next tests' still

    def broken() -> PredictiveEnv:
        env = on_demand_twin(on_demand)
        env.twin.total_steps += 1
        env.step(np.zeros(2, np.float32))
        return env

    with pytest.raises(PredictionMismatch), broken():
        pass
    env = broken()
    with caplog.at_level(logging.WARNING, "remote_env"):
        env.close()
    assert "closed with 1 predicted steps that the remote has not confirmed" in caplog.text
    assert closed == [True, True]
    with pytest.raises(ConfigError, match="this environment is closed; make a new one"):
        env.step(np.zeros(2, np.float32))
    on_demand.step_wait()


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"verify": "never"}, "allowed are 'every', 'chunk'"),
        ({"window": 0}, "1 to 4096, or None"),
        ({"tolerance": -1.0}, "a number from 0 on"),
        ({"tolerance": np.nan}, "a number from 0 on"),
    ],
)
def test_arguments_that_are_none_are_refused(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PredictiveEnv(RemoteEnv(env=PENDULUM), CountingEnv(), **kwargs)


def test_a_remote_that_is_wrapped_is_refused() -> None:
    with pytest.raises(ConfigError, match="give the RemoteEnv itself"):
        PredictiveEnv(gymnasium.Wrapper(RemoteEnv(env=PENDULUM)), CountingEnv())


def test_a_twin_that_is_only_named_is_refused() -> None:
    with pytest.raises(ConfigError, match="twin is a str; give the environment itself"):
        PredictiveEnv(RemoteEnv(env=PENDULUM), PENDULUM)  # type: ignore[arg-type]


def test_a_twin_of_another_task_is_refused(far: RemoteEnv) -> None:
    with pytest.raises(ConfigError, match="the twin has to be the same task"):
        PredictiveEnv(far, CountingEnv()).reset(seed=0)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # what Gymnasium says of this task's own spaces
def test_gymnasiums_checker_is_content(far: RemoteEnv) -> None:
    check_env(predicted(far), skip_render_check=True)
