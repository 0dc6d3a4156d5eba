"""Words in frames, and two pictures beside each other."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest
from PIL import Image
from replay_scene import ARM, read_video, record, simulate

from remote_env.errors import InputError, ReplayError
from remote_env.record import read_episode
from remote_env.replay import replay, replay_episode
from remote_env.replay.beside import CapturedImages, Picture
from remote_env.replay.overlay import draw_overlay, label_strip, overlay_texts

SIZE = {"width": 160, "height": 120}


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


@pytest.fixture(scope="module")
def states(model):
    return simulate(model)


@pytest.fixture(scope="module")
def capture(tmp_path_factory, states):
    return record(tmp_path_factory.mktemp("captures"), states)


def with_images(capture, size=(60, 80)):
    """The episode of a capture with images: each grey as its step says."""
    episode = read_episode(capture)
    frames = [np.full((*size, 3), 10 * step, np.uint8) for step in range(len(episode) + 1)]
    return dataclasses.replace(
        episode,
        observations={**episode.observations, "images/top": frames[:-1]},
        final_observation={**episode.final_observation, "images/top": frames[-1]},
    )


def test_an_overlay_tells_step_time_reward_and_success(capture):
    texts = overlay_texts(read_episode(capture), np.arange(13) * 0.02)
    assert texts[0] == "step 0   0.00 s"
    assert texts[3] == "step 3   0.06 s   reward 2"
    assert texts[12] == "step 12   0.24 s   reward 11   success"


def test_an_overlay_is_off_unless_wanted_and_touches_the_corner_only(tmp_path, model, states, capture):
    videos = {}
    for overlay in (False, True):
        path = tmp_path / f"{overlay}.mkv"
        replay_episode(capture, model, video=path, overlay=overlay, codec="ffv1", **SIZE)
        videos[overlay] = read_video(path)[1]
    plain = list(replay(states, model, **SIZE))
    for index in (0, 12):
        np.testing.assert_array_equal(videos[False][index], plain[index])
        assert (videos[True][index][:10, :60] != plain[index][:10, :60]).any()
        np.testing.assert_array_equal(videos[True][index][40:], plain[index][40:])


def test_words_too_long_for_a_frame_are_cut():
    frame = np.full((12, 20, 3), 200, np.uint8)
    drawn = draw_overlay(frame, "step 1000 and much more than fits")
    assert drawn.shape == frame.shape
    assert (frame == 200).all()
    assert (drawn != frame).any()
    assert label_strip("longer than this", 10).shape == (24, 10, 3)
    assert (label_strip("", 10) == 255).all()


def test_captured_images_stand_to_the_left_of_their_replay(tmp_path, model, states, capture):
    path = tmp_path / "a.mkv"
    report = replay_episode(with_images(capture), model, video=path, beside="images/top", codec="ffv1", **SIZE)
    meta, frames = read_video(path)
    assert meta["size"] == (160 + 4 + 160, 24 + 120)  # 80×60 grows to the replay's height
    assert len(frames) == 13
    assert report.frames == 13
    rendered = list(replay(states, model, **SIZE))
    for step in (0, 5, 11, 12):
        assert (frames[step][24:, :160] == 10 * step).all()
        assert not frames[step][:, 160:164].any()
        np.testing.assert_array_equal(frames[step][24:, 164:], rendered[step])
    assert (frames[0][:24, :160] < 100).any()  # "images/top"
    assert (frames[0][:24, 164:] < 100).any()  # "replay"


def test_two_captures_keep_their_own_time_and_the_shorter_stands_still(tmp_path, model, states, capture):
    slow = [dataclasses.replace(state, values=state.values.copy()) for state in states[:4]]
    for index, state in enumerate(slow):
        state.values[0] = 3.0 + 0.04 * index  # half as many states per second, and another start
    other = record(tmp_path / "other", slow)
    path = tmp_path / "a.mkv"
    replay_episode(capture, model, video=path, beside=other, labels=("", ""), codec="ffv1", **SIZE)
    _, frames = read_video(path)
    rendered = list(replay(states, model, **SIZE))
    assert len(frames) == 13
    for number, theirs in ((0, 0), (2, 1), (4, 2), (6, 3), (12, 3)):
        np.testing.assert_array_equal(frames[number][24:, :160], rendered[number])
        np.testing.assert_array_equal(frames[number][24:, 164:], rendered[theirs])


def test_the_longer_one_decides_how_long_the_video_is(tmp_path, model, states, capture):
    short = record(tmp_path / "short", states[:3])
    report = replay_episode(short, model, beside=capture, video=tmp_path / "a.mp4", images_dir=tmp_path / "i", **SIZE)
    assert report.video_frames == len(read_video(tmp_path / "a.mp4")[1]) == 13
    assert len(report.images) == 4


def test_stills_show_both(tmp_path, model, states, capture):
    report = replay_episode(
        with_images(capture), model, images_dir=tmp_path, stills={4: "there"}, beside="images/top", **SIZE
    )
    still = np.asarray(Image.open(report.images[0]))
    assert still.shape == (144, 324, 3)
    assert (still[24:, :160] == 40).all()
    assert (report.frames, report.video) == (1, None)


def test_images_that_are_not_there_or_no_pictures(tmp_path, model, capture):
    with pytest.raises(InputError, match=r"no 'images/wrist'; it holds images/top"):
        replay_episode(with_images(capture), model, video=tmp_path / "a.mp4", beside="images/wrist")
    with pytest.raises(InputError, match="holds no images"):
        replay_episode(capture, model, video=tmp_path / "a.mp4", beside="images/top")
    depth = with_images(capture, size=(60,))
    with pytest.raises(ReplayError, match=r"image 0 is uint8 \(60, 3\)"):
        replay_episode(depth, model, video=tmp_path / "a.mp4", beside="images/top")
    assert list(tmp_path.iterdir()) == []


def test_images_without_a_last_one_hold_the_one_before(capture):
    episode = dataclasses.replace(with_images(capture), final_observation={})
    times = np.arange(13) * 0.02
    images = CapturedImages(episode, "images/top", times)
    assert len(images) == len(images.times_s) == 12
    moments = Picture(images).at_times(times)
    assert moments[-1] == (11, 0)
