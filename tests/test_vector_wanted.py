"""Batches of tasks that leave out of observations what nobody wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from leak_check import isolated_home, no_leaks

from remote_env import RemoteVectorEnv
from remote_env.errors import TaskError

__all__ = ["isolated_home", "no_leaks"]

CHOOSY = "tasks_for_tests.batches:Choosy"
IDLE = np.zeros(2, np.int64)


def made(infos: dict[str, Any]) -> list[str]:
    return list(infos["made"])


@pytest.mark.parametrize("autoreset_mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_environments_make_and_bring_only_what_is_wanted(
    isolated_home: Any, mode: str, autoreset_mode: str
) -> None:
    keys = ["views/left", "count"]
    arguments: dict[str, Any] = {"vectorization_mode": mode, "autoreset_mode": autoreset_mode, "observation_keys": keys}
    with RemoteVectorEnv(env=CHOOSY, num_envs=2, **arguments) as envs:
        observation, infos = envs.reset(seed=0)
        assert made(infos) == ["views/left,count"] * 2
        for _ in range(5):  # over the end of an episode
            assert envs.observation_space.contains(observation)
            assert (observation["views"]["left"] == observation["count"][:, None, None, None]).all()
            observation, _, _, _, infos = envs.step(IDLE)
        chunk = envs.step_many(np.zeros((2, 2), np.int64))
        assert (sorted(chunk.observations), list(chunk.observations["views"])) == (["count", "views"], ["left"])


@pytest.mark.fault
def test_a_batch_that_is_made_anew_is_told_again(isolated_home: Any) -> None:
    arguments: dict[str, Any] = {"vectorization_mode": "async", "observation_keys": ()}
    with RemoteVectorEnv(env=CHOOSY, num_envs=2, **arguments) as envs:
        envs.reset(seed=0)
        envs.step(IDLE)
        with pytest.raises(TaskError, match="as told"):
            envs.step(IDLE + 1)
        observation, infos = envs.reset(seed=0)
        assert (observation, made(infos)) == ({}, ["", ""])
