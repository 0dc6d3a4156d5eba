"""local_pixels=: images of observations are drawn here, and are the far end's own to the bit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from exact_values import assert_same
from gymnasium.utils.env_checker import check_env

from remote_env import RemoteEnv
from remote_env.errors import ConfigError, InputError
from remote_env.replay import Replayer
from remote_env.tasks.aloha_model import aloha_model_path

ALOHA = "remote_env/AlohaTransferCube-v0"
TASK = {"obs_type": "pixels_agent_pos", "cameras": ("top", "left_wrist"), "width": 96, "height": 72, "quality": "fast"}
ACTIONS = np.random.default_rng(0).uniform(-0.5, 0.5, (12, 14)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    """What the first context of a process leaves open for good is no leak of a test's."""
    with Replayer(aloha_model_path("transfer_cube"), width=8, height=8) as replayer:
        replayer.render()


@pytest.fixture(scope="module")
def far(isolated_home: object) -> Iterator[RemoteEnv]:
    """Sends its images."""
    with RemoteEnv(env=ALOHA, env_kwargs={**TASK, "render_mode": "rgb_array"}) as far:
        far.reset(seed=0)
        yield far


@pytest.fixture(scope="module")
def near(isolated_home: object) -> Iterator[RemoteEnv]:
    """Draws them here."""
    with RemoteEnv(env=ALOHA, env_kwargs=TASK, local_pixels=True, render="local") as near:
        near.reset(seed=0)
        near.render()
        yield near


def test_observations_are_the_far_ends_to_the_bit_however_they_are_asked_for(far: RemoteEnv, near: RemoteEnv) -> None:
    seen: list[list[Any]] = [[], []]
    for env, values in zip((far, near), seen, strict=True):
        values.append(env.reset(seed=3))
        values += [env.step(action) for action in ACTIONS[:5]]
        env.step_async(ACTIONS[5])
        env.step_async(ACTIONS[6])
        values += [env.step_wait(), env.step_wait()]
        chunk = env.step_many(ACTIONS[7:11])
        values += [chunk.observations, env.step_many(ACTIONS[11:], want="last").observations]
    assert_same(seen[1], seen[0])
    assert near.observation_space == far.observation_space
    assert seen[1][-1]["pixels"]["top"].any()


def test_what_the_server_sends_has_no_image(near: RemoteEnv) -> None:
    session = near._life.session
    assert session is not None
    assert list(session.observation_space) == ["agent_pos"]


def test_render_and_videos_are_drawn_here_too(far: RemoteEnv, near: RemoteEnv, tmp_path: Path) -> None:
    far.reset(seed=4)
    near.reset(seed=4)
    np.testing.assert_array_equal(near.render(), far.render())
    recorded = gymnasium.wrappers.RecordVideo(near, str(tmp_path / "videos"), episode_trigger=lambda _: True)
    recorded.reset(seed=0)
    recorded.step(ACTIONS[0])
    recorded.stop_recording()
    assert [path.suffix for path in tmp_path.glob("videos/*")] == [".mp4"]


def test_a_call_may_want_less(far: RemoteEnv, near: RemoteEnv) -> None:
    for keys in (["agent_pos"], ["pixels/top"], ["pixels"], ["agent_pos", "pixels/left_wrist"], []):
        far.reset(seed=5)
        near.reset(seed=5)
        wanted = {"observation_keys": keys}
        assert_same(near.step(ACTIONS[0], **wanted)[0], far.step(ACTIONS[0], **wanted)[0])
        assert_same(
            near.step_many(ACTIONS[:2], **wanted).observations, far.step_many(ACTIONS[:2], **wanted).observations
        )


def test_only_those_that_are_named_are_drawn_here_also_in_the_next_session(far: RemoteEnv) -> None:
    with RemoteEnv(env=ALOHA, env_kwargs=TASK, local_pixels={"pixels/left_wrist": "left_wrist"}) as mixed:
        assert_same(mixed.reset(seed=6)[0], far.reset(seed=6)[0])
        mixed.restart()
        assert mixed.observation_space == far.observation_space
        assert_same(mixed.reset(seed=7)[0], far.reset(seed=7)[0])
        assert_same(mixed.step(ACTIONS[0])[0], far.step(ACTIONS[0])[0])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # what Gymnasium says of this task's own spaces
def test_gymnasiums_checker_is_content(near: RemoteEnv) -> None:
    check_env(near, skip_render_check=True)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        ({"pixels/side": "top"}, r"names 'pixels/side'; the images in observations are pixels/left_wrist, pixels/top"),
        (
            {"pixels/top": "roof"},
            r"'pixels/top' need a camera .*no camera 'roof'.*local_pixels=\{'pixels/top': camera\}",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told_at_reset(far: RemoteEnv, pixels: dict[str, str], text: str) -> None:
    drawing = RemoteEnv(env=ALOHA, local_pixels=pixels)._pixels
    assert drawing is not None
    assert far._life.session is not None
    for _ in range(2):
        with pytest.raises(ConfigError, match=text):
            drawing.begin(far._life.session, far, timeout_s=10.0)
    drawing.close()
    assert far.observation_space == far._life.session.observation_space  # the session goes on as it was


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"local_pixels": "top"}, "local_pixels='top': True draws all images"),
        ({"local_pixels": {}}, "True draws all images"),
        ({"local_pixels": True, "policy": "scripted:zero"}, "a policy needs them beside the simulator"),
        ({"local_pixels": True, "codecs": "zstd"}, "leave out codecs= and image_every="),
        ({"local_pixels": True, "local_view": {"fps": 3}}, "local_view has no 'fps'"),
    ],
)
def test_arguments_that_contradict_are_refused(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RemoteEnv(env=ALOHA, **kwargs)


def test_an_unknown_key_costs_nothing(near: RemoteEnv) -> None:
    near.reset(seed=0)
    with pytest.raises((ConfigError, InputError), match="no key 'pixel'"):
        near.step(ACTIONS[0], observation_keys=["pixel"])
    near.step(ACTIONS[0])


def test_it_can_be_pickled_and_made_again_from_its_spec() -> None:
    env = RemoteEnv(env=ALOHA, local_pixels={"pixels/top": "top"}, local_model="model.xml")
    again = pickle.loads(pickle.dumps(env))
    expected = {"env": ALOHA, "local_pixels": {"pixels/top": "top"}, "local_model": "model.xml"}
    assert again.spec.kwargs == env.spec.kwargs == expected
