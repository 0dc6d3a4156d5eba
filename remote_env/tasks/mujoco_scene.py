"""MujocoScene: reads and writes the `SceneState`s of one MuJoCo model.

Entities are the children of the world body, each with its whole subtree: an arm, a loose object, a table. An
entity whose root body has a free joint moves freely; a mocap body moves as it is told; any other root stands
where its model (or its own hinge and slide joints) puts it. A body or joint without a name is called
`unnamed_body_<id>` or `unnamed_joint_<id>` after its id in the compiled model, with underscores added where
a name is already taken; so unnamed parts match only between models of the same structure.

MuJoCo's quirks that are converted here: a free joint's linear velocity is that of the body frame's origin in
the world frame, but its angular velocity is in the *body* frame; and `mj_step` moves `qpos` after it
computed the body poses, so `xpos` and `xquat` belong to the step before unless something ran the kinematics
since.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError, ReplayError, Unsupported
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, Floats, SceneLayout, SceneState

Indices = NDArray[np.intp]
STATE_NAME = "mjSTATE_INTEGRATION"  # stored by name: its integer differs between MuJoCo versions
NORM_TOLERANCE = 1e-3  # as SceneState.check
_ZERO = np.zeros(1)  # the root velocity of what cannot move


class MujocoScene:
    """The scene of one model, as named entities.

    One instance serves one thread at a time: it keeps a scratch `MjData`.

    Args:
        model: the compiled model; later changes of its structure are not seen.

    Attributes:
        model: as given.
        layout: names of every entity, joint and link, in model order.

    Raises:
        Unsupported: the model has a ball joint; the message names it.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self._parts = _entity_parts(model)
        self.layout = SceneLayout(tuple(part.layout for part in self._parts), source=f"mujoco {mujoco.__version__}")
        self._gather = _gather_index(model, self._parts)
        self._spins = [
            (self.layout.offsets[part.layout.name] + POSE_SIZE + 3, part.dof_address + 3, part.bodies[0])
            for part in self._parts
            if part.dof_address >= 0
        ]
        self._scratch = mujoco.MjData(model)
        self._time = np.zeros(1)
        self._state_kind = int(getattr(mujoco.mjtState, STATE_NAME))
        self._state_vector = np.zeros(mujoco.mj_stateSize(model, self._state_kind))
        self._native_header = _native_header(model, self._state_vector.size)
        self._last_plan: _WritePlan | None = None

    def read(self, data: mujoco.MjData, *, native: bool = False, kinematics_current: bool = False) -> SceneState:
        """The scene as `data` holds it; `data` is not changed and the result shares no memory with it.

        Args:
            data: of this scene's model.
            native: also carry the bytes that restore this state exactly.
            kinematics_current: the caller knows that `data.xpos` and `data.xquat` belong to `data.qpos`, as
                after `mj_forward` or `mj_step1`. Otherwise (after a plain `mj_step`) they are computed in a
                scratch copy.
        """
        placed = data if kinematics_current else self._placed_copy(data)
        qvel, xquat = data.qvel, placed.xquat
        self._time[0] = data.time
        source = np.concatenate((self._time, placed.xpos.ravel(), xquat.ravel(), data.qpos, qvel, _ZERO))
        values: Floats = source[self._gather]
        for start, dof, body in self._spins:
            mujoco.mju_rotVecQuat(values[start : start + 3], qvel[dof : dof + 3], xquat[body])
        return SceneState(self.layout, values, self._read_native(data) if native else None)

    def write(self, state: SceneState, data: mujoco.MjData) -> None:
        """Put `data` into `state` and run `mj_forward`.

        Where `state.native` fits this model and MuJoCo version (see `fits`) the restore is exact: stepping
        continues bit-equal. Otherwise time, free and mocap root poses, joints and their velocities are set
        by name; controls and actuator activations stay as they are, the solver's warm start is cleared, and
        roots that the model itself places are left where they are.

        Raises:
            ReplayError: names do not match; the message lists every one, on both sides. `data` is unchanged.
            InputError: a value is not finite or a quaternion has no unit norm. `data` is unchanged.
        """
        vector = self._native_vector(state.native)
        if vector is None:
            self._write_named(state, data)
            return
        mujoco.mj_setState(self.model, data, vector, self._state_kind)
        mujoco.mj_forward(self.model, data)
        # Once more, because in some MuJoCo versions mj_forward itself moves the solver's warm start.
        mujoco.mj_setState(self.model, data, vector, self._state_kind)

    def fits(self, native: bytes | None) -> bool:
        """Whether `write` restores these bytes exactly: whole, of this model's structure and version."""
        return self._native_vector(native) is not None

    def unmatched(self, layout: SceneLayout) -> tuple[list[str], list[str]]:
        """Names that stop a write by name: those only in `layout`, and those that move only in this model.

        Names are `entity` or `entity/joint <name>`. Links are not needed for writing and are not compared.
        """
        theirs = {entity.name: set(entity.joint_names) for entity in layout.entities}
        ours = {part.layout.name: part for part in self._parts}
        captured, local = [], []
        for name, joints in theirs.items():
            if name not in ours:
                captured.append(name)
                continue
            known = set(ours[name].layout.joint_names)
            captured += [f"{name}/joint {joint}" for joint in sorted(joints - known)]
            local += [f"{name}/joint {joint}" for joint in sorted(known - joints)]
        local += [name for name, part in ours.items() if name not in theirs and part.moves]
        return captured, local

    def _placed_copy(self, data: mujoco.MjData) -> mujoco.MjData:
        scratch = self._scratch
        scratch.qpos[:] = data.qpos
        if self.model.nmocap:
            scratch.mocap_pos[:] = data.mocap_pos
            scratch.mocap_quat[:] = data.mocap_quat
        mujoco.mj_kinematics(self.model, scratch)
        return scratch

    def _read_native(self, data: mujoco.MjData) -> bytes:
        mujoco.mj_getState(self.model, data, self._state_vector, self._state_kind)
        return self._native_header + self._state_vector.tobytes()

    def _native_vector(self, native: bytes | None) -> Floats | None:
        header = self._native_header
        if native is None or not native.startswith(header):
            return None
        if len(native) != len(header) + self._state_vector.nbytes:
            return None
        vector = np.frombuffer(native[len(header) :], np.float64)  # sliced: a fresh, aligned copy
        return vector if np.isfinite(vector).all() else None

    def _write_named(self, state: SceneState, data: mujoco.MjData) -> None:
        plan = self._plan(state.layout)
        values = state.values
        _check_values(state, plan)
        data.time = values[0]
        data.qpos[plan.qpos_to] = values[plan.qpos_from]
        data.qvel[plan.qvel_to] = values[plan.qvel_from]
        inverse = np.empty(4)
        for start, dof in plan.spins:
            mujoco.mju_negQuat(inverse, values[start + 3 : start + 7])
            mujoco.mju_rotVecQuat(data.qvel[dof + 3 : dof + 6], values[start + 10 : start + 13], inverse)
        for start, mocap in plan.mocaps:
            data.mocap_pos[mocap] = values[start : start + 3]
            data.mocap_quat[mocap] = values[start + 3 : start + 7]
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.model, data)

    def _plan(self, layout: SceneLayout) -> _WritePlan:
        if self._last_plan is None or self._last_plan.layout is not layout:
            captured, local = self.unmatched(layout)
            if captured or local:
                raise ReplayError(
                    f"the state (of {layout.source or 'an unnamed source'}) does not fit this model: only in "
                    f"the state: {', '.join(captured) or 'nothing'}; only in the model: "
                    f"{', '.join(local) or 'nothing'}. Give the model that the state was captured from, or "
                    "one with the same names"
                )
            self._last_plan = _write_plan(layout, self._parts)
        return self._last_plan


@dataclass(frozen=True)
class _EntityPart:
    """Where one entity lives in the model; addresses are -1 where it has no free joint or no mocap."""

    layout: EntityLayout
    bodies: list[int]  # of the links; the root first
    joints: list[int]  # of the scalar joints
    qpos_address: int
    dof_address: int
    mocap: int
    joint_qpos: list[int]
    joint_dofs: list[int]

    @property
    def moves(self) -> bool:
        return bool(self.joints) or self.dof_address >= 0 or self.mocap >= 0


@dataclass(frozen=True)
class _WritePlan:
    """Which values of states of one layout go where in MuJoCo's vectors."""

    layout: SceneLayout
    qpos_to: Indices
    qpos_from: Indices
    qvel_to: Indices
    qvel_from: Indices
    spins: list[tuple[int, int]]  # start of a free entity's block, its first dof
    mocaps: list[tuple[int, int]]  # start of a mocap entity's block, its mocap id
    quaternions: Indices  # (Q, 4)


def _entity_parts(model: mujoco.MjModel) -> list[_EntityPart]:
    body_names = _names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    joint_names = _names(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt, "unnamed_joint")
    parts = []
    for root in range(1, model.nbody):
        if model.body_parentid[root] == 0:
            bodies = [body for body in range(1, model.nbody) if model.body_rootid[body] == root]
            parts.append(_entity_part(model, bodies, body_names, joint_names))
    return parts


def _entity_part(
    model: mujoco.MjModel, bodies: list[int], body_names: list[str], joint_names: list[str]
) -> _EntityPart:
    qpos_address = dof_address = -1
    joints = []
    for joint in np.flatnonzero(np.isin(model.jnt_bodyid, bodies)):
        kind = model.jnt_type[joint]
        if kind == mujoco.mjtJoint.mjJNT_BALL:
            raise Unsupported(
                f"joint {joint_names[joint]!r} is a ball joint; scene states hold scalar joints: "
                "use three hinges in its place"
            )
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            qpos_address, dof_address = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
        else:
            joints.append(int(joint))
    layout = EntityLayout(
        body_names[bodies[0]],
        tuple(joint_names[joint] for joint in joints),
        tuple(body_names[body] for body in bodies),
    )
    return _EntityPart(
        layout,
        bodies,
        joints,
        qpos_address,
        dof_address,
        int(model.body_mocapid[bodies[0]]),
        [int(model.jnt_qposadr[joint]) for joint in joints],
        [int(model.jnt_dofadr[joint]) for joint in joints],
    )


def _names(model: mujoco.MjModel, kind: Any, count: int, prefix: str) -> list[str]:
    names = [mujoco.mj_id2name(model, kind, index) or "" for index in range(count)]
    taken = set(names)
    for index, name in enumerate(names):
        if not name:
            name = f"{prefix}_{index}"
            while name in taken:
                name += "_"
            names[index] = name
            taken.add(name)
    return names


def _gather_index(model: mujoco.MjModel, parts: list[_EntityPart]) -> Indices:
    """For each value of a state, where it lies in (time, xpos, xquat, qpos, qvel, one zero) end to end."""
    xpos = 1
    xquat = xpos + 3 * model.nbody
    qpos = xquat + 4 * model.nbody
    qvel = qpos + model.nq
    zero = qvel + model.nv

    def pose(body: int) -> list[int]:
        return [xpos + 3 * body + axis for axis in range(3)] + [xquat + 4 * body + axis for axis in range(4)]

    index = [0]
    for part in parts:
        free = part.dof_address >= 0
        index += pose(part.bodies[0])
        index += [qvel + part.dof_address + axis if free else zero for axis in range(6)]
        index += [qpos + address for address in part.joint_qpos]
        index += [qvel + address for address in part.joint_dofs]
        for body in part.bodies:
            index += pose(body)
    return np.array(index, np.intp)


def _write_plan(layout: SceneLayout, parts: list[_EntityPart]) -> _WritePlan:
    qpos: list[tuple[int, int]] = []
    qvel: list[tuple[int, int]] = []
    quaternions: list[list[int]] = []
    spins, mocaps = [], []
    ours = {part.layout.name: part for part in parts}
    for entity in layout.entities:
        start, part = layout.offsets[entity.name], ours[entity.name]
        quaternions += _quaternion_indices(entity, start)
        if part.dof_address >= 0:
            qpos += [(part.qpos_address + axis, start + axis) for axis in range(POSE_SIZE)]
            qvel += [(part.dof_address + axis, start + POSE_SIZE + axis) for axis in range(3)]
            spins.append((start, part.dof_address))
        if part.mocap >= 0:
            mocaps.append((start, part.mocap))
        place = {name: index for index, name in enumerate(entity.joint_names)}
        positions = start + POSE_SIZE + VELOCITY_SIZE
        velocities = positions + len(place)
        for name, address, dof in zip(part.layout.joint_names, part.joint_qpos, part.joint_dofs, strict=True):
            qpos.append((address, positions + place[name]))
            qvel.append((dof, velocities + place[name]))
    return _WritePlan(
        layout, *_columns(qpos), *_columns(qvel), spins, mocaps, np.array(quaternions, np.intp).reshape(-1, 4)
    )


def _quaternion_indices(entity: EntityLayout, start: int) -> list[list[int]]:
    links = start + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
    poses = [start, *range(links, links + POSE_SIZE * len(entity.link_names), POSE_SIZE)]
    return [[pose + 3, pose + 4, pose + 5, pose + 6] for pose in poses]


def _columns(pairs: list[tuple[int, int]]) -> tuple[Indices, Indices]:
    table = np.array(pairs, np.intp).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()


def _check_values(state: SceneState, plan: _WritePlan) -> None:
    """As `SceneState.check`, fast where all is well."""
    values = state.values
    norms = np.linalg.norm(values[plan.quaternions], axis=1)
    if np.isfinite(values).all() and (np.abs(norms - 1.0) <= NORM_TOLERANCE).all():
        return
    state.check()
    raise InputError(f"the state's time is {values[0]} s; it must be finite")


def _native_header(model: mujoco.MjModel, size: int) -> bytes:
    """One JSON line that says what the float64 vector after it is and which model it fits."""
    header = {
        "format": STATE_NAME,
        "mujoco": mujoco.__version__,
        "size": size,
        "model": _structure_digest(model),
    }
    return json.dumps(header, sort_keys=True).encode() + b"\n"


def _structure_digest(model: mujoco.MjModel) -> str:
    """16 hex digits over sizes and names: equal for models whose state vectors mean the same."""
    sizes = [model.nq, model.nv, model.na, model.nu, model.nmocap, model.neq, model.nuserdata, model.nplugin]
    bodies = _names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    joints = _names(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt, "unnamed_joint")
    text = json.dumps([[int(size) for size in sizes], bodies, joints])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
