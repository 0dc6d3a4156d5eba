"""Snapshots, restores and tried chunks over links that break: each runs once, and the episode goes on where it was."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from server_process import serving

from remote_env import RemoteEnv
from remote_env.errors import InputError
from remote_env.testing import FaultProxy

pytestmark = pytest.mark.fault
PLACES = [("up", 1), ("up", 41), ("down", 0), ("down", 39), ("down", 40)]
CHUNKS = np.random.default_rng(1).uniform(-1, 1, (3, 4, 2))


def count_kept(env: RemoteEnv) -> int:
    """How many snapshots the server says it has."""
    with pytest.raises(InputError) as caught:
        env.restore("none of mine")
    return int(re.findall(r"it has (\d+) of them", str(caught.value))[0])


def test_each_runs_once_wherever_the_link_is_cut(isolated_home: Path) -> None:
    with (
        serving("remote_env.testing.counting:make", {}) as server,
        FaultProxy(("127.0.0.1", server.port), seed=3) as proxy,
        RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token) as env,
    ):
        env.reset(seed=2)
        start = env.snapshot()
        expected = env.try_chunks(CHUNKS, want="last")
        branches = env.fork(3)
        for number, (direction, count) in enumerate(PLACES):
            proxy.cut_after(count, direction)  # type: ignore[arg-type]
            env.snapshot()
            proxy.cut_after(count, direction)  # type: ignore[arg-type]
            tried = env.try_chunks(CHUNKS, want="last")
            assert np.array_equal(tried.observations, expected.observations)
            assert tried.infos == expected.infos
            proxy.cut_after(count, direction)  # type: ignore[arg-type]
            stepped = branches.step_many(CHUNKS, want="last")
            assert [info["calls"] for info in stepped.infos] == [1 + 4 * (number + 1)] * 3
            env.step(CHUNKS[0, 0])
            proxy.cut_after(count, direction)  # type: ignore[arg-type]
            env.restore(start)
            assert proxy.cuts == 4 * (number + 1)
        assert count_kept(env) == 1 + len(PLACES)
        assert env.step(CHUNKS[0, 0])[4]["calls"] == 2
