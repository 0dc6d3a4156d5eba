"""A scene's description from its USD stage and from the MJCF that its solver wrote."""

from __future__ import annotations

from typing import Any

from remote_env.server.isaac.mjcf import own_names, rename
from remote_env.server.isaac.scene import IsaacScene, Part
from remote_env.server.isaac.shapes import EntityPrims, body_shapes, find_prims
from remote_env.server.isaac.transfer import to_host
from remote_env.state import SceneDescription


def describe(env: Any, scene: IsaacScene, mjcf: str) -> SceneDescription:
    """What the first environment looks like.

    Args:
        env: unwrapped.
        scene: of it.
        mjcf: as the solver wrote it; "" where none did.
    """
    found = [_prims_of(env, part) for part in scene.parts]
    shapes, notes = [], []
    for prims, part in zip(found, scene.parts, strict=True):
        made, told = body_shapes(prims)
        shapes += made
        notes += told
        if missing := sorted(set(part.layout.link_names) - set(prims.bodies)):
            notes.append(f"{part.layout.name}: no bodies {', '.join(missing)} were found in the stage")
    if mjcf:
        roots = {part.layout.name: part.layout.link_names[0] for part in scene.parts}
        mjcf = rename(mjcf, own_names(found, roots), to_host(env.scene.env_origins[:1])[0])
        notes.append("the MJCF is that of Newton's solver: what only is seen and does not collide is not in it")
    else:
        notes.append("no MuJoCo solver runs here, so there is no MJCF; what does not move is not described")
    return SceneDescription(tuple(shapes), mjcf, tuple(notes))


def _prims_of(env: Any, part: Part) -> EntityPrims:
    layout, cfg = part.layout, part.asset.cfg
    if part.index is not None:
        cfg = cfg.rigid_objects[layout.link_names[0]]
    return find_prims(env.sim.stage, layout.name, cfg.prim_path, layout.link_names, layout.joint_names)
