"""RemoteEnv as a Gymnasium environment: the same numbers, the same manners."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

from remote_env import RemoteEnv
from remote_env.errors import InputError, TaskError, Unsupported

TASKS = "tasks_for_tests.misbehaving"


@pytest.fixture(scope="module")
def nested() -> Iterator[RemoteEnv]:
    with RemoteEnv(env=f"{TASKS}:Nested", render_mode="rgb_array") as env:
        yield env


def make_local(name: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    from remote_env.server.gymnasium_backend import make_env

    return make_env(name, kwargs)


def assert_same(here: Any, there: Any, path: str = "value") -> None:
    """Equal to the last bit and of the very same types."""
    assert type(here) is type(there), f"{path}: {type(here)} here, {type(there)} there"
    if isinstance(here, np.ndarray):
        assert (here.dtype, here.shape) == (there.dtype, there.shape), path
        assert here.tobytes() == there.tobytes(), path
    elif isinstance(here, dict):
        assert list(here) == list(there), path
        for key in here:
            assert_same(here[key], there[key], f"{path}[{key!r}]")
    elif isinstance(here, (list, tuple)):
        assert len(here) == len(there), path
        for index, (one, other) in enumerate(zip(here, there, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(here, (float, np.floating)) and math.isnan(here):
        assert math.isnan(there), path
    else:
        assert here == there, path
        assert str(here) == str(there), path  # tells -0.0 from 0.0


def assert_same_rollout(local: gymnasium.Env[Any, Any], remote: gymnasium.Env[Any, Any], steps: int) -> None:
    assert local.observation_space == remote.observation_space
    assert local.action_space == remote.action_space
    local.action_space.seed(3)
    options = None if "Aloha" in str(local) else {"a": (1, 2)}
    assert_same(local.reset(seed=11, options=options), remote.reset(seed=11, options=options))
    for number in range(steps):
        action = local.action_space.sample()
        mine, theirs = local.step(action), remote.step(action)
        assert_same(mine, theirs, f"step {number}")
        if mine[2] or mine[3]:
            assert_same(local.reset(), remote.reset(), f"reset after {number}")
    local.close()


@pytest.mark.parametrize(
    ("name", "kwargs", "steps"),
    [
        ("CartPole-v1", {}, 120),
        (f"{TASKS}:Nested", {}, 20),
        (f"{TASKS}:Nested", {"with_text": False}, 20),
        (f"{TASKS}:OddTypes", {}, 25),
        ("InvertedPendulum-v5", {}, 60),
        ("Taxi-v4", {}, 40),
        ("Blackjack-v1", {}, 10),
        ("Pendulum-v1", {}, 30),
        ("remote_env/AlohaTransferCube-v0", {"obs_type": "agent_pos"}, 40),
    ],
)
def test_local_and_remote_are_bit_equal(name: str, kwargs: dict[str, Any], steps: int) -> None:
    with RemoteEnv(env=name, env_kwargs=kwargs) as remote:
        local = make_local(name, **kwargs)
        if name.endswith("OddTypes"):
            local = Unshared(local)
        assert_same_rollout(local, remote, steps)


class Unshared(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Copies a reused observation buffer, since the comparison keeps what it gets."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation.copy(), info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return observation.copy(), *rest


def test_kept_observations_stay_as_they_were() -> None:
    with RemoteEnv(env=f"{TASKS}:OddTypes") as env:
        kept = [env.reset(seed=1)[0], *(env.step(0)[0] for _ in range(5))]
        copies = [observation.copy() for observation in kept]
        for _ in range(5):
            env.step(1)
        for one, other in zip(kept, copies, strict=True):
            assert_same(one, other)
            one += 1  # they are ours to write


def test_a_second_rollout_with_the_same_seed_is_the_same(cartpole: RemoteEnv) -> None:
    rollouts = []
    for _ in range(2):
        rollouts.append([cartpole.reset(seed=5), *(cartpole.step(i % 2) for i in range(8))])
    assert_same(*rollouts)


# The checkers and wrappers of Gymnasium


@pytest.mark.parametrize("name", ["CartPole-v1", f"{TASKS}:Nested"])
def test_gymnasium_checker_is_satisfied(name: str) -> None:
    with RemoteEnv(env=name) as env, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(human|pygame|infinity|not within|spec is None|render).*")
        check_env(env, skip_render_check=name == "CartPole-v1")


def test_wrappers(cartpole: RemoteEnv) -> None:
    env = RecordEpisodeStatistics(TimeLimit(cartpole, 4))
    env.reset(seed=1)
    *_, truncated, info = [env.step(i % 2) for i in range(4)][-1]
    assert truncated
    assert info["episode"]["l"] == 4
    assert env.unwrapped is cartpole


def test_record_video(nested: RemoteEnv, tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.wrappers.RecordVideo(nested, str(tmp_path), episode_trigger=lambda _: True)
        assert env.frames_per_sec == 7
        env.reset(seed=1)
        for _ in range(6):
            env.step(env.action_space.sample())
        env.stop_recording() if env.recording else None
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_render(nested: RemoteEnv) -> None:
    nested.reset(seed=1)
    nested.step({"kind": 1, "aim": np.zeros(2, np.float32)})
    frame = nested.render()
    assert (frame.shape, frame.dtype, frame[0, 0, 0]) == ((16, 24, 3), np.uint8, 10)
    assert nested.render_mode == "rgb_array"
    assert nested.metadata["render_fps"] == 7


def test_sync_vector_env() -> None:
    envs = gymnasium.vector.SyncVectorEnv([lambda: RemoteEnv(env="CartPole-v1")] * 2)
    try:
        observations, _ = envs.reset(seed=3)
        local = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
        assert_same(observations, local.reset(seed=3)[0])
        assert_same(envs.step([0, 1])[:4], local.step([0, 1])[:4])
        local.close()
    finally:
        envs.close()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_async_vector_env(context: str) -> None:
    envs = gymnasium.vector.AsyncVectorEnv([make_remote_cartpole] * 2, context=context)
    try:
        local = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
        assert_same(envs.reset(seed=3)[0], local.reset(seed=3)[0])
        for _ in range(3):
            assert_same(envs.step([0, 1])[:4], local.step([0, 1])[:4])
        local.close()
    finally:
        envs.close()


def make_remote_cartpole() -> RemoteEnv:
    return RemoteEnv(env="CartPole-v1")


def test_an_error_of_the_task_crosses_async_vector_env() -> None:
    envs = gymnasium.vector.AsyncVectorEnv([lambda: RemoteEnv(env=f"{TASKS}:OnDemand")])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium tells the worker's traceback as a warning
            with pytest.raises(TaskError, match="the cube fell"):
                envs.reset(options={"how": "raise"})
    finally:
        envs.close(terminate=True)


# Attributes of the task


def test_calls_that_are_open_and_closed() -> None:
    with RemoteEnv(env=f"{TASKS}:OnDemand", allow_calls=["observation_space"]) as env:
        env.reset()
        assert env.call("total_steps") == 0
        assert env.get_wrapper_attr("total_steps") == 0
        assert env.has_wrapper_attr("plan")
        assert not env.has_wrapper_attr("odd")
        assert env.call("plan", how="print") == "print"
        env.step(np.zeros(2, np.float32))
        assert "line 19999" in env.logs(5)
        with pytest.raises(InputError, match=r"not open to clients.*total_steps"):
            env.call("__class__")
        with pytest.raises(AttributeError, match="not open"):
            env.get_wrapper_attr("how")
        with pytest.raises(TaskError, match="the call went wrong"):
            env.call("fail_call")
        with pytest.raises(TaskError, match=r"observation_space.*cannot cross"):
            env.call("observation_space")
        with pytest.raises(InputError, match=r"arguments of plan.*object"):
            env.call("plan", object())
        assert env.call("total_steps") == 1


def test_a_task_without_a_scene_says_so(cartpole: RemoteEnv) -> None:
    cartpole.reset()
    with pytest.raises(Unsupported, match="CartPole-v1 has no scene state"):
        cartpole.get_state()
