"""Predicted steps over a link that is cut: each runs once on the remote, and each is confirmed."""

from __future__ import annotations

import pytest
from server_process import serving
from trajectories import TASK, Events, here, random_cuts, walk

from remote_env import PredictiveEnv, RemoteEnv
from remote_env.protocol.task import TaskSpec
from remote_env.testing import CountingEnv, FaultProxy

STEPS, AHEAD = 100, 10  # few enough for some chunks among the first steps, by which cuts are measured


@pytest.mark.fault
@pytest.mark.parametrize("verify", ["every", "chunk"])
def test_a_link_that_is_cut_again_and_again(verify: str) -> None:
    task, events = TaskSpec(TASK, {"episode_length": 41}), Events()
    with (
        serving(task=task.to_plain(), digest=task.digest) as server,
        FaultProxy(("127.0.0.1", server.port), seed=1) as proxy,
        RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, on_link=events) as far,
    ):
        env = PredictiveEnv(far, CountingEnv(episode_length=41), verify=verify, window=AHEAD)
        seen = walk(env, STEPS, random_cuts(proxy, 45, AHEAD))
        env.verify()
        proxy.cut_every(None)
        digest = far.call("digest")
    assert events.resumed_s
    assert env.statistics.verified == env.statistics.steps == STEPS
    assert env.statistics.mismatches == 0
    assert (seen.doubled, seen.lost) == (0, 0)
    assert seen.is_like(here(walk, STEPS, episode_length=41))
    assert digest == seen.digest  # of all calls that the remote has had
