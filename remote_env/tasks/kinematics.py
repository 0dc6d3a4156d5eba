"""Inverse kinematics of one arm: damped least squares on MuJoCo's own Jacobians.

The linear algebra is MuJoCo's too: numpy's differs in the last bit between the BLAS libraries that it may use, and
then so would the plans of two machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DAMPING = 0.02  # keeps steps small near singular poses
_LARGEST_STEP = 0.2  # [rad] per iteration and joint


class ArmKinematics:
    """Where a tool on an arm is, and which joints put it there.

    Args:
        model: the mujoco.MjModel; only its kinematics are used, on a private mujoco.MjData.
        joint_names: the arm's hinge joints, base first.
        body_name: the body that carries the tool.
        tool_offset_m: (3,) the tool's point in that body's frame [m]; the tool's axes are the body's.

    Attributes:
        joint_qpos: (J,) where the joints lie in `qpos`.
    """

    def __init__(self, model: Any, joint_names: Sequence[str], body_name: str, tool_offset_m: Sequence[float]) -> None:
        joints = [model.joint(name) for name in joint_names]
        self.model, self._data = model, mujoco.MjData(model)
        self.joint_qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range for joint in joints]).T
        self._body = model.body(body_name).id
        self._offset = np.array(tool_offset_m, np.float64)
        self._jacobian = np.zeros((6, model.nv))

    def tool_pose(self, joints: Floats) -> tuple[Floats, Floats]:
        """The tool's position (3,) [m] and orientation (4,) wxyz in the world frame, for (J,) joint angles."""
        self._data.qpos[self.joint_qpos] = joints
        mujoco.mj_kinematics(self.model, self._data)
        orientation = np.array(self._data.xquat[self._body])
        return self._data.xpos[self._body] + _rotated(self._offset, orientation), orientation

    def solve(
        self, position: Floats, orientation: Floats, start: Floats, *, tol: float = 1e-4, iterations: int = 100
    ) -> tuple[Floats, float]:
        """Joint angles that bring the tool to a pose, searched from `start`.

        Args:
            position: (3,) of the tool in the world frame [m].
            orientation: (4,) unit quaternion wxyz of the tool in the world frame.
            start: (J,) joint angles [rad] to search from; a nearby start gives a nearby answer.
            tol: good enough, as the norm over position error [m] and rotation error [rad].
            iterations: when to give up.

        Returns:
            (J,) joint angles [rad] within the joints' limits, and the error norm that is left: above `tol` the
            pose is out of reach.
        """
        joints = np.array(start, np.float64)
        for _ in range(iterations):
            error = self._pose_error(position, orientation, joints)
            if np.linalg.norm(error) < tol:
                break
            joints = np.clip(joints + self._step(error), self._low, self._high)
        return joints, float(np.linalg.norm(self._pose_error(position, orientation, joints)))

    def _pose_error(self, position: Floats, orientation: Floats, joints: Floats) -> Floats:
        at, facing = self.tool_pose(joints)
        rotation = np.empty(3)
        mujoco.mju_subQuat(rotation, orientation, facing)  # in the tool's own frame
        return np.concatenate([position - at, _rotated(rotation, facing)])

    def _step(self, error: Floats) -> Floats:
        data, body = self._data, self._body
        mujoco.mj_comPos(self.model, data)  # what mj_jac reads
        point = data.xpos[body] + _rotated(self._offset, data.xquat[body])
        mujoco.mj_jac(self.model, data, self._jacobian[:3], self._jacobian[3:], point, body)
        jacobian = np.ascontiguousarray(self._jacobian[:, self._dofs])
        damped, step = np.empty((6, 6)), np.empty(len(self._dofs))
        mujoco.mju_mulMatMatT(damped, jacobian, jacobian)
        damped += _DAMPING**2 * np.eye(6)
        mujoco.mju_cholFactor(damped, 0.0)
        mujoco.mju_cholSolve(error, damped, error)
        mujoco.mju_mulMatTVec(step, jacobian, error)
        return step * min(1.0, _LARGEST_STEP / max(float(np.abs(step).max()), 1e-12))


def _rotated(vector: Floats, orientation: Floats) -> Floats:
    """(3,) `vector` of a frame with this `orientation` (4,) wxyz, in the world frame."""
    result = np.empty(3)
    mujoco.mju_rotVecQuat(result, vector, orientation)
    return result
