"""Captures whose quaternions are in another order than they should be, as far as that can be told.

What can: a root that says x, y, z, w while its own first link says w, x, y, z (or the other way round); and a capture
all of whose quaternions are x, y, z, w, once a model's kinematics say otherwise, which needs an entity with captured
links or a fixed base. Loose objects without links look as well turned one way as the other.
"""

from __future__ import annotations

import numpy as np

from remote_env.errors import ReplayError
from remote_env.poses import wxyz_from_xyzw
from remote_env.replay.fidelity import rotation_error
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, Floats, SceneLayout

_WRONG_RAD, _RIGHT_RAD = 0.3, 0.05  # between them it is something else


def check_roots(layout: SceneLayout, values: Floats) -> None:
    """Make sure that roots and their own first links are turned alike.

    Args:
        layout: of the states.
        values: (T, layout.size).

    Raises:
        ReplayError: an entity's root is in another order than its first link, by the capture's own numbers.
    """
    for entity in layout.entities:
        if not entity.link_names:
            continue
        start = layout.offsets[entity.name]
        first = start + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
        root, link = values[:, start + 3 : start + 7], values[:, first + 3 : first + 7]
        if not _looks_turned(root, link):
            continue
        raise ReplayError(
            f"the capture mixes orders of quaternions: the root of {entity.name!r} is {_said(root[0])} and its link "
            f"{entity.link_names[0]!r} is {_said(link[0])}, which is the same rotation as x, y, z, w. States hold "
            "w, x, y, z: convert the capture (remote_env.poses.wxyz_from_xyzw)"
        )


def _looks_turned(first: Floats, second: Floats) -> bool:
    if rotation_error(first, second).max() < _WRONG_RAD:
        return False
    return bool(
        rotation_error(wxyz_from_xyzw(first), second).max() < _RIGHT_RAD
        or rotation_error(first, wxyz_from_xyzw(second)).max() < _RIGHT_RAD
    )


def _said(quaternion: Floats) -> str:
    return f"({', '.join(f'{value:.4g}' for value in quaternion)})"


def reordered(layout: SceneLayout, values: Floats) -> Floats:
    """A copy of (T, layout.size) values with every quaternion taken for x, y, z, w."""
    turned = np.array(values)
    for entity in layout.entities:
        start = layout.offsets[entity.name]
        links = start + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
        for pose in (start, *range(links, links + POSE_SIZE * len(entity.link_names), POSE_SIZE)):
            turned[:, pose + 3 : pose + 7] = wxyz_from_xyzw(turned[:, pose + 3 : pose + 7])
    return turned


def is_all_reordered(as_given: Floats, reordered_instead: Floats) -> bool:
    """Whether rotation errors [rad] say that every quaternion is x, y, z, w: large as given, small the other way."""
    if not as_given.size:
        return False
    return bool(as_given.max() > _WRONG_RAD and reordered_instead.max() < _RIGHT_RAD)


ALL_REORDERED = (
    "every quaternion of the capture looks like x, y, z, w: taken so, its links are where the local model has them, "
    "and as it stands they are not. States hold w, x, y, z: convert the capture (remote_env.poses.wxyz_from_xyzw)"
)
