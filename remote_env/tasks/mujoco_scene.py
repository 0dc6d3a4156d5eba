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

import functools
import hashlib
import json
from collections.abc import Collection

import mujoco
import numpy as np

from remote_env.errors import ReplayError
from remote_env.poses import rotate
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, Floats, SceneDescription, SceneLayout, SceneState
from remote_env.tasks.scene_parts import entity_parts, gather_index, object_names
from remote_env.tasks.scene_shapes import describe_model
from remote_env.tasks.scene_writing import SceneWriter

STATE_NAME = "mjSTATE_INTEGRATION"  # stored by name: its integer differs between MuJoCo versions
_ROWS_AT_ONCE = 4096  # of a batch; bounds the memory that it takes
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
        self._parts = entity_parts(model)
        self.layout = SceneLayout(tuple(part.layout for part in self._parts), source=f"mujoco {mujoco.__version__}")
        self._gather = gather_index(model, self._parts)
        self._spins = [
            (self.layout.offsets[part.layout.name] + POSE_SIZE + 3, part.dof_address + 3, part.bodies[0])
            for part in self._parts
            if part.dof_address >= 0
        ]
        # Roots that their own hinges and slides move, as those of planar walkers: their velocity is in no vector.
        self._jointed = [
            (self.layout.offsets[part.layout.name] + POSE_SIZE, part.bodies[0])
            for part in self._parts
            if part.dof_address < 0 and part.bodies[0] in model.jnt_bodyid
        ]
        self._jacobian = np.zeros((6, model.nv))
        self._scratch = mujoco.MjData(model)
        self._time = np.zeros(1)
        self._state_kind = int(getattr(mujoco.mjtState, STATE_NAME))
        self._state_vector = np.zeros(mujoco.mj_stateSize(model, self._state_kind))
        self._native_header = _native_header(model, self._state_vector.size)
        self._last_writer: SceneWriter | None = None

    def read(self, data: mujoco.MjData, *, native: bool = False, kinematics_current: bool = False) -> SceneState:
        """The scene as `data` holds it; `data` is not changed and the result shares no memory with it.

        Args:
            data: of this scene's model.
            native: also carry the bytes that restore this state exactly.
            kinematics_current: the caller knows that `data.xpos` and `data.xquat` belong to `data.qpos`, as
                after `mj_forward` or `mj_step1`. Otherwise (after a plain `mj_step`) they are computed in a
                scratch copy.
        """
        placed = data if kinematics_current and not self._jointed else self._placed_copy(data)
        qvel, xquat = data.qvel, placed.xquat
        self._time[0] = data.time
        source = np.concatenate((self._time, placed.xpos.ravel(), xquat.ravel(), data.qpos, qvel, _ZERO))
        values: Floats = source[self._gather]
        for start, dof, body in self._spins:
            mujoco.mju_rotVecQuat(values[start : start + 3], qvel[dof : dof + 3], xquat[body])
        self._set_jointed(values, placed, qvel)
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

    @functools.cached_property
    def moving(self) -> tuple[str, ...]:
        """Entities that a state must place: those with joints, a free joint or a mocap body."""
        return tuple(part.layout.name for part in self._parts if part.moves)

    @functools.cached_property
    def floating(self) -> tuple[str, ...]:
        """Entities whose root a state places: those with a free joint or a mocap body."""
        return tuple(part.layout.name for part in self._parts if part.floats)

    def rest_pose(self, name: str) -> tuple[float, ...]:
        """(7,) where the model itself has the root of an entity, in the world frame."""
        data = mujoco.MjData(self.model)
        mujoco.mj_kinematics(self.model, data)
        body = next(part.bodies[0] for part in self._parts if part.layout.name == name)
        return (*map(float, data.xpos[body]), *map(float, data.xquat[body]))

    def check_movable(self, names: Collection[str]) -> None:
        """Make sure that these entities have a fixed root body, which `writer` may move.

        Raises:
            ReplayError: one is placed by states anyway, or its root body has joints of its own.
        """
        for part in self._parts:
            jointed = part.bodies[0] in self.model.jnt_bodyid
            if part.layout.name in names and (part.floats or jointed):
                raise ReplayError(
                    f"the base of {part.layout.name!r} cannot be moved: "
                    + ("states place it anyway" if part.floats else "its root body has joints of its own")
                    + "; leave out move_base"
                )

    def writer(self, layout: SceneLayout, *, moved: Collection[str] = ()) -> SceneWriter:
        """What puts states of `layout` into this model, whether or not all names match; see `SceneWriter`."""
        return SceneWriter(self.model, self._parts, layout, moved=moved)

    def show(self, writer: SceneWriter, values: Floats, data: mujoco.MjData) -> Floats:
        """Put `data` into each of many states in turn; what the model makes of them, without dynamics.

        Args:
            writer: of the states' layout, from `writer`.
            values: (T, writer.layout.size), checked; see `SceneWriter.check`.
            data: of this scene's model; left in the last state, with body poses up to date (`mj_kinematics`).

        Returns:
            (T, self.layout.size) float64, as `read` after each.
        """
        if len(values) == 1:  # the arithmetic of many has a price of its own
            writer.set(values[0], data)
            mujoco.mj_kinematics(self.model, data)
            return self.read(data, kinematics_current=True).values[None]
        shown = np.empty((len(values), self.layout.size))
        for start in range(0, len(values), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            shown[rows] = self._show_rows(writer, values[rows], data)
        return shown

    def _show_rows(self, writer: SceneWriter, values: Floats, data: mujoco.MjData) -> Floats:
        qpos, qvel, xpos, xquat = writer.place(values, data)
        zeros = np.zeros((len(values), 1))
        shown = np.concatenate((values[:, :1], xpos, xquat, qpos, qvel, zeros), axis=1)[:, self._gather]
        for start, dof, body in self._spins:
            shown[:, start : start + 3] = rotate(xquat[:, 4 * body : 4 * body + 4], qvel[:, dof : dof + 3])
        if self._jointed:
            for row in range(len(values)):
                self._scratch.qpos[:] = qpos[row]
                mujoco.mj_kinematics(self.model, self._scratch)
                self._set_jointed(shown[row], self._scratch, qvel[row])
        return shown

    def _set_jointed(self, values: Floats, placed: mujoco.MjData, qvel: Floats) -> None:
        """The velocities of roots with joints of their own, by the Jacobian of their frame's origin."""
        if self._jointed:
            mujoco.mj_comPos(self.model, placed)  # what the Jacobian reads besides the kinematics
        for start, body in self._jointed:
            mujoco.mj_jacBody(self.model, placed, self._jacobian[:3], self._jacobian[3:], body)
            values[start : start + VELOCITY_SIZE] = self._jacobian @ qvel

    def describe(self) -> SceneDescription:
        """What this model looks like, as primitives of its entities; see `describe_model`."""
        return describe_model(self.model, self._parts)

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
        writer = self._strict_writer(state.layout)
        writer.check(state.values)
        writer.set(state.values, data)
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.model, data)

    def _strict_writer(self, layout: SceneLayout) -> SceneWriter:
        if self._last_writer is None or self._last_writer.layout is not layout:
            captured, local = self.unmatched(layout)
            if captured or local:
                raise ReplayError(
                    f"the state (of {layout.source or 'an unnamed source'}) does not fit this model: only in "
                    f"the state: {', '.join(captured) or 'nothing'}; only in the model: "
                    f"{', '.join(local) or 'nothing'}. Give the model that the state was captured from, or "
                    "one with the same names"
                )
            self._last_writer = self.writer(layout)
        return self._last_writer


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
    bodies = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    joints = object_names(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt, "unnamed_joint")
    text = json.dumps([[int(size) for size in sizes], bodies, joints])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
