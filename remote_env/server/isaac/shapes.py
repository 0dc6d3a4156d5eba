"""What an Isaac Lab scene looks like: the primitives in its USD stage, body by body. Needs `pxr`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env import poses
from remote_env.errors import InputError
from remote_env.state import Floats, Shape

GREY = (0.6, 0.6, 0.6, 1.0)
_HALF = float(np.sqrt(0.5))
# From the z axis, which our capsules and cylinders lie along, to the axis that a USD one names: wxyz.
_AXES = {"X": (_HALF, 0.0, _HALF, 0.0), "Y": (_HALF, -_HALF, 0.0, 0.0), "Z": (1.0, 0.0, 0.0, 0.0)}
_COLOURS = ("diffuseColor", "diffuse_color_constant", "diffuse_tint")  # of USD's own preview surface, and of MDL


@dataclass
class EntityPrims:
    """The prims of one entity in the first environment.

    Attributes:
        entity: its name.
        bodies: link name -> its prim.
        joints: joint name -> its prim's path.
    """

    entity: str
    bodies: dict[str, Any] = field(default_factory=dict)
    joints: dict[str, str] = field(default_factory=dict)


def find_prims(stage: Any, entity: str, path: str, links: Sequence[str], joints: Sequence[str]) -> EntityPrims:
    """The prims of an entity.

    Args:
        stage: `pxr.Usd.Stage`.
        entity: its name.
        path: of its prim; a pattern for all environments counts for the first.
        links: its bodies' names.
        joints: its joints' names.
    """
    found = EntityPrims(entity)
    root = stage.GetPrimAtPath(path.replace("[^/]+", "0").replace(".*", "0"))
    for prim in _below(root) if root else ():
        name = prim.GetName()
        if "PhysicsRigidBodyAPI" in prim.GetAppliedSchemas() and (name in links or len(links) == 1):
            found.bodies.setdefault(name if name in links else links[0], prim)
        elif prim.GetTypeName().startswith("Physics") and name in joints:
            found.joints[name] = str(prim.GetPath())
    return found


def body_shapes(prims: EntityPrims) -> tuple[list[Shape], list[str]]:
    """The primitives that an entity's bodies carry, and in words what else there is."""
    shapes: list[Shape] = []
    notes: list[str] = []
    for link, body in prims.bodies.items():
        seen: list[Shape] = []
        hidden: list[Shape] = []
        for prim in _own_geometry(body):
            try:
                made = _shape(prims.entity, link, body, prim)
            except InputError as error:
                notes.append(f"{prims.entity}/{link}: {prim.GetTypeName()} {prim.GetName()} is left out: {error}")
                continue
            (seen if _is_seen(prim) else hidden).append(made)
        shapes += seen or hidden
    return shapes, notes


def _below(prim: Any) -> Iterator[Any]:
    from pxr import Usd

    yield from Usd.PrimRange(prim, Usd.TraverseInstanceProxies())


def _own_geometry(body: Any) -> Iterator[Any]:
    """What is drawn below a body and belongs to no other body below it."""
    from pxr import Usd, UsdGeom

    walk = iter(Usd.PrimRange(body, Usd.TraverseInstanceProxies()))
    for prim in walk:
        if prim != body and "PhysicsRigidBodyAPI" in prim.GetAppliedSchemas():
            walk.PruneChildren()
        elif prim.IsA(UsdGeom.Gprim):
            yield prim


def _is_seen(prim: Any) -> bool:
    from pxr import UsdGeom

    shown = UsdGeom.Imageable(prim)
    return shown.ComputeVisibility() != "invisible" and shown.ComputePurpose() in ("default", "render")


def _shape(entity: str, link: str, body: Any, prim: Any) -> Shape:
    """One primitive in its body's frame; InputError when it is none that we have."""
    metres = _metres_per_unit(prim)
    turn, scale, place = _world(prim)
    body_turn, _, body_place = _world(body)
    kind, size, axis = _size(prim, scale * metres)
    position = body_turn.T @ (place - body_place) * metres
    quaternion = poses.multiply(_quaternion(body_turn.T @ turn), _AXES[axis])
    return Shape(
        entity,
        link,
        kind,
        _rounded(size),
        _rounded((*position, *quaternion)),
        _rounded(_colour(prim)),
        is_solid="PhysicsCollisionAPI" in prim.GetAppliedSchemas(),
    )


def _size(prim: Any, scale: Floats) -> tuple[str, tuple[float, ...], str]:
    """Kind, size as `Shape` has it, and axis of a USD primitive."""
    from pxr import UsdGeom

    if prim.IsA(UsdGeom.Cube):
        return "box", tuple(UsdGeom.Cube(prim).GetSizeAttr().Get() / 2 * scale), "Z"
    if prim.IsA(UsdGeom.Sphere):
        _expect_equal(scale)
        return "sphere", (UsdGeom.Sphere(prim).GetRadiusAttr().Get() * scale[0],), "Z"
    for kind, schema in (("capsule", UsdGeom.Capsule), ("cylinder", UsdGeom.Cylinder)):
        if prim.IsA(schema):
            shape = schema(prim)
            axis = str(shape.GetAxisAttr().Get())
            along = "XYZ".index(axis)
            _expect_equal(np.delete(scale, along))
            radius, height = shape.GetRadiusAttr().Get(), shape.GetHeightAttr().Get()
            return kind, (radius * np.delete(scale, along)[0], height / 2 * scale[along]), axis
    raise InputError("it is no box, sphere, capsule or cylinder")


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    """What is noise of float32 is cut off: nanometres, and less than a colour's step."""
    return tuple(round(float(value), 7) for value in values)


def _expect_equal(scale: Floats) -> None:
    if np.ptp(scale) > 1e-6 * scale.max():
        raise InputError(f"its scale {scale.tolist()} makes another shape of it")


def _metres_per_unit(prim: Any) -> float:
    from pxr import UsdGeom

    return float(UsdGeom.GetStageMetersPerUnit(prim.GetStage()))


def _world(prim: Any) -> tuple[Floats, Floats, Floats]:
    """Rotation (3, 3) that acts on columns, scale (3,) and place (3,) of a prim on its stage."""
    from pxr import Usd, UsdGeom

    matrix = np.array(UsdGeom.Imageable(prim).ComputeLocalToWorldTransform(Usd.TimeCode.Default()), np.float64)
    scale = np.linalg.norm(matrix[:3, :3], axis=1)
    if scale.min() <= 0:
        raise InputError("its scale is 0")
    turn = (matrix[:3, :3] / scale[:, None]).T
    if np.abs(turn @ turn.T - np.eye(3)).max() > 1e-4 or np.linalg.det(turn) < 0:
        raise InputError("it is sheared or mirrored")
    return turn, scale, matrix[3, :3]


def _quaternion(turn: Floats) -> Floats:
    """(4,) wxyz of a rotation (3, 3): the eigenvector of Bar-Itzhack's matrix (2000), robust to rounding."""
    (a, b, c), (d, e, f), (g, h, i) = turn
    matrix = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    quaternion: Floats = np.linalg.eigh(matrix)[1][:, -1]
    return quaternion if quaternion[0] >= 0 else -quaternion


def _colour(prim: Any) -> tuple[float, ...]:
    """Rgba of a prim: its own display colour, or what its material says."""
    from pxr import UsdGeom, UsdShade

    shown = UsdGeom.Gprim(prim)
    own = shown.GetDisplayColorAttr().Get()
    if own:
        opacity = shown.GetDisplayOpacityAttr().Get()
        return (*_unit(own[0]), float(opacity[0]) if opacity else 1.0)
    material = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0]
    for part in _below(material.GetPrim()) if material else ():
        shader = UsdShade.Shader(part)
        for name in _COLOURS if shader else ():
            value = shader.GetInput(name).Get() if shader.GetInput(name) else None
            if value is not None:
                return (*_unit(value), 1.0)
    return GREY


def _unit(colour: Any) -> tuple[float, ...]:
    values: NDArray[np.float64] = np.clip(np.array(colour, np.float64), 0.0, 1.0)
    return tuple(values.tolist())
