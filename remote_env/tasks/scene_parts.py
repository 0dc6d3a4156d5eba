"""Where the entities of a MuJoCo model lie in its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from remote_env.errors import Unsupported
from remote_env.state import EntityLayout

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class EntityPart:
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
        """Whether a state says where it is; anything else stands where its model puts it."""
        return bool(self.joints) or self.floats

    @property
    def floats(self) -> bool:
        """Whether a state places its root."""
        return self.dof_address >= 0 or self.mocap >= 0


def entity_parts(model: mujoco.MjModel) -> list[EntityPart]:
    """The children of the world body, each with its subtree; Unsupported when one has a ball joint."""
    body_names = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    joint_names = object_names(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt, "unnamed_joint")
    parts = []
    for root in range(1, model.nbody):
        if model.body_parentid[root] == 0:
            bodies = [body for body in range(1, model.nbody) if model.body_rootid[body] == root]
            parts.append(_entity_part(model, bodies, body_names, joint_names))
    return parts


def _entity_part(model: mujoco.MjModel, bodies: list[int], body_names: list[str], joint_names: list[str]) -> EntityPart:
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
    return EntityPart(
        layout,
        bodies,
        joints,
        qpos_address,
        dof_address,
        int(model.body_mocapid[bodies[0]]),
        [int(model.jnt_qposadr[joint]) for joint in joints],
        [int(model.jnt_dofadr[joint]) for joint in joints],
    )


def object_names(model: mujoco.MjModel, kind: Any, count: int, prefix: str) -> list[str]:
    """The names of the first `count` objects of a kind; those without get `<prefix>_<id>`, never a taken name."""
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


def gather_index(model: mujoco.MjModel, parts: list[EntityPart]) -> Indices:
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
