"""A small scene for replays, and what reads the videos that come of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import mujoco
import numpy as np

from remote_env.record import Recorder
from remote_env.state import SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

ARM = """
<mujoco>
  <visual><quality shadowsize="256"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -2.5 1" xyaxes="1 0 0 0 0.3 1"/>
    <camera name="above" pos="0 0 4"/>
    <geom type="plane" size="2 2 0.1" rgba="0.5 0.5 0.5 1"/>
    <body name="arm" pos="0.3 0 0.6" euler="0 0 20">
      <joint name="lift" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04"/>
      <body name="hand" pos="0.3 0 0">
        <joint name="reach" type="slide" axis="1 0 0" range="-1 1"/><geom type="box" size="0.05 0.05 0.05"/>
      </body>
    </body>
    <body name="box" pos="-0.4 0 0.5"><freejoint/><geom type="box" size="0.1 0.1 0.1" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""


def simulate(model: mujoco.MjModel, steps: int = 12) -> list[SceneState]:
    """A state every 20 ms of the arm falling and the box tumbling."""
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qvel[:] = [0.5, 0.2, 0.3, 0, 0.5, 3.0, 2.0, 1.0]
    states = [scene.read(data)]
    for _ in range(steps):
        for _ in range(10):
            mujoco.mj_step(model, data)
        states.append(scene.read(data))
    return states


def read_video(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    """What ffmpeg says of a video, and its frames."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    line = next(line for line in done.stderr.decode().splitlines() if "Video: " in line)
    width, height = (int(number) for number in re.search(r", (\d+)x(\d+)", line).groups())
    meta = {
        "size": (width, height),
        "codec": re.search(r"Video: (\w+)", line)[1],
        "fps": float(re.search(r"([\d.]+) fps", line)[1]),
        "yuv420p": "yuv420p" in line,
    }
    return meta, list(np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3))


def children() -> list[str]:
    """The command lines of our own workers and encoders that live."""
    found = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return [line for line in found.stdout.splitlines() if "replay.worker" in line or "ffmpeg" in line]


def record(folder: Path, states: list[SceneState], **details: object) -> Path:
    """A capture of these states at 50 Hz, with rewards 0, 1, 2, … and success at its end."""
    with Recorder(folder, rate_hz=50.0, **details) as recorder:
        recorder.start({"agent_pos": np.zeros(2)}, {}, state=states[0])
        for step, state in enumerate(states[1:]):
            info = {"is_success": step == len(states) - 2}
            recorder.record(np.zeros(2), {"agent_pos": np.zeros(2)}, float(step), False, False, info, state=state)
        return recorder.finish()
