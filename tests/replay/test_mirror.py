"""Mirrors: a thread that follows states, with a real OpenGL context of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import mujoco
import numpy as np
import pytest
from leak_check import isolated_home, no_leaks, wait_until  # noqa: F401  fixtures

from remote_env.errors import ConfigError, DeadlineExceeded, InputError, ReplayError
from remote_env.replay import Mirror, Replayer
from remote_env.state import SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

ROOT = Path(__file__).parents[2]
BOX = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="side" pos="0 -3 0.5" euler="90 0 0"/>
    <geom type="plane" size="2 2 0.1" rgba="0.1 0.7 0.1 1"/>
    <body name="box" pos="0 0 0.5"><freejoint/><geom type="box" size="0.3 0.3 0.3" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""
SIZE = {"width": 64, "height": 48}


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    """What the first context of a process leaves open for good is no leak of a test's."""
    with Replayer(mujoco.MjModel.from_xml_string(BOX), **SIZE) as replayer:
        replayer.render()


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(BOX)


@pytest.fixture(scope="module")
def states(model) -> list[SceneState]:
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qvel[3:] = [1.0, 2.0, 3.0]
    states = [scene.read(data)]
    for _ in range(20):
        mujoco.mj_step(model, data, nstep=10)
        states.append(scene.read(data))
    return states


@pytest.fixture
def mirror(model) -> Iterator[Mirror]:
    with Mirror(model, rate_hz=100.0, **SIZE) as mirror:
        yield mirror


def rendered(model, state: SceneState) -> np.ndarray:
    with Replayer(model, **SIZE) as replayer:
        replayer.set_state(state)
        return replayer.render()


def showing(mirror: Mirror, state: SceneState) -> np.ndarray:
    """The mirror's frame once it shows this state."""
    wait_until(lambda: mirror.shown and mirror.shown[0] is state, "the mirror shows the state")
    return mirror.frame()


def test_it_shows_the_newest_state_as_a_replay_does(mirror, model, states):
    mirror.begin(states[0])
    np.testing.assert_array_equal(showing(mirror, states[0]), rendered(model, states[0]))
    for state in states:
        mirror.show(state)
    np.testing.assert_array_equal(showing(mirror, states[-1]), rendered(model, states[-1]))


def test_states_in_between_are_left_out_and_none_is_drawn_twice(model, states):
    with Mirror(model, rate_hz=5.0, **SIZE) as mirror:
        began_s = time.monotonic()
        mirror.begin(states[0])
        for state in states * 50:
            mirror.show(state)
        showing(mirror, states[-1])
        assert mirror.frames_rendered <= 2 + 5.0 * (time.monotonic() - began_s)
        count, again = mirror.frames_rendered, states[3]
        mirror.show(again)
        showing(mirror, again)
        assert mirror.frames_rendered == count + 1


def test_several_scenes_make_a_grid(mirror, model, states):
    three = [states[0], states[5], states[10]]
    mirror.begin(three)
    frame = showing(mirror, states[0])
    assert frame.shape == (96, 128, 3)
    for state, tile in zip(three, (frame[:48, :64], frame[:48, 64:], frame[48:, :64]), strict=True):
        np.testing.assert_array_equal(tile, rendered(model, state))
    assert not frame[48:, 64:].any()


def test_names_that_do_not_fit_are_told_at_once(mirror, states):
    other = MujocoScene(mujoco.MjModel.from_xml_string(BOX.replace('name="box"', 'name="ball"')))
    state = other.read(mujoco.MjData(other.model))
    with pytest.raises(ReplayError, match=r"(?s)ball.*box"):
        mirror.begin(state)
    mirror.begin(states[0])  # and it goes on
    assert showing(mirror, states[0]).shape == (48, 64, 3)


def test_a_state_that_is_none_is_told_once_and_the_next_is_shown(mirror, states, caplog):
    mirror.begin(states[0])
    showing(mirror, states[0])
    broken = SceneState(states[0].layout, np.full_like(states[0].values, np.nan))
    mirror.show(broken)
    wait_until(lambda: mirror.shown[0] is broken, "the mirror has looked at it")
    assert "the mirror cannot show the state" in caplog.text
    with pytest.raises(InputError, match="finite"):
        mirror.begin(states[1])
    mirror.begin(states[1])
    assert showing(mirror, states[1]).any()


def test_without_a_state_there_is_no_frame(mirror):
    with pytest.raises(DeadlineExceeded, match=r"no frame within 0\.05 s; has the mirror been shown a state\?"):
        mirror.frame(timeout_s=0.05)


def test_closing_ends_the_thread_and_may_be_repeated(model, states):
    mirror = Mirror(model, **SIZE)
    mirror.begin(states[0])
    mirror.close()
    mirror.close()
    assert not [thread for thread in threading.enumerate() if "mirror" in thread.name]
    for call in (lambda: mirror.begin(states[0]), mirror.open_window):
        with pytest.raises(ConfigError, match="this mirror is closed"):
            call()


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"rate_hz": 0.0}, ConfigError),
        ({"rate_hz": float("nan")}, ConfigError),
        ({"camera": "top"}, ConfigError),
        ({"quality": "best"}, ConfigError),
        ({"model": "nowhere.xml"}, ReplayError),
    ],
)
def test_what_cannot_be_mirrored_is_refused_and_leaves_no_thread(model, how, error):
    with pytest.raises(error):
        Mirror(**{"model": model, **how})
    assert not [thread for thread in threading.enumerate() if "mirror" in thread.name]


def test_without_opengl_it_is_refused_and_leaves_no_thread(model, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(ConfigError, match="MUJOCO_GL=disable switches rendering off"):
        Mirror(model)


def test_a_live_video_lasts_as_long_as_its_block(mirror, states, tmp_path):
    mirror.begin(states[0])
    with mirror.save_video(tmp_path / "live.mp4"):
        for state in states:
            mirror.show(state)
        began_s = time.monotonic()
        showing(mirror, states[-1])
        wait_until(lambda: time.monotonic() - began_s > 0.3, "some frames")
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "live.mp4"))
    assert frames >= 30  # also where the encoder was late
    assert seconds == pytest.approx(frames / 100.0, abs=0.02)


def test_a_video_that_cannot_be_written_is_told_at_the_blocks_end(mirror, states, tmp_path):
    mirror.begin(states[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="file"), mirror.save_video(tmp_path / "file" / "live.mp4"):
        pass


LEFT_OPEN = """
import sys, mujoco
from remote_env.replay import Mirror
from remote_env.tasks.mujoco_scene import MujocoScene
model = mujoco.MjModel.from_xml_path(sys.argv[1])
scene = MujocoScene(model)
mirror = Mirror(model, width=64, height=48)
mirror.begin(scene.read(mujoco.MjData(model)))
mirror.frame()
print("following", flush=True)
"""
FOREVER = "import time\nwhile True:\n    mirror.show(scene.read(mujoco.MjData(model)))\n    time.sleep(0.001)\n"


def start(tmp_path: Path, program: str) -> subprocess.Popen[str]:
    (tmp_path / "box.xml").write_text(BOX)
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, str(tmp_path / "box.xml")], cwd=ROOT, **pipes)


def test_a_program_that_does_not_close_it_ends_quietly(tmp_path):
    out, told = (process := start(tmp_path, LEFT_OPEN)).communicate(timeout=30)
    assert (process.returncode, out, told) == (0, "following\n", "")


def test_ctrl_c_ends_the_program_and_its_mirror(tmp_path):
    process = start(tmp_path, LEFT_OPEN + FOREVER)
    assert process.stdout.readline() == "following\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert told.strip().endswith("KeyboardInterrupt")


FORKED = """
import os
child = os.fork()
if child == 0:
    mirror.close()
    print("closed in the child", flush=True)
    os._exit(0)
print("child", os.waitpid(child, 0)[1], mirror.frame().shape, flush=True)
mirror.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_it_alone(tmp_path):
    out, told = start(tmp_path, LEFT_OPEN + FORKED).communicate(timeout=30)
    assert out.splitlines() == ["following", "closed in the child", "child 0 (48, 64, 3)"], told
