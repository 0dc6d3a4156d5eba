"""Models made from what a capture says of its own scene: its simulator's MJCF, or its primitives.

A body made from primitives is a mocap body called "entity/link", which stands where the captured link stood: what such
a model shows is the capture itself, not what kinematics of one's own make of its joints.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import mujoco

from remote_env.errors import ReplayError
from remote_env.replay.foreign_mjcf import tamed
from remote_env.replay.propose import match_names
from remote_env.replay.targets import EntityMapping, LinkTarget
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, Shape

MARK = "remote_env_model"  # a text in the model: how it was made, which travels with it to other processes
ADDED = "remote_env_added"  # a text in a model that has bodies of ours
FROM_MJCF = "the capture's own MJCF"
FROM_SHAPES = "the capture's shapes"
_GEOMS = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
}
REFUSALS = (ValueError, RuntimeError, MemoryError)  # what MuJoCo raises where it accepts something not
_HIDDEN_GROUP = 3  # which MuJoCo does not draw unless told to
MAX_SHAPES = 1_000  # 2000 bodies take MuJoCo half a minute already
_SIZE = 1.5  # [m] of the scene that the free camera is to see; a description does not say where things stand


def make_own_model(description: SceneDescription | None) -> mujoco.MjModel:
    """The model "capture".

    Raises:
        ReplayError: the capture says nothing of its scene, or what it says names files, asks for too much, or is not
            accepted by MuJoCo.
    """
    if description is None or not (description.mjcf or description.shapes):
        notes = "; ".join(description.notes) if description else ""
        raise ReplayError(
            "the model 'capture' is made from the capture's own description of its scene, and this one has none"
            + (f" ({notes})" if notes else "")
            + "; record with description=env.get_scene_description(), or give an MJCF of your own"
        )
    if not description.mjcf:
        return compile_spec(_spec_of_shapes(description.shapes), FROM_SHAPES)
    return compile_spec(_spec_of_mjcf(description), FROM_MJCF)


def add_shapes(spec: Any, shapes: Iterable[Shape], entities: Collection[str]) -> None:
    """Add to an MjSpec the primitives of these entities; ReplayError where they are too many."""
    shapes = _checked(shapes)
    spec.add_text(name=ADDED, data="from a capture's shapes")
    bodies: dict[str, Any] = {}
    for shape in shapes:
        if shape.entity not in entities:
            continue
        name = body_name(shape.entity, shape.link)
        if name not in bodies:
            bodies[name] = spec.worldbody.add_body(name=name, mocap=True)
        _add_geom(bodies[name], shape)


def _checked(shapes: Iterable[Shape]) -> list[Shape]:
    known = list(shapes)
    if len(known) > MAX_SHAPES:
        raise ReplayError(f"the capture tells of {len(known)} shapes; up to {MAX_SHAPES} are drawn")
    return known


def _add_geom(body: Any, shape: Shape) -> None:
    """A primitive that is seen, and neither collides nor weighs."""
    body.add_geom(
        type=_GEOMS[shape.kind],
        size=[*shape.size, 0.0, 0.0][:3],
        pos=shape.pose[:3],
        quat=shape.pose[3:],
        rgba=shape.rgba,
        contype=0,
        conaffinity=0,
        mass=0,
    )


def body_name(entity: str, link: str) -> str:
    """What the body of a captured link is called in a model that was made from primitives."""
    return f"{entity}/{link}"


def own_rule(entity: EntityLayout, local: SceneLayout) -> EntityMapping | None:
    """How an entity becomes the bodies that were made from its primitives; None where there are none."""
    known = {other.name for other in local.entities}
    drawn = {link: body_name(entity.name, link) for link in entity.link_names if body_name(entity.name, link) in known}
    if not drawn:
        return None
    return EntityMapping(
        None,
        links={link: (LinkTarget(body),) for link, body in drawn.items()},
        ignore_joints=dict.fromkeys(entity.joint_names, "its links are placed one by one"),
        ignore_links=dict.fromkeys((link for link in entity.link_names if link not in drawn), "it has no primitives"),
    )


def made_from(model: mujoco.MjModel) -> str:
    """What a model of ours was made from, `FROM_MJCF` or `FROM_SHAPES`; "" for any other."""
    return _texts(model).get(MARK, "")


def has_added(model: mujoco.MjModel) -> bool:
    """Whether there are bodies in it that `add_shapes` made."""
    return ADDED in _texts(model)


def _texts(model: mujoco.MjModel) -> dict[str, str]:
    starts, sizes = model.text_adr, model.text_size
    return {
        mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_TEXT, index): bytes(
            model.text_data[starts[index] : starts[index] + sizes[index] - 1]
        ).decode()
        for index in range(model.ntext)
    }


def compile_spec(spec: Any, source: str) -> mujoco.MjModel:
    """The compiled model of an MjSpec; ReplayError says that it is `source` that MuJoCo does not accept."""
    try:
        model: mujoco.MjModel = spec.compile()
        return model
    except REFUSALS as error:
        raise ReplayError(f"MuJoCo does not accept {source}: {error}; give an MJCF of your own") from error


def _spec_of_shapes(shapes: Collection[Shape]) -> Any:
    spec = mujoco.MjSpec()
    spec.modelname = "capture"
    spec.add_text(name=MARK, data=FROM_SHAPES)
    add_shapes(spec, shapes, {shape.entity for shape in shapes})
    add_surroundings(spec)
    return spec


def _spec_of_mjcf(description: SceneDescription) -> Any:
    try:
        spec = mujoco.MjSpec.from_string(tamed(description.mjcf))
    except REFUSALS as error:
        raise ReplayError(
            f"MuJoCo does not accept the capture's own MJCF: {error}; give an MJCF of your own"
        ) from error
    spec.add_text(name=MARK, data=FROM_MJCF)
    _dress(spec, description.shapes)
    add_surroundings(spec)
    return spec


def _dress(spec: Any, shapes: Iterable[Shape]) -> None:
    """Draw bodies as their shapes say: a solver's MJCF has what collides, and no colours."""
    bodies = {body.name: body for body in spec.bodies}
    drawn: dict[str, dict[str, list[Shape]]] = {}
    for shape in _checked(shapes):
        drawn.setdefault(shape.entity, {}).setdefault(shape.link, []).append(shape)
    for entity, links in drawn.items():
        places = {match.captured: match.local for match in match_names(list(links), list(bodies)) if match.is_certain}
        if entity in bodies and entity not in places.values():  # its root goes by the entity's own name
            places.update(dict.fromkeys([link for link in links if link not in places][:1], entity))
        for link, place in places.items():
            for geom in bodies[place].geoms:
                geom.group = _HIDDEN_GROUP
            for shape in links[link]:
                _add_geom(bodies[place], shape)


def add_surroundings(spec: Any) -> None:
    """Add what a scene lacks to be looked at: a sky, a floor, a light, a camera."""
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.4, 0.4, 0.4], [0.5, 0.5, 0.5]
    spec.stat.extent, spec.stat.center = _SIZE, [0.0, 0.0, 0.3]
    if not any(texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX for texture in spec.textures):
        _add_sky(spec)
    _add_floor(spec)
    if not spec.lights:
        spec.worldbody.add_light(name="lamp", pos=[1.0, -1.0, 3.0], dir=[-0.3, 0.3, -1.0], diffuse=[0.6, 0.6, 0.6])
    if not spec.cameras:
        _add_camera(spec)


def _add_camera(spec: Any) -> None:
    """One that goes along with the first body, and never turns: a description does not say where things stand."""
    roots = list(spec.worldbody.bodies)
    jointed = [body for body in roots if body.bodies]
    (*jointed, *roots, spec.worldbody)[0].add_camera(
        name="overview",
        mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACK,
        pos=[1.2, -1.1, 1.0],
        xyaxes=[0.655, 0.756, 0.0, -0.363, 0.315, 0.877],
        fovy=45.0,
    )


def _add_sky(spec: Any) -> None:
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.82, 0.9],
        rgb2=[0.95, 0.96, 0.98],
        width=64,
        height=384,
    )


def _add_floor(spec: Any) -> None:
    spec.add_texture(
        name="tiles",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.55, 0.57, 0.6],
        rgb2=[0.62, 0.64, 0.67],
        width=256,
        height=256,
    )
    material = spec.add_material(name="floor", texrepeat=[8.0, 8.0])
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "tiles"
    planes = [geom for geom in spec.worldbody.geoms if geom.type == mujoco.mjtGeom.mjGEOM_PLANE]
    for plane in planes:
        plane.material, plane.rgba = "floor", [0.5, 0.5, 0.5, 1.0]
    if not planes:
        spec.worldbody.add_geom(
            name="floor",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[4.0, 4.0, 0.1],
            material="floor",
            contype=0,  # what was captured may lie lower
            conaffinity=0,
        )
