"""Where the ALOHA model files lie, and what the numbers of an action and an observation mean.

The model files are those that the `gym-aloha` package installs; they are loaded in place and never copied,
and gym-aloha itself is not imported (that would pull in dm_control). Names, units and constants follow
gym-aloha 0.1.5 (`gym_aloha/constants.py` and `gym_aloha/tasks/sim.py`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError

Task = Literal["transfer_cube", "insertion"]

XML_NAMES: dict[Task, str] = {
    "transfer_cube": "bimanual_viperx_transfer_cube.xml",
    "insertion": "bimanual_viperx_insertion.xml",
}

OBJECTS: dict[Task, tuple[str, ...]] = {"transfer_cube": ("box",), "insertion": ("peg", "socket")}
"""The free bodies of each task, in the order of their joints in `qpos`."""

START_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "box": ((0.0, 0.2), (0.4, 0.6), (0.05, 0.05)),
    "peg": ((0.1, 0.2), (0.4, 0.6), (0.05, 0.05)),
    "socket": ((-0.2, -0.1), (0.4, 0.6), (0.05, 0.05)),
}
"""Object -> lowest and highest x, y and z [m] of its start; its start orientation is the identity."""

CONTROL_STEP_S = 0.02

_ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ACTION_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM_JOINTS)
_POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
_TWIST = ("vx", "vy", "vz", "wx", "wy", "wz")
"""An action's and agent_pos's 14 numbers: joints in [rad], grippers from 0 (closed) to 1 (open)."""

FINGER_CLOSED_M, FINGER_OPEN_M = 0.01844, 0.05800
"""Finger positions [m] that a gripper value of 0 and of 1 stand for."""

_START_ARM = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.02239, -0.02239)
START_QPOS = np.array(_START_ARM * 2)
"""(16,) joint positions [rad, m] of both arms, and their control targets, when an episode starts."""

AGENT_QPOS_INDEX = np.array([0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14])
"""agent_pos[i] comes from qpos[AGENT_QPOS_INDEX[i]]; the right finger of a gripper mirrors its left one."""

CTRL_ACTION_INDEX = np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 13])
"""ctrl[i] comes from action[CTRL_ACTION_INDEX[i]]."""

_FINGER_SPAN_M = FINGER_OPEN_M - FINGER_CLOSED_M


def control_scale() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(16,) scale and offset that turn action[CTRL_ACTION_INDEX] into control targets [rad, m]."""
    # Adding -0.0 changes no float at all, so that joint targets pass through bit by bit.
    scale, offset = np.ones(16), np.full(16, -0.0)
    for finger, sign in ((6, 1.0), (7, -1.0), (14, 1.0), (15, -1.0)):
        scale[finger], offset[finger] = sign * _FINGER_SPAN_M, sign * FINGER_CLOSED_M
    return scale, offset


def agent_scale() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(14,) offset and scale: agent_pos = (qpos[AGENT_QPOS_INDEX] - offset) / scale."""
    offset, scale = np.zeros(14), np.ones(14)
    offset[[6, 13]], scale[[6, 13]] = FINGER_CLOSED_M, _FINGER_SPAN_M
    return offset, scale


def canonical_task(task: str) -> Task:
    """`task` with dashes made underscores; ConfigError lists the tasks when there is none of that name."""
    name = task.replace("-", "_") if isinstance(task, str) else task
    if name not in XML_NAMES:
        raise ConfigError(f"no ALOHA task {task!r}; the tasks are {', '.join(XML_NAMES)}")
    return name


def state_names(task: Task) -> tuple[str, ...]:
    """The meaning of each number of `task`'s state observation, see `AlohaEnv`."""
    poses = [f"{name}_{axis}" for name in OBJECTS[task] for axis in _POSE]
    twists = [f"{name}_{axis}" for name in OBJECTS[task] for axis in _TWIST]
    return (*ACTION_NAMES, *(f"{name}_velocity" for name in ACTION_NAMES), *poses, *twists)


def aloha_model_dir() -> Path:
    """The folder of model files that the installed gym-aloha package brings.

    Raises:
        ConfigError: gym-aloha is not installed; the message says how to get it.
    """
    spec = importlib.util.find_spec("gym_aloha")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the ALOHA model files come with gym-aloha, which is not installed in this Python; "
            "run `pip install 'remote-env[aloha]'`, or pass model_dir=, a folder with its XML and STL files"
        )
    return Path(spec.submodule_search_locations[0]) / "assets"


def aloha_model_path(task: str, model_dir: str | Path | None = None) -> Path:
    """The MuJoCo XML file of `task`.

    Args:
        task: "transfer_cube" or "insertion".
        model_dir: folder with gym-aloha's XML and STL files; None takes the installed gym-aloha's.

    Raises:
        ConfigError: no such task, no gym-aloha, or no such file in `model_dir`.
    """
    name = XML_NAMES[canonical_task(task)]
    folder = aloha_model_dir() if model_dir is None else Path(model_dir).expanduser()
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"no {name} in {folder}; model_dir must hold gym-aloha's XML and STL files")
    return path.resolve()


def load_model(path: Path) -> Any:
    """The mujoco.MjModel of an XML file, its meshes read from the same folder; ConfigError when it cannot be."""
    import mujoco  # here, so that a client that only names or uploads the files needs no MuJoCo

    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise ConfigError(f"MuJoCo cannot load {path}: {error}") from error
