"""The time base of videos: they last as long as what they show, whatever the rates."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from replay_scene import ARM, read_video, record, simulate

from remote_env.errors import InputError, ReplayError
from remote_env.replay import replay, replay_episode
from remote_env.replay.timeline import default_rate, frame_times, nearest, since_start
from remote_env.state import SceneState


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


@pytest.fixture(scope="module")
def states(model) -> list[SceneState]:
    return simulate(model, 30)


def at_times(states: list[SceneState], times_s: list[float]) -> list[SceneState]:
    """Copies of the first states with other times."""
    copies = [SceneState(state.layout, state.values.copy()) for state in states[: len(times_s)]]
    for state, time_s in zip(copies, times_s, strict=True):
        state.values[0] = time_s
    return copies


@given(
    steps=some.lists(some.floats(0, 0.3), min_size=1, max_size=40),
    rate_hz=some.floats(1, 240),
    speed=some.floats(0.1, 10),
)
def test_a_video_is_longer_than_its_episode_by_one_frame_at_most(steps, rate_hz, speed):
    times = np.concatenate([[0.0], np.cumsum(steps)])
    moments = frame_times(float(times[-1]), rate_hz, speed)
    left_over = len(moments) / rate_hz - times[-1] / speed
    assert -0.001 / rate_hz <= left_over <= 1.001 / rate_hz
    shown = nearest(times, moments)
    assert (np.diff(shown) >= 0).all()
    half_gap = np.diff(times).max() / 2
    assert (np.abs(times[shown] - moments) <= half_gap + 1e-3 * 0.3 + 1e-12).all()


def test_the_first_frame_shows_the_start_and_the_last_the_end():
    times = np.arange(11) * 0.02
    for rate_hz in (50.0, 30.0, 24.0, 200.0):
        shown = nearest(times, frame_times(0.2, rate_hz))
        assert (shown[0], shown[-1]) == (0, 10)


def test_equal_rates_show_each_state_once_though_clocks_round():
    times = np.cumsum(np.full(1001, np.float32(0.02)), dtype=np.float32).astype(float) + 7.0
    since = since_start(times)
    assert default_rate(since) == 50.0
    assert nearest(since, frame_times(float(since[-1]), 50.0)).tolist() == list(range(1001))


RATES = [(50.0, 50.0), (60.0, 60.0), (100.0, 50.0), (500.0, 50.0), (333.0, 55.5), (1000.0, 50.0), (0.5, 0.5)]


@pytest.mark.parametrize(("captured", "shown"), RATES)
def test_the_default_rate_is_that_of_the_states_or_an_nth_of_it(captured, shown):
    assert default_rate(np.arange(20) / captured) == pytest.approx(shown)


def test_times_that_go_back_or_are_none_are_refused():
    with pytest.raises(ReplayError, match=r"state 2 is 0\.0 s after 0\.02 s.*several episodes"):
        since_start([0.0, 0.02, 0.0, 0.02])
    with pytest.raises(ReplayError, match="state 1 is nan"):
        since_start([0.0, np.nan])
    with pytest.raises(InputError, match="pass rate_hz="):
        since_start([3.0, 3.0])
    assert since_start([3.0, 3.0], rate_hz=10.0).tolist() == [0.0, 0.1]
    for wrong in (0, -1.0, np.inf, np.nan, "fast", None):
        with pytest.raises(InputError, match="speed="):
            frame_times(1.0, 50.0, wrong)
        with pytest.raises(InputError, match="rate_hz="):
            frame_times(1.0, wrong)


@pytest.mark.parametrize(
    ("rate_hz", "speed", "length_s"), [(None, 1.0, 0.6), (30.0, 1.0, 0.6), (24.0, 0.5, 1.2), (60.0, 2.0, 0.3)]
)
def test_files_are_as_long_as_the_simulation(tmp_path, model, states, rate_hz, speed, length_s):
    capture = record(tmp_path, states)
    video = tmp_path / "a.mp4"
    report = replay_episode(capture, model, video=video, rate_hz=rate_hz, speed=speed, width=32, height=32)
    meta, frames = read_video(video)
    assert meta["fps"] == (rate_hz or 50.0) == report.rate_hz
    assert len(frames) == report.video_frames
    assert 0 < len(frames) / meta["fps"] - length_s <= 1 / meta["fps"] + 1e-9


def test_uneven_times_are_shown_when_they_were(tmp_path, model, states):
    uneven = at_times(states, [5.0, 5.02, 5.04, 5.54, 5.56, 6.0])  # it stood still for half a second
    show = replay(uneven, model, width=32, height=32)
    show.save_video(tmp_path / "a.mkv", rate_hz=50.0, codec="ffv1")
    _, frames = read_video(tmp_path / "a.mkv")
    assert len(frames) == 51
    rendered = list(show)
    for number, state in ((0, 0), (1, 1), (2, 2), (10, 2), (20, 3), (27, 3), (28, 4), (30, 4), (45, 5), (50, 5)):
        np.testing.assert_array_equal(frames[number], rendered[state], err_msg=f"frame {number}")


def test_a_capture_without_a_clock_goes_by_its_rate(tmp_path, model, states):
    still = at_times(states, [0.0] * 11)
    with pytest.raises(InputError, match="pass rate_hz="):
        replay(still, model).save_video(tmp_path / "a.mp4")
    replay(still, model, width=32, height=32).save_video(tmp_path / "a.mp4", rate_hz=25.0)
    assert len(read_video(tmp_path / "a.mp4")[1]) == 11
    capture = record(tmp_path / "c", still)  # at 50 Hz
    report = replay_episode(capture, model, video=tmp_path / "b.mp4", rate_hz=25.0, width=32, height=32)
    assert report.video_frames == 6  # 0.2 s


def test_states_that_no_file_shows_are_not_rendered_but_compared(tmp_path, model, states):
    capture = record(tmp_path, states)
    report = replay_episode(capture, model, video=tmp_path / "a.mp4", rate_hz=10.0, width=32, height=32)
    assert (report.frames, report.fidelity.states) == (7, 31)
    report = replay_episode(capture, model, video=tmp_path / "a.mp4", speed=0.1, width=32, height=32)
    assert (report.frames, report.video_frames) == (31, 301)


def test_several_episodes_in_one_are_refused(tmp_path: Path, model, states):
    with pytest.raises(ReplayError, match="times must not go back"):
        replay([*states, *states], model).save_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("duration_s", "rate_hz", "speed", "said"),
    [
        (5.0, 50.0, 1e-9, "2.5e\\+11 frames; a video has up to 1000000"),
        (5.0, 50.0, 5e-324, "inf frames"),
        (1e300, 50.0, 1.0, "its states' times are wrong"),
        (5.0, 1e9, 1.0, "rate_hz=1000000000.0; videos have 0.001 to 100000.0"),
        (5.0, 1e-9, 1.0, "rate_hz=1e-09; videos have"),
    ],
)
def test_videos_of_a_billion_frames_are_refused_before_anything_is_made(duration_s, rate_hz, speed, said):
    with pytest.raises(InputError, match=said):
        frame_times(duration_s, rate_hz, speed)
