"""What a RemoteEnv says it is: spec, metadata, generator, pickles, and no secrets."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import gymnasium
import pytest

from remote_env import RemoteEnv
from remote_env.errors import ConfigError


def test_spec_recreates_the_remote_environment() -> None:
    env = gymnasium.make("Remote-v0", env="CartPole-v1", env_kwargs={"sutton_barto_reward": True})
    assert env.spec is not None
    assert env.spec.id == "Remote-v0"
    again = gymnasium.make(env.spec)
    assert isinstance(again.unwrapped, RemoteEnv)
    with again:
        again.reset(seed=0)
        assert again.step(0)[1] == 0.0  # the keyword argument made it
        assert again.unwrapped.remote_spec["id"] == "CartPole-v1"
        assert again.unwrapped.remote_spec["max_episode_steps"] == 500
    env.close()


def test_an_environment_made_directly_has_a_spec_that_recreates_it() -> None:
    env = RemoteEnv(env="CartPole-v1", step_timeout_s=33.0)
    assert env.spec.kwargs == {"env": "CartPole-v1", "step_timeout_s": 33.0}
    again = gymnasium.make(env.spec)
    assert again.unwrapped._step_timeout_s == 33.0
    assert again.unwrapped._life.session is None  # nothing was started by asking
    env.close()


def test_metadata_of_class_and_instance(cartpole: RemoteEnv) -> None:
    assert "rgb_array" in RemoteEnv.metadata["render_modes"]
    assert cartpole.metadata["render_fps"] == 50


def test_generator_is_seeded_by_reset(cartpole: RemoteEnv) -> None:
    cartpole.reset(seed=42)
    first = cartpole.np_random.random()
    assert cartpole.np_random_seed == 42
    cartpole.reset(seed=42)
    assert cartpole.np_random.random() == first


def test_pickles_before_the_start_and_refuses_after() -> None:
    env = RemoteEnv(env="CartPole-v1", env_kwargs={"sutton_barto_reward": True}, step_timeout_s=9.0)
    for again in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert again.spec.kwargs == env.spec.kwargs
    env.start_remote_server()
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(env)
    env.connect()
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(env)
    env.close()


class Window:
    """Has what cannot be copied, as a user's own front end does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def ask(self, prompt: Any) -> None:
        pass


def test_a_spec_with_methods_of_what_cannot_be_copied() -> None:
    window = Window()
    made = gymnasium.make("Remote-v0", env="CartPole-v1", on_progress=window.ask, ask_secret=window.ask, token="t" * 64)
    wrapped = gymnasium.wrappers.TimeLimit(made, 5)
    assert wrapped.spec is not None  # which is a deep copy
    assert wrapped.spec.kwargs["on_progress"] == window.ask
    assert "t" * 64 not in repr(wrapped.spec)
    assert RemoteEnv(**made.unwrapped.spec.kwargs)._arguments.ask_secret == window.ask
    again = copy.deepcopy(RemoteEnv("box", ask_secret=window.ask))
    assert again._arguments.ask_secret == window.ask
    made.close()


def test_the_token_is_in_no_text(cartpole: RemoteEnv) -> None:
    token = cartpole._life.server.token
    for text in (
        repr(cartpole),
        str(cartpole),
        repr(cartpole._life.server),
        cartpole.logs(1000),
        str(cartpole.status()),
    ):
        assert token not in text
    env = RemoteEnv("tcp://127.0.0.1:1", token="s" * 64)
    assert "s" * 64 not in f"{env!r} {env} {env.spec!r} {env.spec}"
    assert pickle.loads(pickle.dumps(env))._arguments.token == "s" * 64
