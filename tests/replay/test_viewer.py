"""The viewer: its window on a real X server that nobody sees, with real keys and screenshots."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
import pytest
from leak_check import isolated_home, no_leaks, wait_until  # noqa: F401  fixtures

from remote_env.errors import ConfigError, InputError, ReplayError
from remote_env.record import Recorder
from remote_env.replay.viewer import view
from remote_env.tasks.mujoco_scene import MujocoScene

ROOT = Path(__file__).parents[2]
BOX = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="2 2 0.1" rgba="0.1 0.7 0.1 1"/>
    <body name="box" pos="0 0 0.5"><freejoint/><geom type="box" size="0.3 0.3 0.3" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""
# Tells on standard output what the window is told to show.
WATCH = """
import sys, threading
from remote_env.replay import viewer
from remote_env.replay.window import Window

class Telling(Window):
    told = ""

    def update(self, top=(), bottom=()):
        super().update(top, bottom)
        text = f"help={bool(top)} " + " ".join(f"{name}={value}" for name, value in bottom)
        if text != self.told:
            print(text, flush=True)
            self.told = text

viewer.Window = Telling
viewer.view(sys.argv[2:], sys.argv[1], start_paused=True)
print("ended with", [thread.name for thread in threading.enumerate()], flush=True)
"""

# A mirror with a window, that says when its user has closed that.
MIRROR = """
import sys, threading, time, mujoco
from remote_env.record import read_episode
from remote_env.replay import Mirror
states = read_episode(sys.argv[2]).states
with Mirror(sys.argv[1], width=64, height=48) as mirror:
    mirror.begin(states[0])
    mirror.open_window()
    print("window", mirror.has_window, flush=True)
    deadline = time.monotonic() + 30
    while mirror.has_window and time.monotonic() < deadline:
        time.sleep(0.01)
    print("window", mirror.has_window, flush=True)
    mirror.show(states[-1])
    while not mirror.shown or mirror.shown[0] is not states[-1]:
        time.sleep(0.01)
    print("goes on", mirror.frame().shape, flush=True)
print("ended with", [thread.name for thread in threading.enumerate()], flush=True)
"""

needs_x = pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs the Debian packages xvfb and xdotool"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, and captures of two episodes of a box that falls."""
    folder = tmp_path_factory.mktemp("box")
    (folder / "box.xml").write_text(BOX)
    model = mujoco.MjModel.from_xml_string(BOX)
    scene = MujocoScene(model)
    with Recorder(folder / "captures", rate_hz=50.0) as recorder:
        for steps in (20, 4):
            data = mujoco.MjData(model)
            recorder.start(np.zeros(2), {}, state=scene.read(data))
            for _ in range(steps):
                mujoco.mj_step(model, data, nstep=10)
                recorder.record(np.zeros(2), np.zeros(2), 1.5, False, False, {}, state=scene.read(data))
            recorder.finish()
    return folder


class Screen:
    """An X server without a screen that anybody sees.

    Args:
        folder: for its picture, which it keeps as a file.
    """

    def __init__(self, folder: Path) -> None:
        self._picture = folder / "Xvfb_screen0"
        ours, theirs = os.pipe()
        options = ["-displayfd", str(theirs), "-screen", "0", "800x600x24", "-nolisten", "tcp", "-fbdir", str(folder)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["Xvfb", *options], pass_fds=[theirs], **quiet)
        os.close(theirs)
        with os.fdopen(ours) as told:
            self.display = f":{told.readline().strip()}"

    def shot(self) -> np.ndarray:
        """(600, 800, 3) uint8: what is on it, from its file in the format of xwd."""
        content = self._picture.read_bytes()
        size, *_ = struct.unpack(">I", content[:4])
        fields = struct.unpack(">25I", content[:100])
        height, row, colours = fields[5], fields[12], fields[19]
        pixels = np.frombuffer(content, np.uint8, height * row, size + 12 * colours)
        return pixels.reshape(height, -1, 4)[..., 2::-1]

    def press(self, *keys: str, closes: bool = False) -> None:
        """Press keys in the viewer's window; one that closes it leaves xdotool without a window to release it in."""
        environment = {**os.environ, "DISPLAY": self.display}
        command = ["xdotool", "search", "--sync", "--onlyvisible", "--name", "MuJoCo", "windowfocus", "--sync"]
        subprocess.run([*command, "key", "--delay", "20", *keys], env=environment, check=not closes, timeout=60)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> Iterator[Screen]:
    screen = Screen(tmp_path_factory.mktemp("screen"))
    yield screen
    screen.close()


class Viewer:
    """A program that views captures.

    Args:
        screen: where.
        arguments: the model, then captures.
        program: what runs.
    """

    def __init__(self, screen: Screen, *arguments: Path, program: str = WATCH) -> None:
        environment = {**os.environ, "DISPLAY": screen.display}
        command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, *map(str, arguments)], env=environment, cwd=ROOT, **pipes)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, *words: str) -> str:
        """The next line with all these words."""
        seen, deadline = [], time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                seen.append(line := self._lines.get(timeout=1))
                if all(word in line for word in words):
                    return line
                if not line:
                    pytest.fail(f"it ended without {words}; {seen}; {self.process.stderr.read()}")
        pytest.fail(f"no {words} in {seen}")

    def check_ended(self) -> None:
        """It has ended in order, with no thread left."""
        self.wait_for("ended with ['MainThread']")
        assert self.process.wait(60) == 0, self.process.stderr.read()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()


def red(picture: np.ndarray) -> int:
    """How many pixels are as red as the box."""
    return int(((picture[..., 0] > 80) & (picture[..., 1] < 40) & (picture[..., 2] < 40)).sum())


@needs_x
def test_a_window_shows_the_scene_and_obeys_keys(screen, folder):
    with Viewer(screen, folder / "box.xml", folder / "captures") as viewer:
        viewer.wait_for("help=True =episode_000.hdf5 episode=1 / 2 state=0 / 20", "speed=1 x, paused")
        wait_until(lambda: red(screen.shot()) > 5000, "the box is on the screen", 60)
        start = screen.shot()
        assert (start[..., 1] > 60).mean() > 0.1  # the floor
        screen.press("Right", "Right", "slash")
        viewer.wait_for("help=False", "state=2 / 20 time=0.04 / 0.40 s", "paused reward=1.5")
        screen.press("period", "Page_Down")
        viewer.wait_for("=episode_001.hdf5 episode=2 / 2 state=0 / 4", "speed=2 x, paused")
        screen.press("Page_Up", "End")
        viewer.wait_for("episode=1 / 2 state=20 / 20 time=0.40 / 0.40 s", "paused")
        wait_until(lambda: (screen.shot() != start).mean() > 0.01, "the box has fallen", 60)
        screen.press(*["comma"] * 7, "space")  # once more, very slowly
        viewer.wait_for("speed=1/64 x reward")  # there is a reward from the first step on
        screen.press(*["period"] * 12)
        viewer.wait_for("state=20 / 20", "speed=64 x, paused")
        screen.press("ctrl+q", closes=True)
        viewer.check_ended()


@needs_x
def test_ctrl_c_closes_the_window_and_ends_it_in_order(screen, folder):
    with Viewer(screen, folder / "box.xml", folder / "captures" / "episode_001.hdf5") as viewer:
        viewer.wait_for("episode=1 / 1 state=0 / 4")
        viewer.process.send_signal(signal.SIGINT)
        viewer.check_ended()


@needs_x
def test_a_mirror_has_a_window_until_its_user_closes_it(screen, folder):
    capture = folder / "captures" / "episode_000.hdf5"
    with Viewer(screen, folder / "box.xml", capture, program=MIRROR) as viewer:
        viewer.wait_for("window True")
        wait_until(lambda: red(screen.shot()) > 5000, "the box is on the screen", 60)
        screen.press("ctrl+q", closes=True)
        viewer.wait_for("window False")
        viewer.wait_for("goes on (48, 64, 3)")
        viewer.check_ended()


@pytest.fixture
def no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_display_it_says_what_to_do(folder, no_display):
    with pytest.raises(
        ConfigError, match=r"no display to open a window on .*remote-env replay CAPTURE.*xvfb-run.*ssh -X"
    ):
        view(folder / "captures", folder / "box.xml")


def test_a_display_that_is_not_there_is_named(folder, no_display, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":4711")
    with pytest.raises(ConfigError, match=r"no window with OpenGL .* on display ':4711' \(.*X11.*libgl1 libgl1-mesa"):
        view(folder / "captures", folder / "box.xml")


def test_an_old_episode_number_and_an_empty_folder_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no episode 2; there are 2"):
        view(folder / "captures", folder / "box.xml", episode=2)
    with pytest.raises(ReplayError, match="no capture in"):
        view(tmp_path, folder / "box.xml")


def test_a_capture_that_does_not_fit_is_refused_before_a_window_opens(folder, no_display):
    other = mujoco.MjModel.from_xml_string(BOX.replace('name="box"', 'name="ball"'))
    with pytest.raises(ReplayError, match=r"(?s)box.*ball"):
        view(folder / "captures", other)


@pytest.mark.parametrize(
    ("model", "mapping"), [("capture", None), (ROOT / "examples/isaac/pick.xml", ROOT / "examples/isaac/mapping.yaml")]
)
def test_mappings_and_the_captures_own_model_are_taken(no_display, model, mapping):
    with pytest.raises(ConfigError, match="no display"):  # so it fits
        view(ROOT / "tests/data/isaac_pick.hdf5", model, mapping=mapping)


def test_a_capture_without_states_is_refused(tmp_path, folder):
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        recorder.start(np.zeros(2), {})
        recorder.record(np.zeros(2), np.zeros(2), 0.0, False, False, {})
        recorder.finish()
    with pytest.raises(ReplayError, match=r"episode_000\.hdf5 holds no scene states"):
        view(tmp_path, folder / "box.xml")
