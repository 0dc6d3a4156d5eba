"""The MJCF that Newton's MuJoCo solver writes, with the scene's own names and in its environment's frame."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from remote_env.server.isaac.shapes import EntityPrims

FREE_JOINT = "_free_joint"  # what Newton calls a body's free joint, after its name
_NAMED = ("name", "joint", "joint1", "joint2", "body", "body1", "body2", "target")


def own_names(entities: Sequence[EntityPrims], roots: Mapping[str, str]) -> dict[str, str]:
    """What Newton calls bodies and joints -> what states call them.

    An entity's root body gets the entity's name, as a MuJoCo model's entities have it; the others their own where no
    other part has that name, else "entity/name".

    Args:
        entities: with their prims.
        roots: entity -> the name of its root link.
    """
    wanted: list[tuple[str, str, str]] = []  # Newton's name, entity, name
    for prims in entities:
        for link, body in prims.bodies.items():
            is_root = link == roots[prims.entity]
            wanted.append((_label(str(body.GetPath())), prims.entity, prims.entity if is_root else link))
        wanted += [(_label(path), prims.entity, joint) for joint, path in prims.joints.items()]
    names = [name for _, _, name in wanted]
    found = {
        label: name if name == entity or names.count(name) == 1 else f"{entity}/{name}"
        for label, entity, name in wanted
    }
    return found | {f"{label}{FREE_JOINT}": f"{name}{FREE_JOINT}" for label, name in found.items()}


def rename(text: str, names: Mapping[str, str], origin: ArrayLike) -> str:
    """The model with other names, everything moved from the world into the frame of the first environment.

    Args:
        text: MJCF.
        names: old -> new, of bodies and joints.
        origin: (3,) of the first environment in the world [m].
    """
    root = ElementTree.fromstring(text)  # noqa: S314  Newton wrote it, in this process
    for element in root.iter():
        for key in _NAMED:
            value = element.get(key, "")
            if value in names and element.tag != "geom":
                element.set(key, names[value])
    for part in root.findall("./worldbody/*"):
        position = np.array(part.get("pos", "0 0 0").split(), np.float64) - np.asarray(origin, np.float64)
        part.set("pos", " ".join(f"{value:.9g}" for value in position))
    return ElementTree.tostring(root, encoding="unicode")


def _label(path: str) -> str:
    return path.replace("/", "_")
