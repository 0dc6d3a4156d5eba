"""Pick the cube: a plan made once from the start state, with the arm's kinematics inverted in closed form.

It runs on the client: NumPy alone, no torch and nothing of Isaac Lab.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .arm import FOREARM_M, HOME, MAX_GAP_M, SHOULDER_HEIGHT_M, TOOL_M, UPPER_ARM_M

RATE_HZ = 50.0
HOVER_M = 0.10  # above the grasp, before and after
LIFT_M = 0.17
CLOSED_GAP_M = 0.030  # what the fingers are told when they hold the 4 cm cube: the rest is force

Floats = NDArray[np.float64]
Action = NDArray[np.float32]


class StartState(Protocol):
    """As `remote_env.state.SceneState`."""

    def __getitem__(self, name: str) -> EntityPose: ...


class EntityPose(Protocol):
    """As `remote_env.state.EntityState`."""

    @property
    def root_pose(self) -> Floats:
        """(7,) position [m] and quaternion wxyz."""


def joints_above(position: Floats, yaw: float) -> Floats:
    """The arm's joints that hold the open hand straight down.

    Two links in the plane of the shoulder, by the law of cosines; the wrist does the rest.

    Args:
        position: (3,) of the point between the finger tips, in the frame of the arm's base [m].
        yaw: of the direction in which the fingers move, about z [rad].

    Returns:
        (6,) joint positions [rad], in the order of `arm.ARM_JOINTS`; the elbow is up.

    Raises:
        ValueError: out of reach.
    """
    reach = float(np.hypot(position[0], position[1]))
    height = float(position[2]) + TOOL_M - SHOULDER_HEIGHT_M
    cosine = (reach**2 + height**2 - UPPER_ARM_M**2 - FOREARM_M**2) / (2 * UPPER_ARM_M * FOREARM_M)
    if not -1.0 <= cosine <= 1.0:
        raise ValueError(f"{np.round(position, 3).tolist()} m is out of the arm's reach")
    elbow = np.arccos(cosine)
    lift = np.arctan2(reach, height) - np.arctan2(FOREARM_M * np.sin(elbow), UPPER_ARM_M + FOREARM_M * cosine)
    pan = np.arctan2(position[1], position[0])
    return np.array([pan, lift, elbow, 0.0, np.pi - lift - elbow, pan - yaw])


def yaw_of(quaternion: Floats) -> float:
    """The turn about z [rad] of a quaternion wxyz that hardly does anything else."""
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def nearest_grasp(yaw: float, pan: float) -> float:
    """Of the four turns in which fingers fit a cube, the one that turns the hand least [rad]."""
    quarter = np.pi / 2
    return float(yaw + quarter * np.round((pan - yaw) / quarter))


@dataclass(frozen=True)
class Phase:
    """Some time, at whose end the hand is somewhere; in between the joints or the tip move smoothly.

    Attributes:
        duration_s: how long.
        height_m: of the grasp point above the cube's centre, at the end; in a straight line where `is_straight`.
        gap_m: between the fingers, at the end.
        is_straight: whether the tip, not the joints, takes the shortest way.
    """

    duration_s: float
    height_m: float
    gap_m: float
    is_straight: bool = True


PHASES = (
    Phase(1.2, HOVER_M, MAX_GAP_M, is_straight=False),
    Phase(0.8, 0.0, MAX_GAP_M),
    Phase(0.6, 0.0, CLOSED_GAP_M),
    Phase(1.0, LIFT_M, CLOSED_GAP_M),
    Phase(1.6, LIFT_M, CLOSED_GAP_M),
)


def plan(cube_pose: Floats, rate_hz: float = RATE_HZ) -> Action:
    """Every action of an episode.

    Args:
        cube_pose: (7,) position [m] and quaternion wxyz, in the frame of the arm's base.
        rate_hz: actions per second.

    Returns:
        (T, 7) float32: six joint targets [rad] and the gap between the fingers [m].

    Raises:
        ValueError: the cube is out of reach.
    """
    cube, pan = np.asarray(cube_pose[:3], np.float64), float(np.arctan2(cube_pose[1], cube_pose[0]))
    yaw = nearest_grasp(yaw_of(cube_pose[3:]), pan)
    up = np.array([0.0, 0.0, 1.0])
    rows, joints, height, gap = [], np.array(HOME), HOVER_M, MAX_GAP_M
    for phase in PHASES:
        end = joints_above(cube + up * phase.height_m, yaw)
        for share in smooth_shares(round(phase.duration_s * rate_hz)):
            at = cube + up * (height + share * (phase.height_m - height))
            target = joints_above(at, yaw) if phase.is_straight else joints + share * (end - joints)
            rows.append(np.append(target, gap + share * (phase.gap_m - gap)))
        joints, height, gap = end, phase.height_m, phase.gap_m
    return np.array(rows, np.float32)


def smooth_shares(count: int) -> Floats:
    """(count,) from above 0 to 1 with no jerk at either end: 10 t³ - 15 t⁴ + 6 t⁵."""
    t = np.arange(1, count + 1) / count
    return np.asarray(t**3 * (10 - 15 * t + 6 * t**2))


class PickExpert:
    """Acts as planned from the start state; after the plan's end it holds still."""

    def __init__(self) -> None:
        self._actions: Action = np.zeros((1, 7), np.float32)

    def reset(self, state: StartState) -> None:
        """Plan the episode that starts in `state`; ValueError when the cube is out of reach."""
        self._actions = plan(state["cube"].root_pose)

    def action(self, step: int) -> Action:
        """The action of step 0, 1, 2 and so on, (7,) float32."""
        row: Action = self._actions[min(step, len(self._actions) - 1)]
        return row.copy()


# A linear quadratic regulator at 60 Hz of the cart and pole of make_assets.py (1 kg each, 1 m of pole) with the cart's
# damping of 10 N s/m that Isaac Lab's task has; weights 10, 10, 0.1, 0.1 on the state and 0.01 on the force.
_BALANCE = np.array([28.58, -145.25, 38.59, -35.30])  # N per m, rad, m/s, rad/s
_FORCE_SCALE_N = 100.0  # of an action of 1


def balance(observation: NDArray[np.float32]) -> Action:
    """What keeps the pole up: observation (4,) of cart position, pole angle and their velocities -> (1,) float32."""
    return np.array([_BALANCE @ observation / _FORCE_SCALE_N], np.float32)
