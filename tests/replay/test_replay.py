"""Replaying captured states in local MuJoCo models."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest
from full_disk import file_size_limit
from PIL import Image
from replay_scene import ARM, children, read_video, simulate

from remote_env.errors import CaptureError, ConfigError, InputError, ReplayError
from remote_env.record import Recorder
from remote_env.replay import (
    Fidelity,
    Replayer,
    load_model,
    replay,
    replay_episode,
    save_contact_sheet,
    save_still,
    save_video,
)
from remote_env.replay.fidelity import rotation_error
from remote_env.replay.frames import default_processes
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


@pytest.fixture(scope="module")
def states(model) -> list[SceneState]:
    return simulate(model)


def show_all(states: list[SceneState], model) -> Fidelity:
    with Replayer(model) as replayer:
        for state in states:
            replayer.set_state(state)
        return replayer.fidelity


def changed(states: list[SceneState], entity: str, change) -> list[SceneState]:
    """Copies in which `change(entity_state)` was applied in place."""
    copies = [SceneState(state.layout, state.values.copy()) for state in states]
    for state in copies:
        change(state[entity])
    return copies


# ---- fidelity


def test_the_same_model_has_exactly_no_error(model, states):
    fidelity = show_all(states, model)
    assert fidelity == Fidelity(states=13, links=5, missing_links=())


def test_a_flipped_joint_sign_is_seen(model, states):
    def flip(arm):
        arm.joint_positions[0] *= -1

    fidelity = show_all(changed(states, "arm", flip), model)
    assert fidelity.max_position_error_m > 0.01
    assert fidelity.max_rotation_error_rad > 0.1
    assert fidelity.worst_position.startswith("arm/hand at state ")


def test_a_wrong_scale_is_seen(model, states):
    def scale(arm):
        arm.joint_positions[1] *= 1000.0  # millimetres taken for metres

    fidelity = show_all(changed(states, "arm", scale), model)
    assert fidelity.max_position_error_m > 1.0
    assert fidelity.max_rotation_error_rad == 0.0


def test_another_geometry_is_seen(states):
    longer = mujoco.MjModel.from_xml_string(ARM.replace('<body name="hand" pos="0.3', '<body name="hand" pos="0.4'))
    fidelity = show_all(states, longer)
    assert fidelity.max_position_error_m == pytest.approx(0.1)
    assert fidelity.worst_position.startswith("arm/hand")


def test_a_base_that_stands_elsewhere_is_seen(states):
    moved = mujoco.MjModel.from_xml_string(ARM.replace('pos="0.3 0 0.6"', 'pos="0.3 0.5 0.6"'))
    assert show_all(states, moved).max_position_error_m == pytest.approx(0.5)


def test_rotation_error_is_the_angle_between_and_zero_for_the_same_rotation():
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(1000, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    assert not rotation_error(quaternions, quaternions).any()
    assert not rotation_error(quaternions, -quaternions).any()
    for angle in (1e-9, 0.3, np.pi / 2, 3.0):
        turned = np.array([[np.cos(angle / 2), 0, np.sin(angle / 2), 0]])
        error = rotation_error(np.array([[1.0, 0, 0, 0]]), turned)
        assert error[0] == pytest.approx(angle, rel=1e-6)


def test_fidelity_of_parts_is_that_of_the_worst(model, states):
    def flip(arm):
        arm.joint_positions[0] *= -1

    flipped = changed(states, "arm", flip)
    whole = show_all(flipped, model)
    merged = Fidelity.merge([show_all(flipped[:5], model), show_all(flipped[5:], model)])
    assert merged.max_position_error_m == whole.max_position_error_m
    assert merged.states == whole.states


# ---- names


def test_a_model_that_lacks_what_was_captured_lists_every_name(states):
    xml = ARM.replace('name="lift"', 'name="raise"').replace('name="box"', 'name="cube"')
    with pytest.raises(ReplayError) as caught:
        show_all(states, mujoco.MjModel.from_xml_string(xml.replace('name="hand"', 'name="tool"')))
    message = str(caught.value)
    assert "only in the capture: arm/joint lift, box;" in message
    assert "only in the model: arm/joint raise, cube;" in message
    assert "links only in the capture: arm/hand, box, box/box" in message
    with pytest.raises(ReplayError, match="only in the capture"):
        replay(states, mujoco.MjModel.from_xml_string(xml))


def test_links_that_the_model_lacks_are_reported_not_guessed(states):
    other = mujoco.MjModel.from_xml_string(ARM.replace('name="hand"', 'name="tool"'))
    fidelity = show_all(states, other)
    assert fidelity.missing_links == ("arm/hand",)
    assert fidelity.links == 4
    assert fidelity.max_position_error_m == 0.0


def test_states_that_are_no_states_are_refused(model, states):
    def spoil(box):
        box.root_pose[3:] = 0.0

    with pytest.raises(InputError, match="quaternion of norm 0"):
        show_all(changed(states, "box", spoil), model)

    def burst(arm):
        arm.joint_positions[0] = np.nan

    with pytest.raises(InputError, match=r"'arm'.*not finite"):
        show_all(changed(states, "arm", burst), model)


def test_native_bytes_never_hide_an_error(model, states):
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    native = MujocoScene(model).read(data, native=True).native
    with Replayer(model) as replayer:
        replayer.set_state(dataclasses.replace(states[5], native=native))
        assert replayer.data.joint("lift").qpos.item() == states[5]["arm"].joint_positions[0]


def test_no_states_or_different_layouts(model, states):
    with pytest.raises(ReplayError, match="no scene states"):
        replay([], model)
    other = SceneState(SceneLayout((EntityLayout("x"),)), np.zeros(14))
    with pytest.raises(ReplayError, match="different layouts"):
        replay([states[0], other], model)


# ---- models


def made_model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


def test_a_model_comes_from_a_file_a_function_or_itself(tmp_path, model, monkeypatch):
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    binary = tmp_path / "arm.mjb"
    mujoco.mj_saveModel(model, str(binary))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for source in (path, str(path), str(binary), "test_replay:made_model"):
        assert load_model(source).nq == model.nq
    assert load_model(model) is model


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.xml", "no model file"),
        ("no.such.module:make", "no model from"),
        ("math:make", "no model from math:make"),
    ],
)
def test_a_model_that_is_not_there_says_so(source, message):
    with pytest.raises(ReplayError, match=message):
        load_model(source)


def test_a_broken_model_file_says_what_mujoco_says(tmp_path):
    path = tmp_path / "broken.xml"
    path.write_text("<mujoco><worldbody><geom/></worldbody></mujoco>")
    with pytest.raises(ReplayError, match="MuJoCo does not load"):
        load_model(path)


# ---- frames


def test_frames_show_the_states(model, states):
    frames = list(replay(states, model, width=64, height=48, camera="front"))
    assert len(frames) == len(states)
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert (frames[0] != frames[-1]).any()
    red = [frame[..., 0].astype(int) - frame[..., 1] for frame in frames]
    assert all((image > 60).any() for image in red)  # the red box


def test_the_camera_is_the_model_s_first_unless_named(model, states):
    with Replayer(model, width=32, height=32) as first, Replayer(model, width=32, height=32, camera="front") as named:
        first.set_state(states[3])
        named.set_state(states[3])
        assert (first.render() == named.render()).all()
    with Replayer(model, width=32, height=32, camera="above") as other:
        other.set_state(states[3])
        assert (other.render() != first_frame(model, states[3])).any()
    with pytest.raises(ConfigError, match="front, above"):
        Replayer(model, camera="behind")


def first_frame(model, state):
    with Replayer(model, width=32, height=32) as replayer:
        replayer.set_state(state)
        return replayer.render()


def test_several_processes_give_the_same_frames_and_fidelity(model, states):
    def flip(arm):
        arm.joint_positions[0] *= -1

    wrong = changed(states, "arm", flip)
    here = replay(wrong, model, width=64, height=48, processes=1)
    there = replay(wrong, model, width=64, height=48, processes=2)
    assert all((a == b).all() for a, b in zip(here, there, strict=True))
    assert here.fidelity == there.fidelity
    assert here.fidelity.max_position_error_m > 0


def test_breaking_off_leaves_no_process(model, states):
    frames = iter(replay(states * 50, model, width=64, height=48, processes=2))
    next(frames)
    assert len(children()) == 2
    frames.close()
    assert children() == []


def test_a_worker_whose_parent_was_killed_ends(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]
import test_replay as t
model = t.made_model()
for number, frame in enumerate(t.replay(t.simulate(model) * 1000, model, width=64, height=48, processes=2)):
    if number == 2:
        print(*[line.split()[0] for line in os.popen("ps -o pid= --ppid %d" % os.getpid())], flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    deadline = time.monotonic() + 20
    while any(is_worker(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)
    assert len(workers) >= 2


def is_worker(pid: int) -> bool:
    try:
        return b"replay.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_worker_that_cannot_render_says_why(model, states, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(ConfigError, match="MUJOCO_GL"):
        list(replay(states, model, processes=2))
    assert children() == []


def test_a_worker_that_dies_says_what_to_do(model, states, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ReplayError, match="processes=1"):
        list(replay(states, model, processes=2))


def test_small_jobs_are_not_worth_processes():
    assert default_processes(50, "fast") == 1
    assert default_processes(100_000, "fast") == min(len(os.sched_getaffinity(0)), 8)


def test_fidelity_is_over_every_state_whether_rendered_or_not(model, states):
    show = replay(states, model, width=16, height=16)
    assert next(show.frames([7])).shape == (16, 16, 3)
    assert show.fidelity.states == 13


# ---- files


def test_a_video_has_every_frame_at_the_states_own_rate(tmp_path, model, states):
    path = replay(states, model, width=64, height=48).save_video(tmp_path / "new" / "a.mp4")
    meta, frames = read_video(path)
    assert meta["fps"] == 50.0
    assert meta["size"] == (64, 48)
    assert meta["yuv420p"]
    assert len(frames) == 13
    rendered = list(replay(states, model, width=64, height=48))
    assert np.abs(frames[6].astype(int) - rendered[6]).mean() < 4
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


def test_an_odd_size_is_padded_not_scaled(tmp_path):
    frame = np.zeros((31, 45, 3), np.uint8)
    frame[:, ::8] = 255
    assert save_video(tmp_path / "a.mp4", [frame] * 3, 12.5) == 3
    meta, frames = read_video(tmp_path / "a.mp4")
    assert meta["size"] == (46, 32)
    assert meta["fps"] == 12.5
    assert np.abs(frames[0][:31, :45].astype(int) - frame).mean() < 30


def test_a_video_that_breaks_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"an older one")

    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(path, frames(), 10)
    assert path.read_bytes() == b"an older one"
    assert children() == []
    cut = tmp_path / "a.partial.mp4"
    assert set(tmp_path.iterdir()) == {path, cut}
    assert len(read_video(cut)[1]) == 1
    save_video(path, [np.zeros((16, 16, 3), np.uint8)] * 3, 10)  # whole: the other has had its day
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("limit", [0, 1000, 20000])
def test_a_full_disk_leaves_no_half_video_or_still(tmp_path, limit):
    noise = np.random.default_rng(0).integers(0, 255, (20, 128, 128, 3), np.uint8)
    with file_size_limit(limit):
        with pytest.raises(CaptureError, match=r"a\.mp4"):
            save_video(tmp_path / "a.mp4", noise, 10)
        with pytest.raises(CaptureError, match=r"a\.png"):
            save_still(tmp_path / "a.png", noise[0])
    assert list(tmp_path.iterdir()) == []
    assert children() == []


def test_what_is_no_video_is_refused(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    path = tmp_path / "a.mp4"
    with pytest.raises(InputError, match="no frames"):
        save_video(path, [], 10)
    with pytest.raises(InputError, match="rate_hz=0"):
        save_video(path, [frame], 0)
    with pytest.raises(InputError, match=r"frame 1 is uint8 \(8, 16, 3\)"):
        save_video(path, [frame, frame[:8]], 10)
    assert list(tmp_path.iterdir()) == []


def test_stills_and_contact_sheets_are_readable(tmp_path):
    frames = [np.full((48, 64, 3), 40 * index, np.uint8) for index in range(5)]
    save_still(tmp_path / "still.png", frames[3])
    assert (np.asarray(Image.open(tmp_path / "still.png")) == 120).all()
    save_contact_sheet(tmp_path / "sheet.png", frames, [f"step {index}" for index in range(5)], tile_width=64)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (48 + 28) - 4, 3 * 68 - 4, 3)
    assert (sheet[:24, :64] < 100).any()  # a label
    assert (sheet[30:70, 70:130] == 40).all()  # the second tile
    with pytest.raises(InputError, match="one label each"):
        save_contact_sheet(tmp_path / "sheet.png", frames, ["one"])


# ---- whole episodes


@pytest.fixture
def capture(tmp_path, states) -> Path:
    with Recorder(tmp_path / "captures", rate_hz=25.0) as recorder:
        recorder.start(np.zeros(2), {}, state=states[0])
        for state in states[1:]:
            recorder.record(np.zeros(2), np.zeros(2), 0.0, False, False, {}, state=state)
        return recorder.finish()


def test_an_episode_becomes_a_video_stills_and_a_sheet(tmp_path, model, capture):
    report = replay_episode(
        capture,
        model,
        video=tmp_path / "v" / "a.mp4",
        images_dir=tmp_path / "i",
        stills={12: "The end!", 3: ""},
        width=64,
        height=48,
    )
    assert report.frames == 13
    assert report.fidelity.max_position_error_m == 0.0
    assert read_video(report.video)[0]["fps"] == 50.0  # that of the states; the capture's 25 is wrong
    assert [path.name for path in report.images] == [
        "episode_000_0003.png",
        "episode_000_0012_the_end.png",
        "episode_000_sheet.png",
    ]
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == sorted(path.name for path in report.images)


def test_stills_are_spread_when_none_are_chosen(tmp_path, model, capture):
    report = replay_episode(capture, model, images_dir=tmp_path / "i", width=32, height=32)
    assert report.video is None
    assert len(report.images) == 10
    assert report.images[0].name == "episode_000_0000.png"
    assert report.images[8].name == "episode_000_0012.png"
    with pytest.raises(InputError, match=r"stills \[13\]"):
        replay_episode(capture, model, images_dir=tmp_path / "i", stills={13: ""})


def test_a_damaged_capture_is_refused(tmp_path, model, capture):
    capture.write_bytes(capture.read_bytes()[:3000])
    with pytest.raises(CaptureError):
        replay_episode(capture, model, video=tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()
