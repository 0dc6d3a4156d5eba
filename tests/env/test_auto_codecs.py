"""codecs="auto": images stay what they are whatever is chosen, and the choice is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.protocol.image_stream import CODECS
from remote_env.session import coder_choice
from remote_env.session.coder_choice import Cost

COUNTING = "remote_env.testing.counting:make"
ACTIONS = [np.full(2, number / 8) for number in range(8)]


@pytest.fixture
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with serving(COUNTING, {"image": True}, max_sessions=2) as process:
        yield process


def attach(server: ServerProcess, **arguments: Any) -> RemoteEnv:
    return RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token, **arguments)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The codec that is said to cost nothing: its last entry."""
    chosen = ["zstd"]

    def measure(_box: Any, codec: str, _before: Any, _image: Any) -> Cost:
        return Cost(0.0, 10_000, 0.0) if codec == chosen[-1] else Cost(1.0, 10_000_000, 1.0)

    monkeypatch.setattr(coder_choice, "measure", measure)
    monkeypatch.setattr(coder_choice, "LEAST_SAMPLE_BYTES", 0)
    monkeypatch.setattr(coder_choice, "LEAST_PAUSE_S", 0.0)
    monkeypatch.setattr(coder_choice, "PAUSE_PER_COST", 0.0)
    return chosen


def test_what_is_chosen_changes_nothing_but_the_bytes(server: ServerProcess, cheap: list[str]) -> None:
    with attach(server) as plain, attach(server, codecs="auto") as env:
        expected, got = plain.reset(seed=3), env.reset(seed=3)
        for number, action in enumerate(ACTIONS * 2):
            assert np.array_equal(got[0]["image"], expected[0]["image"])
            assert got[-1] == expected[-1]  # no times in it: nobody has asked for them
            assert env.transport_info()["codecs"]["codecs"] == {"image": cheap[-1]}
            cheap.append(["delta", "bitlz4", "raw", "bitzstd", "zstd"][number % 5] if number % 2 else cheap[-1])
            expected, got = plain.step(action), env.step(action)
            for _ in range(2):  # images are kept of one reply, and measured with the next one's
                expected, got = plain.step(action), env.step(action)
        assert env.transport_info()["codecs"]["why"]["image"].startswith(cheap[-1])


def test_chunks_and_steps_ahead_go_along(server: ServerProcess, cheap: list[str]) -> None:
    with attach(server) as plain, attach(server, codecs="auto", timing=True) as env:
        for each in (plain, env):
            each.reset(seed=3)
        for codec in ("delta", "raw", "bitzstd"):
            cheap.append(codec)
            chunk, expected = env.step_many(np.stack(ACTIONS)), plain.step_many(np.stack(ACTIONS))
            assert np.array_equal(chunk.observations["image"], expected.observations["image"])
            for action in ACTIONS[:3]:
                env.step_async(action)
            for action in ACTIONS[:3]:
                got = env.step_wait()
                assert np.array_equal(got[0]["image"], plain.step(action)[0]["image"])
                assert "simulate_s" in got[4]["timing"]


def test_on_this_machine_images_go_as_they_are() -> None:
    with RemoteEnv(env=COUNTING, env_kwargs={"image": True}, codecs="auto") as env:
        env.reset(seed=0)
        env.step(ACTIONS[0])
        told = env.transport_info()["codecs"]
    assert told["codecs"] == {"image": "raw"}
    assert "on this machine" in told["why"]["image"]


def test_what_was_asked_for_is_told_too(server: ServerProcess) -> None:
    with attach(server, codecs={"image": "delta"}) as env:
        assert env.transport_info()["codecs"] == {
            "codecs": {"image": "delta"},
            "why": {"image": "delta: as it was asked for"},
        }
    assert "auto" not in CODECS
