"""What is told of all that saves round trips and bytes: chunks, observations that bring less, snapshots, twins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from quotes import produces
from server_process import ServerProcess, serving

from remote_env import ChunkedActions, PredictiveEnv, RemoteEnv
from remote_env.protocol.branching import MAX_KEPT
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.protocol.image_stream import ImageSender
from remote_env.server.snapshots import GraphSnapshot
from remote_env.testing import CountingEnv

TASK = "remote_env.testing.counting:make"
CUBE = '<mujoco><worldbody><geom size="0.1"/></worldbody></mujoco>'
ACTION = np.zeros(2)
ROOM = 1 << 20


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    """Of a task with an image and a state."""
    with serving(TASK, {"image": True}) as server:
        yield server


@pytest.fixture(scope="module")
def bare(isolated_home: Path) -> Iterator[RemoteEnv]:
    """A task whose observations are one array, in an episode."""
    with RemoteEnv(env="Pendulum-v1") as env:
        env.reset()
        yield env


def start(server: ServerProcess, **arguments: Any) -> None:
    """Begin a session with these arguments."""
    with RemoteEnv(port=server.port, **arguments) as env:
        env.reset()


# Several steps in one round trip


@produces("InputError: … actions in one call; there may be 1 to 4096")
def test_a_chunk_of_nothing(bare: RemoteEnv) -> None:
    bare.step_many([])


@produces("InputError: actions are a (K, …) array, or a list of K actions: …")
def test_a_chunk_that_is_one_number(bare: RemoteEnv) -> None:
    bare.step_many(3)


@produces("InputError: want='…': allowed are …")
def test_a_chunk_that_is_to_bring_what_there_is_not(bare: RemoteEnv) -> None:
    bare.step_many([ACTION[:1]], want="first")  # type: ignore[arg-type]


@produces("InputError: … observations of … bytes are …; one call brings at most …")
def test_a_chunk_that_brings_too_much(server: ServerProcess) -> None:
    with RemoteEnv(port=server.port) as env:
        env.reset()
        env.step_many(np.zeros((1000, 2)))


@produces("ConfigError: chunk_size=…: a whole number from 1 to 4096")
def test_actions_of_no_chunks(bare: RemoteEnv) -> None:
    ChunkedActions(bare, 0)


@produces("ConfigError: ChunkedActions wraps a RemoteEnv itself, whose steps it sends together; got …")
def test_chunks_of_an_environment_that_is_here() -> None:
    ChunkedActions(gymnasium.make("Pendulum-v1"), 4)  # type: ignore[arg-type]


# What observations bring


@produces("ConfigError: the observations have no key '…'; there are …")
def test_a_key_that_there_is_not(server: ServerProcess) -> None:
    start(server, observation_keys=["images"])


@produces("InputError: the observations have no key '…'; there are …")
def test_a_key_of_one_step_that_there_is_not(server: ServerProcess) -> None:
    with RemoteEnv(port=server.port, observation_keys=["state"]) as env:
        env.reset()
        env.step(ACTION, observation_keys=["image"])


@produces("ConfigError: observation_keys is a list of keys; … is for a Dict of observations, and this task's are …")
def test_keys_of_observations_that_have_none(bare: RemoteEnv) -> None:
    assert bare._life.session is not None
    bare._life.session.deliver(DeliveryPlan(("state",)), timeout_s=10.0)


@produces("ConfigError: image_every=…: a whole number from 1 on")
def test_images_of_no_step() -> None:
    RemoteEnv(env=TASK, image_every=0)


@produces("ConfigError: codecs= names '…', which no observation has; there are …")
def test_a_codec_for_nothing(server: ServerProcess) -> None:
    start(server, codecs={"pixels/top": "zstd"})


@produces("ConfigError: unknown codec '…' for '…'; there are …")
def test_a_codec_that_there_is_not(server: ServerProcess) -> None:
    start(server, codecs="png")


@produces("ConfigError: JPEG codes uint8 images (..., H, W, 3), and '…' is …; take a lossless codec for it")
def test_a_codec_for_what_is_no_image(server: ServerProcess) -> None:
    start(server, codecs={"state": "jpeg"})


@produces("ConfigError: this end cannot code '…' as '…': it lacks '…'; …")
def test_a_codec_whose_package_is_not_here(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_env.session.bringing.available_codecs", lambda: ("raw", "zstd"))
    start(server, codecs="delta")


@produces("ConfigError: the server cannot code '…' as '…': it lacks '…'; …")
def test_a_codec_whose_package_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's half of it, in this process."""
    monkeypatch.setattr("remote_env.protocol.image_stream.available_codecs", lambda: ("raw", "zstd"))
    ImageSender(CountingEnv(image=True).observation_space, {"image": "delta"})


# Images that are drawn here


@produces("ConfigError: local_pixels=…: True draws all images of observations, a dict those that it names, …")
def test_images_told_by_a_text() -> None:
    RemoteEnv(env=TASK, local_pixels="top")  # type: ignore[arg-type]


@produces("ConfigError: with local_pixels=True no image crosses: leave out codecs= and image_every=")
def test_codecs_of_images_that_do_not_cross() -> None:
    RemoteEnv(env=TASK, local_pixels=True, codecs="zstd")


@produces("ConfigError: local_pixels= leaves images out of dict observations; this task's are …")
def test_images_of_observations_that_are_one_array(bare: RemoteEnv) -> None:
    begin(bare, True)


@produces("ConfigError: local_pixels= names '…'; the images in observations are …")
def test_an_image_that_there_is_not(server: ServerProcess) -> None:
    start(server, local_pixels={"pixels/top": "top"})


@produces("ConfigError: the images at '…' need a camera of the local model: …")
def test_an_image_of_no_camera(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "cube.xml").write_text(CUBE)
    start(server, local_pixels={"image": "roof"}, local_model=tmp_path / "cube.xml")


def begin(env: RemoteEnv, pixels: Any) -> None:
    """What a reset with `local_pixels=` does first, in the session of another environment."""
    drawing, session = RemoteEnv(env=TASK, local_pixels=pixels)._pixels, env._life.session
    assert drawing is not None
    assert session is not None
    drawing.begin(session, env, timeout_s=10.0)


# Snapshots, branches and tried chunks


@produces("InputError: this session has no snapshot '…': it was forgotten, or it is another session's, …")
def test_a_snapshot_that_there_is_not(bare: RemoteEnv) -> None:
    bare.restore("mine")


@produces("InputError: this session keeps … snapshots and branches, and may keep …; …")
def test_more_snapshots_than_there_may_be(bare: RemoteEnv) -> None:
    with bare.fork(MAX_KEPT):
        bare.snapshot()


@produces("InputError: these branches are closed: fork() makes others")
def test_branches_that_are_closed(bare: RemoteEnv) -> None:
    with bare.fork(1) as branches:
        pass
    branches.step([ACTION[:1]])


@produces("InputError: … chunks of … in one call; there may be …")
def test_more_chunks_than_one_call_tries(bare: RemoteEnv) -> None:
    bare.try_chunks(np.zeros((5000, 1, 1), np.float32))


@produces("InputError: each chunk has as many actions as the others; got …")
def test_chunks_of_several_lengths(bare: RemoteEnv) -> None:
    bare.try_chunks([[ACTION[:1]], [ACTION[:1]] * 2])


class Playing(gymnasium.Env[Any, Any]):
    """A task that holds something; it is what a server holds of it, in this process."""

    def __init__(self, held: Any) -> None:
        self.held = held


@produces("Unsupported: this task has no snapshots: …; give the task get_snapshot() and set_snapshot(snapshot), …")
def test_a_task_whose_state_is_outside_of_python() -> None:
    GraphSnapshot(Playing(sys.stderr), ROOM)


@produces("Unsupported: a snapshot of this task needs more than the … MiB that are left for it (at …); …")
def test_a_task_that_is_large() -> None:
    GraphSnapshot(Playing(np.zeros(ROOM)), ROOM)


# Prediction


@produces("PredictionMismatch: the remote did not do in step … what was predicted: … (allowed: …). It has run …")
def test_a_twin_that_goes_another_way(bare: RemoteEnv) -> None:
    env = PredictiveEnv(bare, gymnasium.make("Pendulum-v1", g=1.0))
    env.reset(seed=0)
    env.step(ACTION[:1])
    env.verify()


@produces("ConfigError: the twin takes actions of …, and the remote of …; the twin has to be the same task, …")
def test_a_twin_of_another_task(bare: RemoteEnv) -> None:
    PredictiveEnv(bare, gymnasium.make("CartPole-v1")).reset()


@produces("ConfigError: remote is a …; give the RemoteEnv itself …, and wrap the PredictiveEnv")
def test_a_remote_that_is_wrapped(bare: RemoteEnv) -> None:
    PredictiveEnv(gymnasium.wrappers.TimeLimit(bare, 9), CountingEnv())  # type: ignore[arg-type]


@produces("ConfigError: twin is a …; give the environment itself: gymnasium.make(…)")
def test_a_twin_that_is_only_named(bare: RemoteEnv) -> None:
    PredictiveEnv(bare, "Pendulum-v1")  # type: ignore[arg-type]


@produces("ConfigError: verify=…: allowed are …")
def test_a_verification_that_there_is_not(bare: RemoteEnv) -> None:
    PredictiveEnv(bare, CountingEnv(), verify="never")  # type: ignore[arg-type]


@produces("ConfigError: window=…: the most steps to be ahead, 1 to 4096, or None")
def test_a_window_of_nothing(bare: RemoteEnv) -> None:
    PredictiveEnv(bare, CountingEnv(), window=0)
