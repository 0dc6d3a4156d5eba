"""Arguments that there are not, and ones that cannot be meant so, are told with what is right."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import pytest

from remote_env import RemoteEnv
from remote_env.env.arguments import Arguments
from remote_env.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("remote_host", "host="),
        ("ssh_host", "host="),
        ("use_tunnel", "tunnel="),
        ("python_path", "python="),
        ("remote_script_path", "server_script="),
        ("task_name", "env="),
        ("jump_host", "via="),
        ("password", "ask_secret="),
        ("username", 'host="user@box"'),
        ("steptimeout_s", "step_timeout_s="),
        ("sutton_barto_reward", "env_kwargs="),
    ],
)
def test_a_wrong_name_is_told_the_right_one(wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=f"no argument {wrong}= .did you mean {right}"):
        RemoteEnv(env="CartPole-v1", **{wrong: "x"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"no argument {wrong}= .did you mean {right}"):
        gymnasium.make("Remote-v0", env="CartPole-v1", **{wrong: "x"})


def test_every_argument_is_documented_and_kept() -> None:
    signature = inspect.signature(RemoteEnv.__init__).parameters
    names = {name for name in signature if name not in ("self", "unknown")}
    assert names == Arguments.names()
    for name in names:
        assert f"        {name}: " in (RemoteEnv.__doc__ or ""), name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"upload": "folder"}, r"upload='folder' is one string; write a list: \['folder'\]"),
        ({"requirements": "mujoco"}, r"write a list: \['mujoco'\]"),
        ({"session": "ab12", "port": 8888}, "give one of them"),
        ({"lease_timeout_s": 0}, "seconds above 0, or None"),
        ({"server_script": "serve.py", "env": "CartPole-v1"}, "leave env= out"),
    ],
)
def test_arguments_that_contradict(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RemoteEnv(**arguments)


def test_codecs_that_there_are_not_are_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"unknown codec 'png' for 'all images'; there are raw, .*, auto"):
        RemoteEnv(env="CartPole-v1", codecs="png")
    with pytest.raises(ConfigError, match="unknown codec 'auto' for 'pixels/top'; there are raw, "):
        RemoteEnv(env="CartPole-v1", codecs={"pixels/top": "auto"})


@pytest.mark.parametrize("argument", ["via", "launch", "launch_host"])
def test_ways_that_lead_nowhere_from_here(argument: str) -> None:
    for host in (None, "tcp://127.0.0.1:8888"):
        with pytest.raises(ConfigError, match=rf"{argument}= means a machine reached over SSH"):
            RemoteEnv(host, env="CartPole-v1", **{argument: "login"}).start()  # type: ignore[arg-type]
