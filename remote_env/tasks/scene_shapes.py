"""What a MuJoCo model looks like, as primitives of its entities."""

from __future__ import annotations

import mujoco
import numpy as np

from remote_env.poses import compose
from remote_env.state import SceneDescription, Shape
from remote_env.tasks.scene_parts import EntityPart, object_names

_KINDS = {
    int(mujoco.mjtGeom.mjGEOM_BOX): ("box", 3),
    int(mujoco.mjtGeom.mjGEOM_SPHERE): ("sphere", 1),
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): ("capsule", 2),
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): ("cylinder", 2),
}
_PLANES = (int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_HFIELD))
_SHOWN_GROUPS = 3  # MuJoCo draws the groups below this one unless told otherwise
_THINNEST_M = 1e-4  # of the box around a flat mesh


def describe_model(model: mujoco.MjModel, parts: list[EntityPart]) -> SceneDescription:
    """The shapes of a model's entities: what it draws, or of a body that it does not draw, what collides.

    Meshes and ellipsoids become the boxes around them; what belongs to the world itself is left out. Both are noted.
    """
    names = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody, "unnamed_body")
    shapes, boxed = [], 0
    for part in parts:
        for body in part.bodies:
            for geom in _chosen_geoms(model, body):
                shapes.append(_shape(model, geom, part.layout.name, names[body]))
                boxed += int(model.geom_type[geom]) not in _KINDS
    notes = []
    if boxed:
        notes.append(f"{boxed} meshes or ellipsoids are told as the boxes around them")
    if (model.geom_bodyid == 0).any():
        notes.append("what belongs to the world itself, such as the floor, is left out")
    return SceneDescription(tuple(shapes), notes=tuple(notes))


def _chosen_geoms(model: mujoco.MjModel, body: int) -> list[int]:
    geoms = [int(geom) for geom in np.flatnonzero(model.geom_bodyid == body) if model.geom_type[geom] not in _PLANES]
    shown = [geom for geom in geoms if model.geom_group[geom] < _SHOWN_GROUPS and _rgba(model, geom)[3] > 0]
    return shown or geoms


def _shape(model: mujoco.MjModel, geom: int, entity: str, link: str) -> Shape:
    pose = np.concatenate([model.geom_pos[geom], model.geom_quat[geom]])
    known = _KINDS.get(int(model.geom_type[geom]))
    if known is not None:
        kind, count = known
        size = tuple(map(float, model.geom_size[geom, :count]))
    else:
        kind, size = "box", tuple(np.maximum(model.geom_aabb[geom, 3:], _THINNEST_M).tolist())
        pose = compose(pose, [*model.geom_aabb[geom, :3], 1.0, 0.0, 0.0, 0.0])
    is_solid = bool(model.geom_contype[geom] or model.geom_conaffinity[geom])
    return Shape(entity, link, kind, size, tuple(pose), _rgba(model, geom), is_solid)


def _rgba(model: mujoco.MjModel, geom: int) -> tuple[float, ...]:
    material = int(model.geom_matid[geom])
    colour = model.geom_rgba[geom] if material < 0 else model.mat_rgba[material]
    return tuple(float(value) for value in np.clip(colour, 0.0, 1.0))
