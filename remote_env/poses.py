"""Poses and velocities from other conventions into ours, a batch at a time; every array is float64.

Ours: quaternions wxyz, environment frame, velocities of the body frame's origin (docs/replay.md, "Conventions").
Rotations follow the Hamilton product; formulas as in any text on quaternions, such as J. Solà, "Quaternion kinematics
for the error-state Kalman filter" (2017), sections 1 and 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from remote_env.errors import InputError
from remote_env.state import Floats

NORM_TOLERANCE = 1e-3  # as SceneState.check


def wxyz_from_xyzw(quaternions: ArrayLike) -> Floats:
    """(…, 4) quaternions whose real part comes last, as Isaac Lab has them from 3.0 on, with it first."""
    return np.roll(np.asarray(quaternions, np.float64), 1, axis=-1)


def normalize(quaternions: ArrayLike, name: str) -> Floats:
    """(…, 4) unit quaternions; what is float32 noise is divided away.

    Raises:
        InputError: one is not finite, or its norm is further from 1 than float32 explains; `name` says whose.
    """
    values = np.asarray(quaternions, np.float64)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    if not (np.abs(norms - 1.0) <= NORM_TOLERANCE).all():
        worst = norms.ravel()[np.argmax(np.nan_to_num(np.abs(norms - 1.0), nan=np.inf))]
        raise InputError(f"the simulator gave {name!r} a quaternion of norm {worst:.4g}; it must be 1")
    return np.asarray(values / norms)


def multiply(first: ArrayLike, second: ArrayLike) -> Floats:
    """The rotation `second` followed by `first`: (…, 4) wxyz Hamilton products."""
    w1, x1, y1, z1 = np.moveaxis(np.asarray(first, np.float64), -1, 0)
    w2, x2, y2, z2 = np.moveaxis(np.asarray(second, np.float64), -1, 0)
    return np.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        axis=-1,
    )


def conjugate(quaternions: ArrayLike) -> Floats:
    """(…, 4) wxyz of the opposite rotations."""
    return np.asarray(quaternions, np.float64) * (1.0, -1.0, -1.0, -1.0)


def rotate(quaternions: ArrayLike, vectors: ArrayLike) -> Floats:
    """(…, 3) vectors turned by (…, 4) unit quaternions wxyz."""
    q, v = np.asarray(quaternions, np.float64), np.asarray(vectors, np.float64)
    real, axis = q[..., :1], q[..., 1:]
    return np.asarray(v + 2.0 * cross(axis, cross(axis, v) + real * v))


_NEXT, _AFTER = np.array([1, 2, 0]), np.array([2, 0, 1])


def cross(first: ArrayLike, second: ArrayLike) -> Floats:
    """(…, 3) cross products; as `numpy.cross`, in a fraction of its time for few vectors."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return np.asarray(a[..., _NEXT] * b[..., _AFTER] - a[..., _AFTER] * b[..., _NEXT])


def in_environment_frame(poses: ArrayLike, origins: ArrayLike) -> Floats:
    """World poses as seen from their environment's origin.

    Args:
        poses: (…, 7) position [m] and quaternion wxyz, in the world.
        origins: (…, 7) likewise, or (…, 3) where origins are not turned.
    """
    poses, origins = np.asarray(poses, np.float64), np.asarray(origins, np.float64)
    moved = poses[..., :3] - origins[..., :3]
    if origins.shape[-1] == 3:
        return np.concatenate([moved, np.broadcast_to(poses[..., 3:], (*moved.shape[:-1], 4))], axis=-1)
    back = conjugate(origins[..., 3:])
    return np.concatenate([rotate(back, moved), multiply(back, poses[..., 3:])], axis=-1)


def in_world_frame(poses: ArrayLike, origins: ArrayLike) -> Floats:
    """The exact opposite of `in_environment_frame`."""
    poses, origins = np.asarray(poses, np.float64), np.asarray(origins, np.float64)
    if origins.shape[-1] == 3:
        return np.concatenate([poses[..., :3] + origins, poses[..., 3:]], axis=-1)
    turn = origins[..., 3:]
    moved = rotate(turn, poses[..., :3]) + origins[..., :3]
    return np.concatenate([moved, multiply(turn, poses[..., 3:])], axis=-1)


def velocity_in_environment_frame(velocities: ArrayLike, origins: ArrayLike) -> Floats:
    """(…, 6) linear and angular velocities in the world's axes, in those of (…, 7) or (…, 3) origins."""
    velocities, origins = np.asarray(velocities, np.float64), np.asarray(origins, np.float64)
    if origins.shape[-1] == 3:
        return velocities
    back = conjugate(origins[..., 3:])
    return np.concatenate([rotate(back, velocities[..., :3]), rotate(back, velocities[..., 3:])], axis=-1)


def velocity_of_origin(velocities: ArrayLike, quaternions: ArrayLike, centres: ArrayLike) -> Floats:
    """Velocities of bodies' frame origins from those of their centres of mass: v_origin = v_com - ω × (R · c).

    Args:
        velocities: (…, 6) of the centres of mass, linear [m/s] then angular [rad/s], in the world's axes.
        quaternions: (…, 4) wxyz of the bodies.
        centres: (…, 3) of mass in the bodies' own frames [m].
    """
    velocities = np.asarray(velocities, np.float64)
    arm = rotate(quaternions, centres)
    linear = velocities[..., :3] - cross(velocities[..., 3:], arm)
    return np.concatenate([linear, velocities[..., 3:]], axis=-1)


def velocity_of_centre(velocities: ArrayLike, quaternions: ArrayLike, centres: ArrayLike) -> Floats:
    """The exact opposite of `velocity_of_origin`."""
    return velocity_of_origin(velocities, quaternions, -np.asarray(centres, np.float64))


def compose(first: ArrayLike, second: ArrayLike) -> Floats:
    """The pose `second`, stated in the frame of `first`, in the frame that `first` is stated in; (…, 7) each."""
    return in_world_frame(second, first)


def invert(poses: ArrayLike) -> Floats:
    """(…, 7): the frames that these poses are stated in, as seen from the poses."""
    poses = np.asarray(poses, np.float64)
    back = conjugate(poses[..., 3:])
    return np.concatenate([rotate(back, -poses[..., :3]), back], axis=-1)
