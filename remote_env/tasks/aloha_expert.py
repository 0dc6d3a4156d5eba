"""Scripted experts for the ALOHA tasks, in the tasks' own 14-D action space.

An expert sees the scene once, after `reset`: it reads where the objects lie, lays waypoints for both grippers,
and turns them into joint targets by inverse kinematics on a local copy of the model. Nothing else is asked of the
task, so it may run anywhere: over a network the whole plan needs one scene state.

    expert = make_expert("transfer_cube")
    expert.reset(scene_state)
    for step in range(expert.num_steps):
        obs, reward, terminated, truncated, info = env.step(expert.action(step))

The shape of the solution is ACT's (Zhao et al. 2023, scripted policies): the right gripper picks the cube from
above and lifts it to a meeting place, where the left gripper takes it; or the left gripper lifts the socket,
the right one the peg, and both move together.

Measured with `benchmarks/measure_experts.py` (MuJoCo 3.8.1, seeds 0–199): transfer 200 of 200, each by step 207 and
each with the full hand-over right, both, left; insertion 200 of 200, each by step 267 (95 % intervals: 98.1–100 %).
A plan takes some 0.1 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError
from remote_env.state import SceneState
from remote_env.tasks import MAX_EPISODE_STEPS
from remote_env.tasks.aloha_model import OBJECTS, START_QPOS, Task, aloha_model_path, canonical_task, load_model
from remote_env.tasks.kinematics import ArmKinematics

Floats = NDArray[np.float64]
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_TOOL_OFFSET_M = (0.14, 0.0, 0.0)  # from the gripper link to between the finger pads, 14 mm behind their tips
_REACH_TOL = 5e-3  # [m, rad] that the planned pose of a tool may miss a waypoint by
_OPEN, _CLOSED = 1.0, 0.0


@dataclass(frozen=True)
class Waypoint:
    """Where a gripper should be at one step.

    Attributes:
        step: of the episode, from 0.
        position: (3,) of the point between the finger pads, world frame [m].
        orientation: (4,) wxyz; the fingers point along x and open along y.
        gripper: 0 closed, 1 open.
    """

    step: int
    position: Floats
    orientation: Floats
    gripper: float


class ScriptedExpert:
    """Plans and plays one episode of one task; the same scene gives the same actions.

    Args:
        task: "transfer_cube" or "insertion".
        model_dir: folder with gym-aloha's XML and STL files; None takes the installed gym-aloha's.

    Attributes:
        num_steps: how many actions a plan has.

    Raises:
        ConfigError: no such task, or its model files are missing.
    """

    num_steps = MAX_EPISODE_STEPS

    def __init__(self, task: str, *, model_dir: str | Path | None = None) -> None:
        self.task: Task = canonical_task(task)
        model = load_model(aloha_model_path(self.task, model_dir))
        self._arms = {side: _arm(model, side) for side in SIDES}
        self._actions: NDArray[np.float32] | None = None

    def reset(self, scene: SceneState) -> None:
        """Plan an episode that starts from `scene`.

        Args:
            scene: the task's state just after its reset; only the objects' poses are read.

        Raises:
            InputError: the scene lacks an object, or one lies where an arm cannot reach it.
        """
        poses = {name: np.array(scene[name].root_pose) for name in OBJECTS[self.task]}
        waypoints = _PLANS[self.task](poses, {side: self._start(side) for side in SIDES})
        halves = [self._joint_targets(side, waypoints[side]) for side in SIDES]
        self._actions = np.concatenate(halves, axis=1).astype(np.float32)

    def action(self, step: int) -> NDArray[np.float32]:
        """The action of `step` (0 is the first after reset), (14,) float32; the last one repeats after the plan.

        Raises:
            InputError: nothing is planned yet, or `step` is negative.
        """
        if self._actions is None or step < 0:
            raise InputError(f"no action for step {step}: call reset(scene_state) first, and count from 0")
        return np.array(self._actions[min(step, len(self._actions) - 1)])

    def _start(self, side: Side) -> Waypoint:
        joints = START_QPOS[self._arms[side].joint_qpos]
        return Waypoint(0, *self._arms[side].tool_pose(joints), _CLOSED)

    def _joint_targets(self, side: Side, waypoints: list[Waypoint]) -> Floats:
        """(num_steps, 7) joint targets [rad] and the gripper's, for one arm."""
        arm = self._arms[side]
        joints = START_QPOS[arm.joint_qpos]
        rows = np.empty((self.num_steps, 7))
        for step in range(self.num_steps):
            position, orientation, gripper = _pose_at(waypoints, step + 1)
            joints, error = arm.solve(position, orientation, joints)
            if error > _REACH_TOL:
                raise InputError(
                    f"the {side} arm cannot reach {np.round(position, 3).tolist()} at step {step} of this plan (it "
                    f"misses by {error:.3f} m or rad); the expert solves what lies in the task's start ranges"
                )
            rows[step] = (*joints, gripper)
        return rows


def make_expert(task: str, *, model_dir: str | Path | None = None) -> ScriptedExpert:
    """The scripted expert of `task`, as `ScriptedExpert`; ConfigError lists the tasks that have one."""
    return ScriptedExpert(task, model_dir=model_dir)


def _arm(model: Any, side: Side) -> ArmKinematics:
    prefix = f"vx300s_{side}/"
    return ArmKinematics(model, [prefix + joint for joint in _JOINTS], prefix + "gripper_link", _TOOL_OFFSET_M)


def _pose_at(waypoints: list[Waypoint], step: int) -> tuple[Floats, Floats, float]:
    """The pose between the waypoints around `step`, eased in and out so that the arms start and stop gently."""
    after = next((index for index, point in enumerate(waypoints) if point.step >= step), len(waypoints))
    if after == len(waypoints):
        return waypoints[-1].position, waypoints[-1].orientation, waypoints[-1].gripper
    start, end = waypoints[max(after - 1, 0)], waypoints[after]
    passed = (step - start.step) / max(end.step - start.step, 1)
    eased = passed * passed * (3 - 2 * passed)
    position = start.position + eased * (end.position - start.position)
    turn = np.empty(3)
    mujoco.mju_subQuat(turn, end.orientation, start.orientation)
    orientation = np.array(start.orientation)
    mujoco.mju_quatIntegrate(orientation, turn, eased)
    return position, orientation, start.gripper + passed * (end.gripper - start.gripper)


def _turned(*turns: tuple[tuple[float, float, float], float]) -> Floats:
    """The orientation (4,) wxyz after turning about each (axis, degrees), each in the frame so far."""
    orientation, turn = np.array((1.0, 0.0, 0.0, 0.0)), np.empty(4)
    for axis, degrees in turns:
        mujoco.mju_axisAngle2Quat(turn, np.array(axis), np.deg2rad(degrees))
        mujoco.mju_mulQuat(orientation, orientation.copy(), turn)
    return orientation


_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_ABOVE = np.array((0.0, 0.0, 0.08))  # where a gripper gathers itself before it goes down [m]


def _yaw_deg(pose: Floats, symmetry_deg: float) -> float:
    """How far an object is turned about the vertical, the smallest of the angles that look the same [deg]."""
    w, x, y, z = pose[3:]
    yaw = np.rad2deg(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    return float((yaw + symmetry_deg / 2) % symmetry_deg - symmetry_deg / 2)


class _Path:
    """Builds one gripper's waypoints, each from the one before."""

    def __init__(self, start: Waypoint) -> None:
        self.waypoints = [start]

    def go(
        self,
        step: int,
        position: Floats | None = None,
        orientation: Floats | None = None,
        gripper: float | None = None,
    ) -> _Path:
        """Be at `step` where told; what is not told stays."""
        last = self.waypoints[-1]
        self.waypoints.append(
            Waypoint(
                step,
                last.position if position is None else np.array(position),
                last.orientation if orientation is None else orientation,
                last.gripper if gripper is None else gripper,
            )
        )
        return self


def _plan_transfer(poses: dict[str, Floats], starts: dict[Side, Waypoint]) -> dict[Side, list[Waypoint]]:
    box = np.array((*poses["box"][:2], 0.02))  # it has come to rest before a gripper arrives
    meet = np.array((0.05, 0.5, 0.2))
    yaw = _yaw_deg(poses["box"], 90.0)
    down, turned_down = (_turned((_Z, 180.0 + turn), (_Y, 85.0)) for turn in (0.0, yaw))
    away_left, away_right = np.array((-0.12, 0.0, 0.0)), np.array((0.05, 0.0, 0.07))
    right = _Path(starts["right"])
    right.go(50, box + _ABOVE, turned_down, _OPEN).go(60).go(80, box).go(85).go(105, gripper=_CLOSED)
    right.go(130, box + _ABOVE).go(170, meet, down).go(215).go(230, gripper=_OPEN).go(260, meet + away_right)
    # The left gripper comes level and turned on its side: its fingers close above and below the cube.
    on_side = _turned((_X, 90.0))
    left = _Path(starts["left"])
    left.go(80).go(150, meet + away_left, on_side, _OPEN).go(165).go(190, meet).go(195)
    left.go(215, gripper=_CLOSED).go(260).go(290, meet + away_left)
    return {"left": left.waypoints, "right": right.waypoints}


def _plan_insertion(poses: dict[str, Floats], starts: dict[Side, Waypoint]) -> dict[Side, list[Waypoint]]:
    return {
        # The peg is thin: fingers at its middle would scrape the table, so they hold it by its upper half.
        "right": _plan_half_insertion(starts["right"], poses["peg"], 0.01, 0.008, 180.0, 1.0),
        "left": _plan_half_insertion(starts["left"], poses["socket"], 0.022, 0.0, 0.0, -1.0),
    }


def _plan_half_insertion(
    start: Waypoint, pose: Floats, half_height: float, grip_height: float, facing_deg: float, side: float
) -> list[Waypoint]:
    """Pick a long thing up at its middle, `grip_height` above its axis [m], and push it to the scene's centre."""
    grip = np.array((0.0, 0.0, grip_height))
    lying = np.array((*pose[:2], half_height)) + grip
    apart, together = (np.array((side * x, 0.5, 0.18)) + grip for x in (0.09, 0.045))
    yaw = _yaw_deg(pose, 180.0)
    down, turned_down = (_turned((_Z, facing_deg + turn), (_Y, 75.0)) for turn in (0.0, yaw))
    path = _Path(start)
    path.go(60, lying + _ABOVE, turned_down, _OPEN).go(70).go(95, lying).go(100).go(120, gripper=_CLOSED)
    path.go(145, lying + _ABOVE).go(195, apart, down).go(210).go(280, together)
    return path.waypoints


_PLANS = {"transfer_cube": _plan_transfer, "insertion": _plan_insertion}
