"""What the local model thinks of captured states: bodies that touch or sink in, joints beyond their limits.

A capture does not say what touched on the far end, unless an info says so (`"contacts"`: pairs of names). What the
local model sees is therefore told as its own view: contacts that are there all the time, such as an object that
rests on a table, apart from those that come and go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from remote_env.state import Floats
from remote_env.tasks.scene_parts import object_names
from remote_env.tasks.scene_writing import SceneWriter

MAX_PAIRS = 1000  # of one state, the deepest: a scene in which everything overlaps has millions
THROUGHOUT = 0.95  # of the states: a contact that flickers is still one that is always there
LIMIT_TOLERANCE = 1e-6  # [rad or m] beyond a joint's range that is rounding


@dataclass(frozen=True)
class LocalContact:
    """Two bodies that touch in the local model.

    Attributes:
        first: "entity" or "entity/link" of the local model, "world" for what stands still.
        second: likewise.
        max_depth_m: how far they sink into each other at the most [m].
        at_state: where that is.
        states: in how many states they touch.
        deep_states: in how many they sink in by more than the report's threshold.
        first_state: the first of those in which they touch.
        throughout: whether they touch all the time.
        is_told: whether the far end told of it; None where it tells of no contacts.
    """

    first: str
    second: str
    max_depth_m: float
    at_state: int
    states: int
    deep_states: int
    first_state: int
    throughout: bool
    is_told: bool | None = None


@dataclass(frozen=True)
class LimitViolation:
    """A joint that captured states put beyond its range in the local model.

    Attributes:
        joint: "entity/joint" of the local model.
        max_excess: how far beyond at the most [rad or m].
        at_state: where that is.
        states: in how many.
        limits: lower and upper [rad or m].
    """

    joint: str
    max_excess: float
    at_state: int
    states: int
    limits: tuple[float, float]


def find_contacts(
    model: mujoco.MjModel, writer: SceneWriter, values: Floats, *, deeper_than_m: float
) -> tuple[LocalContact, ...]:
    """Every pair of bodies that touches in any of (T, writer.layout.size) states, the deepest first."""
    pairs, states, depths = _touching(model, writer, values)
    order = np.argsort(pairs, kind="stable")
    starts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    names = body_names(model)
    found = []
    for start, mine in zip(starts, np.split(order, starts)[1:], strict=True):
        first, second = divmod(int(pairs[order[start]]), model.nbody)
        contact = _summary(states[mine], depths[mine], len(values), deeper_than_m)
        found.append(LocalContact(names[first], names[second], *contact))
    return tuple(sorted(found, key=lambda contact: -contact.max_depth_m))


def _summary(
    states: NDArray[np.intp], depths: Floats, total: int, deeper_than_m: float
) -> tuple[float, int, int, int, int, bool]:
    deepest, touched = int(np.argmax(depths)), np.unique(states)
    deep = np.unique(states[depths > deeper_than_m])
    throughout = len(touched) >= THROUGHOUT * total
    return float(depths[deepest]), int(states[deepest]), len(touched), len(deep), int(touched[0]), throughout


def _touching(
    model: mujoco.MjModel, writer: SceneWriter, values: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """(N,) pairs of bodies as first * nbody + second, (N,) state and (N,) depth [m]: each pair's deepest by state."""
    data = mujoco.MjData(model)
    pairs, states, depths = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)], [np.zeros(0)]
    for state, row in enumerate(values):
        writer.set(row, data)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        distances = np.array(data.contact.dist)
        touching = distances < 0
        geoms = np.array(data.contact.geom).reshape(-1, 2)[touching]
        whole = (geoms >= 0).all(axis=1)  # the others are of flexible bodies
        bodies = np.sort(model.geom_bodyid[geoms[whole]], axis=1).astype(np.intp)
        deepest = np.argsort(distances[touching][whole])
        _, first = np.unique((bodies[:, 0] * model.nbody + bodies[:, 1])[deepest], return_index=True)
        kept = np.sort(first)[:MAX_PAIRS]
        chosen = deepest[kept]
        pairs.append(bodies[chosen, 0] * model.nbody + bodies[chosen, 1])
        states.append(np.full(len(chosen), state))
        depths.append(-distances[touching][whole][chosen])
    return np.concatenate(pairs), np.concatenate(states), np.concatenate(depths)


def body_names(model: mujoco.MjModel) -> list[str]:
    """A name for each body: "entity" for a root, "entity/link" for those below, "world" for the world itself."""
    names = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    roots = [names[root] for root in model.body_rootid]
    return ["world"] + [
        name if name == root else f"{root}/{name}" for name, root in zip(names[1:], roots[1:], strict=True)
    ]


def joint_names(model: mujoco.MjModel) -> list[str]:
    """A name for each joint: "entity/joint"."""
    bodies = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    joints = object_names(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt, "unnamed_joint")
    return [f"{bodies[model.body_rootid[body]]}/{name}" for body, name in zip(model.jnt_bodyid, joints, strict=True)]


def find_limit_violations(model: mujoco.MjModel, writer: SceneWriter, values: Floats) -> tuple[LimitViolation, ...]:
    """Every joint that any of (T, writer.layout.size) states puts beyond its range, the furthest first."""
    scalar = (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE) | (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE)
    limited = np.flatnonzero(scalar & (model.jnt_limited != 0))
    positions = writer.vectors(values, mujoco.MjData(model))[0][:, model.jnt_qposadr[limited]]
    lower, upper = model.jnt_range[limited].T
    excess = np.maximum(lower - positions, positions - upper)
    names, found = joint_names(model), []
    for column in np.flatnonzero((excess > LIMIT_TOLERANCE).any(axis=0)):
        beyond, worst = excess[:, column], int(np.argmax(excess[:, column]))
        count = int((beyond > LIMIT_TOLERANCE).sum())
        limits = (float(lower[column]), float(upper[column]))
        found.append(LimitViolation(names[limited[column]], float(beyond[worst]), worst, count, limits))
    return tuple(sorted(found, key=lambda violation: -violation.max_excess))


def told_pairs(infos: Sequence[Mapping[str, Any]]) -> set[frozenset[str]] | None:
    """The pairs of names in any info's "contacts", or None where no info has them."""
    told = [info["contacts"] for info in infos if isinstance(info.get("contacts"), list)]
    if not told:
        return None
    pairs = [pair for pairs in told for pair in pairs if isinstance(pair, list)]
    return {frozenset(map(str, pair)) for pair in pairs if len(pair) == 2}
