"""Requests for chunks, deliveries, snapshots and branches that no client of ours sends: errors, and on it goes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from server_process import serving

from remote_env import RemoteEnv
from remote_env.errors import ConfigError, InputError, TaskError
from remote_env.protocol import frames
from remote_env.protocol.chunks import ChunkOptions
from remote_env.protocol.delivery import DeliveryPlan

OPTIONS = ChunkOptions().to_plain()
PLAN = DeliveryPlan().to_plain()
ENDLESS = np.zeros(((1 << 32) - 1, 0))  # takes no memory
MANY_CHUNKS = np.zeros((4096, (1 << 32) - 1, 0))
ACTION = np.zeros(2)
GROWTH_MB = 200

REQUESTS: dict[str, tuple[int, Any, type[Exception]]] = {
    "rows without end": (frames.STEP_MANY, (ENDLESS, OPTIONS), InputError),
    "rows without end in a dict": (frames.STEP_MANY, ({"a": (ENDLESS,)}, OPTIONS), InputError),
    "no rows": (frames.STEP_MANY, ([], OPTIONS), InputError),
    "a text for actions": (frames.STEP_MANY, ("abc", OPTIONS), InputError),
    "nothing for actions": (frames.STEP_MANY, (None, OPTIONS), InputError),
    "uneven columns": (frames.STEP_MANY, ({"a": np.zeros(2), "b": np.zeros(3)}, OPTIONS), InputError),
    "options that are none": (frames.STEP_MANY, ([ACTION], 5), InputError),
    "options of other kinds": (frames.STEP_MANY, ([ACTION], {**OPTIONS, "keys": "abc"}), InputError),
    "wanting something else": (frames.STEP_MANY, ([ACTION], {**OPTIONS, "want": ["all"]}), InputError),
    "keys that there are not": (frames.STEP_MANY, ([ACTION], {**OPTIONS, "keys": ["x"]}), ConfigError),
    "no plan": (frames.DELIVER, None, ConfigError),
    "a plan of something else": (frames.DELIVER, [1, 2], ConfigError),
    "keys without end": (frames.DELIVER, {**PLAN, "keys": ENDLESS}, ConfigError),
    "keys of other kinds": (frames.DELIVER, {**PLAN, "keys": [1]}, ConfigError),
    "many keys": (frames.DELIVER, {**PLAN, "keys": ["a"] * 5000}, ConfigError),
    "codecs without end": (frames.DELIVER, {**PLAN, "codecs": ENDLESS}, ConfigError),
    "a codec that there is not": (frames.DELIVER, {**PLAN, "codecs": {"image": "brotli"}}, ConfigError),
    "a codec for nothing": (frames.DELIVER, {**PLAN, "codecs": {"x": "zstd"}}, ConfigError),
    "images never": (frames.DELIVER, {**PLAN, "image_every": 0}, ConfigError),
    "images at times": (frames.DELIVER, {**PLAN, "image_every": 1.5}, ConfigError),
    "flags that are none": (frames.DELIVER, {**PLAN, "timing": 1}, ConfigError),
    "no snapshot": (frames.SNAPSHOT, None, InputError),
    "a snapshot and none": (frames.SNAPSHOT, {"take": None, "forget": "x"}, InputError),
    "a snapshot by an array": (frames.SNAPSHOT, {"forget": ENDLESS}, InputError),
    "going nowhere": (frames.RESTORE, {}, InputError),
    "going back by a list": (frames.RESTORE, {"id": ["x"]}, InputError),
    "no branch": (frames.BRANCH, {"x": 1}, InputError),
    "too many branches": (frames.BRANCH, {"fork": 1 << 62}, InputError),
    "less than no branches": (frames.BRANCH, {"fork": -1}, InputError),
    "branches by halves": (frames.BRANCH, {"fork": 0.5}, InputError),
    "branches of a snapshot that is none": (frames.BRANCH, {"fork": 1, "snapshot": 5}, InputError),
    "chunks without end": (frames.BRANCH, {"try": ENDLESS}, InputError),
    "long chunks without end": (frames.BRANCH, {"try": MANY_CHUNKS}, InputError),
    "many long chunks": (frames.BRANCH, {"try": np.zeros((4096, 4096, 0))}, InputError),
    "wanting nothing": (frames.BRANCH, {"try": [[ACTION]], "want": None}, InputError),
    "stopping at times": (frames.BRANCH, {"try": [[ACTION]], "stop": 1}, InputError),
    "stepping no branches": (frames.BRANCH, {"step": ["x"], "actions": [[ACTION]]}, InputError),
    "stepping branches by numbers": (frames.BRANCH, {"step": [1], "actions": [[ACTION]]}, InputError),
    "ending branches by numbers": (frames.BRANCH, {"end": 5}, InputError),
}


@pytest.fixture(scope="module")
def env(isolated_home: Path) -> Iterator[RemoteEnv]:
    with (
        serving("remote_env.testing.counting:make", {"image": True}) as server,
        RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token) as env,
    ):
        yield env


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.fault
@pytest.mark.parametrize("name", REQUESTS)
def test_it_is_refused_and_the_episode_goes_on(env: RemoteEnv, name: str) -> None:
    kind, request, expected = REQUESTS[name]
    calls = env.reset(seed=1)[1]["calls"]
    session = env._life.session
    assert session is not None
    pid = int(session.control.status()["pid"])
    before = resident_mb(pid)
    with pytest.raises(expected) as caught:
        session._value(kind, request, 20.0)
    assert type(caught.value) is expected
    assert resident_mb(pid) < before + GROWTH_MB
    assert env.step(ACTION)[4]["calls"] == calls + 1
    assert int(session.control.status()["pid"]) == pid


class Wide(gymnasium.Env[Any, Any]):
    """Says that its observations are small, and sends large ones."""

    observation_space = spaces.Box(0, 255, (1,), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.uint8), {}

    def step(self, _action: Any) -> Any:
        return np.zeros(4 << 20, np.uint8), 0.0, False, False, {}


def test_more_than_a_chunk_may_bring_is_not_collected() -> None:
    with RemoteEnv(env=Wide) as env:
        env.reset(seed=1)
        with pytest.raises(TaskError, match=r"72 steps ran, but what they bring is more than 268435456 bytes"):
            env.step_many([0] * 4096)
        assert env.step_many([0] * 100, want="last").ran == 100
