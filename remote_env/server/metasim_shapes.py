"""What a MetaSim scenario says of how its objects look. Never run on a MetaSim of today.

Read from the scenario's object configurations (`metasim/scenario/objects.py`): cubes, spheres, cylinders and bodies of
several boxes are shapes; whatever comes from a file is only named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from remote_env.state import SceneDescription, Shape


def describe_objects(scenario: Any) -> SceneDescription:
    """The shapes of a scenario's primitive objects, and a note for each entity that is none."""
    shapes: list[Shape] = []
    notes: list[str] = []
    for entity in (*scenario.robots, *scenario.objects):
        found = list(_shapes(entity))
        shapes += found
        if not found:
            paths = [getattr(entity, name, None) for name in ("mjcf_path", "urdf_path", "usd_path", "mesh_path")]
            notes.append(f"{entity.name}: its shapes are in {next(filter(None, paths), 'a file')}")
    return SceneDescription(tuple(shapes), "", tuple(notes))


def _shapes(entity: Any) -> Iterator[Shape]:
    color = getattr(entity, "color", None) or (0.5, 0.5, 0.5)
    common: dict[str, Any] = {
        "entity": entity.name,
        "link": entity.name,
        "rgba": (*color[:3], 1.0),
        "is_solid": bool(getattr(entity, "collision_enabled", True)),
    }
    if hasattr(entity, "boxes"):
        for box in entity.boxes:
            pose = (*box.get("pos", (0.0, 0.0, 0.0)), *box.get("quat", (1.0, 0.0, 0.0, 0.0)))
            yield Shape(kind="box", size=tuple(box["half_size"]), pose=pose, **common)
    elif hasattr(entity, "half_size"):
        yield Shape(kind="box", size=tuple(entity.half_size), **common)
    elif hasattr(entity, "radius") and hasattr(entity, "height"):
        yield Shape(kind="cylinder", size=(entity.radius, entity.height / 2), **common)
    elif hasattr(entity, "radius"):
        yield Shape(kind="sphere", size=(entity.radius,), **common)
