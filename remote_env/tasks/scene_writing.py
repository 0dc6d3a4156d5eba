"""SceneWriter: states of one layout into MuJoCo's vectors, one at a time or many at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import mujoco
import numpy as np

from remote_env.errors import InputError
from remote_env.poses import NORM_TOLERANCE, conjugate, rotate
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, Floats, SceneLayout, SceneState
from remote_env.tasks.scene_parts import EntityPart, Indices


class SceneWriter:
    """Knows which value of states of one layout goes where in MuJoCo's vectors.

    Joints that the layout lacks keep what the data holds, but for those that an active joint equality of the model
    ties to a joint that the layout has: kinematics alone would not move them.

    Args:
        model: the compiled model.
        parts: its entities.
        layout: of the states; entities that the model lacks are left out.
        moved: entities whose fixed root body is put where the state's root is, by changing `model`.
    """

    def __init__(
        self, model: mujoco.MjModel, parts: list[EntityPart], layout: SceneLayout, *, moved: Collection[str] = ()
    ) -> None:
        self.layout = layout
        self._model = model
        self._plan = _make_plan(layout, parts, moved)
        self._followers = _followers(model, {int(address) for address in self._plan.qpos_to})

    def check(self, values: Floats) -> None:
        """Refuse (size,) or (T, size) values that mean nothing: not finite, or a quaternion without unit norm.

        Raises:
            InputError: says of which entity, and at which time.
        """
        norms = np.linalg.norm(values[..., self._plan.quaternions], axis=-1)
        if np.isfinite(values).all() and (np.abs(norms - 1.0) <= NORM_TOLERANCE).all():
            return
        for row in values.reshape(-1, self.layout.size):
            SceneState(self.layout, row).check()
            if not np.isfinite(row[0]):
                raise InputError(f"the state's time is {row[0]} s; it must be finite")

    def set(self, values: Floats, data: mujoco.MjData) -> None:
        """Put (size,) values into `data`: positions, velocities and time; nothing is computed from them yet."""
        plan = self._plan
        data.time = values[0]
        data.qpos[plan.qpos_to] = values[plan.qpos_from]
        data.qvel[plan.qvel_to] = values[plan.qvel_from]
        inverse = np.empty(4)
        for start, dof in plan.spins:
            mujoco.mju_negQuat(inverse, values[start + 3 : start + 7])
            mujoco.mju_rotVecQuat(data.qvel[dof + 3 : dof + 6], values[start + 10 : start + 13], inverse)
        for follower in self._followers:
            follower.set(data.qpos, data.qvel)
        self._set_bodies(values, data)

    def _set_bodies(self, values: Floats, data: mujoco.MjData) -> None:
        for start, mocap in self._plan.mocaps:
            data.mocap_pos[mocap] = values[start : start + 3]
            data.mocap_quat[mocap] = values[start + 3 : start + 7]
        for start, body in self._plan.moved:
            self._model.body_pos[body] = values[start : start + 3]
            self._model.body_quat[body] = values[start + 3 : start + 7]

    def vectors(self, values: Floats, data: mujoco.MjData) -> tuple[Floats, Floats]:
        """The (T, nq) positions and (T, nv) velocities of (T, size) values; what they lack is as in `data`."""
        plan = self._plan
        qpos = np.repeat(data.qpos[None], len(values), axis=0)
        qvel = np.repeat(data.qvel[None], len(values), axis=0)
        qpos[:, plan.qpos_to] = values[:, plan.qpos_from]
        qvel[:, plan.qvel_to] = values[:, plan.qvel_from]
        for start, dof in plan.spins:
            back = conjugate(values[:, start + 3 : start + 7])
            qvel[:, dof + 3 : dof + 6] = rotate(back, values[:, start + 10 : start + 13])
        for follower in self._followers:
            follower.set(qpos.T, qvel.T)
        return qpos, qvel

    def place(self, values: Floats, data: mujoco.MjData) -> tuple[Floats, Floats, Floats, Floats]:
        """Put `data` into each of (T, size) values in turn and compute where its bodies then are.

        Returns:
            (T, nq) positions, (T, nv) velocities, (T, nbody * 3) body positions, (T, nbody * 4) quaternions.
        """
        model, here = self._model, data.qpos
        has_bodies = bool(self._plan.mocaps or self._plan.moved)
        qpos, qvel = self.vectors(values, data)
        xpos, xquat = np.empty((len(values), model.nbody, 3)), np.empty((len(values), model.nbody, 4))
        body_positions, body_quaternions, compute = data.xpos, data.xquat, mujoco.mj_kinematics
        for row, positions in enumerate(qpos):
            here[:] = positions
            if has_bodies:
                self._set_bodies(values[row], data)
            compute(model, data)
            xpos[row] = body_positions
            xquat[row] = body_quaternions
        if len(values):
            data.qvel[:], data.time = qvel[-1], values[-1, 0]
        return qpos, qvel, xpos.reshape(len(values), -1), xquat.reshape(len(values), -1)


@dataclass(frozen=True)
class _Plan:
    """Which values of states of one layout go where in MuJoCo's vectors."""

    qpos_to: Indices
    qpos_from: Indices
    qvel_to: Indices
    qvel_from: Indices
    spins: list[tuple[int, int]]  # start of a free entity's block, its first dof
    mocaps: list[tuple[int, int]]  # start of a mocap entity's block, its mocap id
    moved: list[tuple[int, int]]  # start of a fixed entity's block, its root body
    quaternions: Indices  # (Q, 4)


def _make_plan(layout: SceneLayout, parts: list[EntityPart], moved: Collection[str]) -> _Plan:
    qpos: list[tuple[int, int]] = []
    qvel: list[tuple[int, int]] = []
    quaternions: list[list[int]] = []
    spins, mocaps, bodies = [], [], []
    ours = {part.layout.name: part for part in parts}
    for entity in layout.entities:
        start = layout.offsets[entity.name]
        quaternions += _quaternion_indices(entity, start)
        part = ours.get(entity.name)
        if part is None:
            continue
        if part.dof_address >= 0:
            qpos += [(part.qpos_address + axis, start + axis) for axis in range(POSE_SIZE)]
            qvel += [(part.dof_address + axis, start + POSE_SIZE + axis) for axis in range(3)]
            spins.append((start, part.dof_address))
        elif part.mocap >= 0:
            mocaps.append((start, part.mocap))
        elif entity.name in moved:
            bodies.append((start, part.bodies[0]))
        _plan_joints(entity, part, start, qpos, qvel)
    places = np.array(quaternions, np.intp).reshape(-1, 4)
    return _Plan(*_columns(qpos), *_columns(qvel), spins, mocaps, bodies, places)


def _plan_joints(
    entity: EntityLayout, part: EntityPart, start: int, qpos: list[tuple[int, int]], qvel: list[tuple[int, int]]
) -> None:
    place = {name: index for index, name in enumerate(entity.joint_names)}
    positions = start + POSE_SIZE + VELOCITY_SIZE
    velocities = positions + len(place)
    for name, address, dof in zip(part.layout.joint_names, part.joint_qpos, part.joint_dofs, strict=True):
        if name in place:
            qpos.append((address, positions + place[name]))
            qvel.append((dof, velocities + place[name]))


def _quaternion_indices(entity: EntityLayout, start: int) -> list[list[int]]:
    links = start + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
    poses = [start, *range(links, links + POSE_SIZE * len(entity.link_names), POSE_SIZE)]
    return [[pose + 3, pose + 4, pose + 5, pose + 6] for pose in poses]


def _columns(pairs: list[tuple[int, int]]) -> tuple[Indices, Indices]:
    table = np.array(pairs, np.intp).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()


@dataclass(frozen=True)
class _Follower:
    """A joint that an equality ties to another: q - q0 = polynomial(q_other - q0_other)."""

    qpos: int
    dof: int
    other_qpos: int
    other_dof: int
    start: float  # q0
    other_start: float
    coefficients: Floats  # (5,), constant first

    def set(self, qpos: Floats, qvel: Floats) -> None:
        """In place, on (nq, …) and (nv, …)."""
        away = qpos[self.other_qpos] - self.other_start
        slopes = self.coefficients[1:] * np.arange(1, 5)
        qpos[self.qpos] = self.start + np.polynomial.polynomial.polyval(away, self.coefficients)
        qvel[self.dof] = np.polynomial.polynomial.polyval(away, slopes) * qvel[self.other_dof]


def _followers(model: mujoco.MjModel, known: set[int]) -> list[_Follower]:
    """The scalar joints that are not among the `known` qpos addresses and that follow one; chains in their order."""
    found: list[_Follower] = []
    ties = [_tie(model, index) for index in range(model.neq) if _is_tie(model, index)]
    while True:
        new = [tie for tie in ties if tie.other_qpos in known and tie.qpos not in known]
        if not new:
            return found
        found.append(new[0])
        known = known | {new[0].qpos}


def followed_joints(model: mujoco.MjModel) -> dict[int, int]:
    """Joint id -> id of the joint that an active equality ties it to."""
    return {
        int(model.eq_obj1id[index]): int(model.eq_obj2id[index]) for index in range(model.neq) if _is_tie(model, index)
    }


def _is_tie(model: mujoco.MjModel, index: int) -> bool:
    is_joint = model.eq_type[index] == mujoco.mjtEq.mjEQ_JOINT
    return bool(is_joint and model.eq_active0[index] and model.eq_obj2id[index] >= 0)


def _tie(model: mujoco.MjModel, index: int) -> _Follower:
    joint, other = int(model.eq_obj1id[index]), int(model.eq_obj2id[index])
    qpos, other_qpos = int(model.jnt_qposadr[joint]), int(model.jnt_qposadr[other])
    return _Follower(
        qpos,
        int(model.jnt_dofadr[joint]),
        other_qpos,
        int(model.jnt_dofadr[other]),
        float(model.qpos0[qpos]),
        float(model.qpos0[other_qpos]),
        np.array(model.eq_data[index, :5]),
    )
