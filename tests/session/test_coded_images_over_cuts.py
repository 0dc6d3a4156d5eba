"""Coded images over a link that breaks: none is missed, and none builds on what did not come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.testing import CountingEnv, FaultProxy

COUNTING = "remote_env.testing.counting:make"
KWARGS: dict[str, Any] = {"image": True}
ACTIONS = [np.full(2, number / 16) for number in range(16)]
pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with serving(COUNTING, KWARGS, max_sessions=1) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", server.port), seed=11) as proxy:
        yield proxy


def attach(proxy: FaultProxy, server: ServerProcess, **arguments: Any) -> RemoteEnv:
    assert isinstance(proxy.address, tuple)
    return RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, **arguments)


def expected_images(seed: int) -> list[Any]:
    task = CountingEnv(image=True)
    images = [task.reset(seed=seed)[0]["image"].copy()]
    return images + [task.step(action)[0]["image"].copy() for action in ACTIONS]


@pytest.mark.parametrize("options", [{"codecs": "delta"}, {"codecs": "zstd", "image_every": 3}])
def test_steps_and_chunks_over_cuts(proxy: FaultProxy, server: ServerProcess, options: dict[str, Any]) -> None:
    every = options.get("image_every", 1)
    told: list[str] = []
    with attach(proxy, server, on_link=lambda event: told.append(event.kind), **options) as env:
        for episode in range(3):
            images = expected_images(episode)
            proxy.cut_every(8_000, direction="down")
            got = [env.reset(seed=episode)[0]["image"]]
            got += [env.step(action)[0]["image"] for action in ACTIONS[:6]]
            got += list(env.step_many(np.stack(ACTIONS[6:12])).observations["image"])
            for action in ACTIONS[12:]:
                env.step_async(action)
            proxy.cut()
            got += [env.step_wait()[0]["image"] for _ in ACTIONS[12:]]
            proxy.cut_every(None)
            for number, image in enumerate(got):
                assert np.array_equal(image, images[number // every * every])
    assert "cut" in told
    assert "lost" not in told


def test_images_that_were_abandoned_are_not_built_on(proxy: FaultProxy, server: ServerProcess) -> None:
    images = expected_images(5)
    with attach(proxy, server, codecs="delta") as env:
        env.reset(seed=1)
        for action in ACTIONS[:4]:
            env.step_async(action)
        proxy.cut()
        assert np.array_equal(env.reset(seed=5)[0]["image"], images[0])
        for action, image in zip(ACTIONS, images[1:], strict=True):
            assert np.array_equal(env.step(action)[0]["image"], image)
