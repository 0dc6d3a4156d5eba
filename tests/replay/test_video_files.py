"""Codecs, numbered frames, files that are left alone, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
from full_disk import file_size_limit
from leak_check import isolated_home, marked_processes, wait_until
from PIL import Image
from replay_scene import ARM, read_video, record, simulate

from remote_env.errors import CaptureError, ConfigError, InputError
from remote_env.replay import replay, replay_episode, save_video
from remote_env.replay.codecs import CODECS
from remote_env.replay.images import image_mark
from remote_env.replay.video import video_mark

__all__ = ["isolated_home"]

SIZE = {"width": 64, "height": 48}
FOLDERS = [str(path) for path in (Path(__file__).parents[2], Path(__file__).parents[1])]


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


@pytest.fixture(scope="module")
def states(model):
    return simulate(model)


@pytest.fixture(scope="module")
def frames(model, states) -> list[np.ndarray]:
    return list(replay(states, model, **SIZE))


@pytest.fixture
def capture(tmp_path, states):
    return record(tmp_path / "captures", states)


# ---- codecs


@pytest.mark.parametrize(
    ("codec", "suffix", "named"),
    [("h264", ".mp4", "h264"), ("h265", ".mp4", "hevc"), ("vp9", ".webm", "vp9"), ("ffv1", ".mkv", "ffv1")],
)
def test_each_codec_gives_every_frame_back(tmp_path, frames, codec, suffix, named):
    path = tmp_path / f"a{suffix}"
    assert save_video(path, frames, 50.0, codec=codec, mark="made from this") == 13
    meta, found = read_video(path)
    assert (meta["codec"], meta["fps"], len(found)) == (named, 50.0, 13)
    assert np.abs(found[6].astype(int) - frames[6]).mean() < 4
    assert video_mark(path) == "made from this"


@pytest.mark.parametrize(("codec", "crf"), [("ffv1", 18), ("h264", 0)])
def test_lossless_is_bit_for_bit(tmp_path, frames, codec, crf):
    save_video(tmp_path / "a.mkv", frames, 50.0, codec=codec, crf=crf)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mkv")[1], frames)


def test_a_worse_quality_is_a_smaller_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    sizes = []
    for crf in (10, 40):
        save_video(tmp_path / "a.mp4", noise, 10, crf=crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.mp4", {"codec": "divx"}, "choose h264, h265, vp9, ffv1"),
        ("a.webm", {}, r"h264 goes into \.mp4.*codecs for \.webm are vp9"),
        ("a.gif", {}, r"h264 goes into \.mp4, \.mov, \.mkv$"),
        ("a.mp4", {"crf": 52}, "from 0 .best. to 51"),
        ("a.mp4", {"crf": -1}, "from 0 .best. to 51"),
        ("a.webm", {"codec": "vp9", "crf": 64}, "to 63"),
    ],
)
def test_what_does_not_go_is_refused_before_anything_is_rendered(tmp_path, model, capture, name, settings, message):
    with pytest.raises(ConfigError, match=message):
        save_video(tmp_path / name, iter(()), 10, **settings)
    with pytest.raises(ConfigError, match=message):
        replay_episode(capture, model, video=tmp_path / name, **settings)


def test_every_codec_has_a_usual_suffix():
    assert {codec: found.suffixes[0] for codec, found in CODECS.items()} == {
        "h264": ".mp4",
        "h265": ".mp4",
        "vp9": ".webm",
        "ffv1": ".mkv",
    }


# ---- numbered frames


def numbered(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("frame_*.png"))]


def test_numbered_frames_are_those_of_the_video(tmp_path, model, frames, capture):
    report = replay_episode(capture, model, frames_dir=tmp_path / "f", rate_hz=100.0, **SIZE)
    assert report.frames_dir == tmp_path / "f"
    found = numbered(tmp_path / "f")
    assert len(found) == report.video_frames == 25
    for number, frame in enumerate(found):
        # Between two states both are as near, but for rounding; the last shows the end.
        assert any((frame == frames[state]).all() for state in {number // 2, (number + 1) // 2})
    assert (tmp_path / "f" / "frame_000000.png").is_file()


def test_a_sequence_goes_on_where_it_was_cut(tmp_path, model, frames, capture):
    folder = tmp_path / "f"
    first = replay_episode(capture, model, frames_dir=folder, **SIZE)
    assert (first.frames, first.reused) == (13, ())
    for number in (3, 7, 12):
        (folder / f"frame_{number:06d}.png").unlink()
    second = replay_episode(capture, model, frames_dir=folder, resume=True, **SIZE)
    assert second.frames == 3
    np.testing.assert_array_equal(numbered(folder), frames)
    third = replay_episode(capture, model, frames_dir=folder, resume=True, **SIZE)
    assert (third.frames, third.frames_per_s, third.reused) == (0, 0.0, (folder,))


def test_a_sequence_of_something_else_is_replaced_whole(tmp_path, model, capture):
    folder = tmp_path / "f"
    replay_episode(capture, model, frames_dir=folder, **SIZE)
    report = replay_episode(capture, model, frames_dir=folder, resume=True, rate_hz=10.0, **SIZE)
    assert report.frames == 3
    assert len(numbered(folder)) == 3


def test_frames_from_elsewhere_are_not_touched(tmp_path, model, capture):
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "frame_000100.png")
    with pytest.raises(InputError, match=r"frame_000100\.png and 0 more that no replay wrote"):
        replay_episode(capture, model, frames_dir=folder, resume=True, **SIZE)
    assert [path.name for path in folder.iterdir()] == ["frame_000100.png"]


def test_a_full_disk_leaves_whole_frames_only(tmp_path, model, capture):
    with file_size_limit(200), pytest.raises(CaptureError, match=r"frame_000000\.png"):
        replay_episode(capture, model, frames_dir=tmp_path / "f", **SIZE)
    assert list((tmp_path / "f").iterdir()) == []


# ---- files that are left alone


def test_what_was_made_from_the_same_is_left_alone(tmp_path, model, capture):
    wanted = {"video": tmp_path / "a.mp4", "images_dir": tmp_path / "i", "resume": True, **SIZE}
    first = replay_episode(capture, model, **wanted)
    assert first.reused == ()
    before = {path: path.stat().st_mtime_ns for path in (first.video, *first.images)}
    second = replay_episode(capture, model, **wanted)
    assert second.reused == (second.video, *second.images)
    assert (second.frames, second.fidelity) == (0, first.fidelity)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    "change",
    [
        {"camera": "above"},
        {"overlay": True},
        {"width": 66},
        {"rate_hz": 25.0},
        {"speed": 2.0},
        {"crf": 30},
        {"quality": "full"},
        {"resume": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_made_otherwise_is_made_anew(tmp_path, model, capture, change):
    wanted = {"video": tmp_path / "a.mp4", "resume": True, **SIZE}
    replay_episode(capture, model, **wanted)
    assert replay_episode(capture, model, **(wanted | change)).reused == ()


def test_another_capture_or_model_is_made_anew(tmp_path, model, states, capture):
    wanted = {"video": tmp_path / "a.mp4", "resume": True, **SIZE}
    replay_episode(capture, model, **wanted)
    redder = mujoco.MjModel.from_xml_string(ARM.replace('rgba="1 0 0 1"', 'rgba="0.9 0 0 1"'))
    assert replay_episode(capture, redder, **wanted).reused == ()
    values = states[4].values
    kept = values[1]
    values[1] += 1e-9
    moved = record(tmp_path / "moved", states)
    values[1] = kept
    assert replay_episode(moved, redder, **wanted).reused == ()
    assert replay_episode(moved, redder, **wanted).reused == (tmp_path / "a.mp4",)


def test_a_cut_or_foreign_file_is_made_anew(tmp_path, model, capture):
    wanted = {"video": tmp_path / "a.mp4", "images_dir": tmp_path / "i", "resume": True, **SIZE}
    first = replay_episode(capture, model, **wanted)
    first.video.write_bytes(b"no video")
    first.images[3].unlink()
    assert video_mark(first.video) == image_mark(first.images[3]) == ""
    assert replay_episode(capture, model, **wanted).reused == ()
    assert len(read_video(first.video)[1]) == 13


# ---- Ctrl-C

INTERRUPTED = """
import sys
sys.path[:0] = {folders!r}
import mujoco, remote_env.replay.images, remote_env.replay.video, signal
from pathlib import Path
from replay_scene import ARM, record, simulate
from remote_env.replay import replay_episode

model = mujoco.MjModel.from_xml_string(ARM)
folder = Path({folder!r})
capture = record(folder / "captures", simulate(model, 40))

def told(module, name, at):
    function, count = getattr(module, name), 0
    def wrapped(*arguments, **options):
        nonlocal count
        count += 1
        if count == at:
            print("now", flush=True)
            signal.pause()  # for Ctrl-C, which leaves it by KeyboardInterrupt
        return function(*arguments, **options)
    setattr(module, name, wrapped)

{tell}
replay_episode(capture, model, width=64, height=48, processes={processes}, {wanted})
"""


def interrupt(tmp_path: Path, tell: str, wanted: str, *, processes: int = 1) -> None:
    """Run a replay, and press Ctrl-C as a terminal does once it says "now"; it must end with no process left."""
    code = INTERRUPTED.format(folders=FOLDERS, folder=str(tmp_path), tell=tell, wanted=wanted, processes=processes)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == "now\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
    wait_until(lambda: not marked_processes(), "no process is left")


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"captures"}


@pytest.mark.parametrize(("written", "processes"), [(1, 1), (30, 2)])
def test_ctrl_c_while_rendering_leaves_what_plays(tmp_path, written, processes):
    tell = f'told(remote_env.replay.video, "_even", {written + 2})'  # once for the size, once for each frame
    interrupt(tmp_path, tell, 'video=folder / "a.mp4"', processes=processes)
    assert left(tmp_path) == {"a.partial.mp4"}
    meta, frames = read_video(tmp_path / "a.partial.mp4")
    assert len(frames) == written
    assert (meta["fps"], meta["size"]) == (50.0, (64, 48))


def test_ctrl_c_while_numbering_leaves_whole_frames_that_a_resumed_run_goes_on_with(tmp_path, model):
    tell = 'told(remote_env.replay.images, "save_still", 5)'
    interrupt(tmp_path, tell, 'frames_dir=folder / "f"', processes=2)
    assert len(numbered(tmp_path / "f")) == 4
    assert all(path.suffix == ".png" and not path.name.startswith(".") for path in (tmp_path / "f").iterdir())
    (capture,) = (tmp_path / "captures").iterdir()
    report = replay_episode(capture, model, frames_dir=tmp_path / "f", resume=True, **SIZE)
    assert report.frames == 41 - 4


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path):
    interrupt(tmp_path, 'told(remote_env.replay.video, "codec_options", 1)', 'video=folder / "a.mp4"', processes=2)
    assert left(tmp_path) == set()
