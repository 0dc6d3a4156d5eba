"""What is told when a replay is filmed, watched, or drawn while it runs, and that does not work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from full_disk import file_size_limit
from quotes import produces
from replay_scene import ARM, record, simulate

from remote_env import RemoteEnv
from remote_env.record import read_episode
from remote_env.record.episode import Episode
from remote_env.render import gl_backend
from remote_env.replay import replay, replay_episode, view
from remote_env.replay.codecs import check_codec
from remote_env.replay.frames import _receive
from remote_env.replay.images import FrameFolder
from remote_env.replay.mirror import check_rate
from remote_env.replay.video import save_video
from remote_env.state import SceneState

TASK = "tasks_for_tests.scene:Scene"


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


@pytest.fixture(scope="module")
def capture(model: mujoco.MjModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("captures"), simulate(model, 3))


@pytest.fixture(scope="module")
def episode(capture: Path) -> Episode:
    return read_episode(capture)


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


# Files


@produces("ConfigError: the model has no camera …; its cameras are …")
def test_a_camera_that_the_model_lacks(episode: Episode, model: mujoco.MjModel) -> None:
    replay_episode(episode, model, camera="top")


@produces("ConfigError: there is no body … to track; the model's bodies are …")
def test_a_body_that_the_model_lacks(episode: Episode, model: mujoco.MjModel) -> None:
    replay_episode(episode, model, camera="track:cube")


@produces("ConfigError: …: … goes into …; codecs for … are …")
def test_a_codec_that_the_file_does_not_take() -> None:
    check_codec(Path("a.webm"), "h264", 18)


@produces("ConfigError: crf=…; the quality of … goes from 0 (best) to … (worst)")
def test_a_quality_that_the_codec_lacks() -> None:
    check_codec(Path("a.mp4"), "h264", 60)


@produces("InputError: … holds frame_… and … more that no replay wrote; give another folder")
def test_a_folder_with_frames_of_others(tmp_path: Path) -> None:
    (tmp_path / "frame_000000.png").touch()
    FrameFolder(tmp_path, "", 3, resume=False)


@produces("InputError: the capture holds no 'images/…'; it holds …")
def test_images_that_were_not_captured(capture: Path, model: mujoco.MjModel) -> None:
    replay_episode(capture, model, beside="images/top")


@produces("InputError: stills … lie outside the episode; its steps are 0 to …")
def test_a_still_after_the_end(episode: Episode, model: mujoco.MjModel, tmp_path: Path) -> None:
    replay_episode(episode, model, images_dir=tmp_path, stills={99: "end"})


@produces("InputError: the states' times do not advance, so their rate is unknown; pass rate_hz=")
def test_states_without_a_time(episode: Episode, model: mujoco.MjModel) -> None:
    values = np.array(episode.scene_values)
    values[:, 0] = 0.0
    replay([SceneState(episode.layout, row) for row in values], model).save_video("never.mp4")


@produces("CaptureError: … cannot be written: …")
def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    save_video(tmp_path / "file" / "a.mp4", frames(), 50.0)


@produces("CaptureError: ffmpeg could not write … (status …): …")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with file_size_limit(2000):
        save_video(tmp_path / "a.mp4", frames(), 50.0)


def frames() -> Iterator[Any]:
    return iter(np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8))


@produces("ReplayError: a rendering process ended with status …; …")
def test_a_worker_that_dies() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(7)"], stdout=subprocess.PIPE) as worker:
        _receive(worker)


# OpenGL and windows


@produces("ConfigError: MUJOCO_GL=… needs a display, and GLFW opens none here (…); …")
def test_glfw_without_a_display(no_display: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    gl_backend()


@produces("ConfigError: MUJOCO_GL=… switches rendering off; unset it, …")
def test_rendering_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    gl_backend()


@produces("ConfigError: there is no display to open a window on (DISPLAY is not set); …")
def test_a_window_without_a_display(capture: Path, model: mujoco.MjModel, no_display: None) -> None:
    view(capture, model)


@produces("ConfigError: no window with OpenGL can be opened on display … (…); …")
def test_a_display_that_is_gone(capture: Path, model: mujoco.MjModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":4077")
    view(capture, model)


# A local view


@produces("ConfigError: render=…: 'local' draws here, None leaves it to the task")
def test_another_place_to_draw() -> None:
    RemoteEnv(env=TASK, render="here")


@produces("ConfigError: local_…= is of a local view: ask for that with render='local'")
def test_a_local_model_without_a_local_view() -> None:
    RemoteEnv(env=TASK, local_model="arm.xml")


@produces("ConfigError: local_view has no …; it takes …")
def test_an_option_that_a_local_view_lacks() -> None:
    RemoteEnv(env=TASK, render="local", local_view={"fps": 30})


@produces("ConfigError: render_mode=…: with render='local' it is 'rgb_array', or None")
def test_another_way_to_draw() -> None:
    RemoteEnv(env=TASK, render="local", render_mode="human")


@produces("ConfigError: rate_hz=…: frames a second, above 0 and up to …")
def test_a_rate_that_is_none() -> None:
    check_rate(0.0)


@produces('ConfigError: there is no mirror: make the environment with render="local"')
def test_a_mirror_of_an_environment_without_a_local_view() -> None:
    assert RemoteEnv(env=TASK).mirror
