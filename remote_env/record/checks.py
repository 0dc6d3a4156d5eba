"""What makes an episode whole: its parts belong together, and each of its scene states is one.

Every refusal says which file, which row and, for a state, which entity and part of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import CaptureError
from remote_env.record.episode import Episode
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, Floats, SceneLayout

MAX_VALUE = 1e10  # [m, rad, s or per second]: beyond, MuJoCo calls a simulation unstable
NORM_TOLERANCE = 1e-3  # as SceneState.check


def check_episode(episode: Episode, path: Path) -> None:
    """Raise CaptureError where the episode's parts do not belong together or a state is not one."""
    _check_lengths(episode, path)
    rate_hz = episode.info.rate_hz
    if not (isinstance(rate_hz, (int, float)) and np.isfinite(rate_hz) and rate_hz > 0):
        raise CaptureError(f"{path} is damaged: rate_hz is {rate_hz}")
    if episode.layout is not None and episode.scene_values is not None:
        check_states(episode.layout, episode.scene_values, path)


def _check_lengths(episode: Episode, path: Path) -> None:
    steps = len(episode.rewards)
    lengths = {"action": len(episode.actions), "terminated": len(episode.terminated)}
    lengths |= {"truncated": len(episode.truncated), "infos": len(episode.infos) - 1}
    lengths |= {f"observations/{key}": len(values) for key, values in episode.observations.items()}
    if episode.scene_values is not None:
        lengths["scene/values"] = len(episode.scene_values) - 1
    if episode.natives:
        lengths["scene/native"] = len(episode.natives) - 1
    wrong = {name: length for name, length in lengths.items() if length != steps}
    if wrong:
        raise CaptureError(f"{path} is damaged: /rewards has {steps} steps, but {wrong}")


def check_states(layout: SceneLayout, values: Floats, path: Path) -> None:
    """As `SceneState.check` on every row, all rows at once; and time never runs backwards.

    Raises:
        CaptureError: the first row that is no state is named, with its entity and what is wrong there.
    """
    if values.ndim != 2 or values.shape[1] != layout.size or values.dtype != np.float64:
        raise CaptureError(
            f"{path} is damaged: /scene/values is {values.dtype} {values.shape}; its layout needs float64 "
            f"rows of {layout.size}"
        )
    _check_finite(layout, values, path)
    _check_quaternions(layout, values, path)
    backwards = np.flatnonzero(np.diff(values[:, 0]) < 0)
    if backwards.size:
        row = int(backwards[0]) + 1
        raise CaptureError(
            f"{path}: time runs backwards in row {row} of /scene/values, from {values[row - 1, 0]} s to "
            f"{values[row, 0]} s: two episodes in one, or rows in disorder; a capture holds one episode, in order: "
            "start() a new one at each reset()"
        )


def _check_finite(layout: SceneLayout, values: Floats, path: Path) -> None:
    finite = np.abs(values) <= MAX_VALUE  # NaN is not
    if finite.all():
        return
    row = int(np.argmax(~finite.all(axis=1)))
    column = int(np.argmax(~finite[row]))
    where = name_column(layout, column)
    kind = "is beyond all bounds" if np.isfinite(values[row, column]) else "is not finite"
    said = f"has {where} {values[row, column]}" if column == 0 else f"{kind}: {where} is {values[row, column]}"
    raise CaptureError(f"{path}: the scene state in row {row} {said}")


def _check_quaternions(layout: SceneLayout, values: Floats, path: Path) -> None:
    index = quaternion_indices(layout)
    norms = np.linalg.norm(values[:, index], axis=2)
    bad = np.abs(norms - 1.0) > NORM_TOLERANCE
    if not bad.any():
        return
    row = int(np.argmax(bad.any(axis=1)))
    which = int(np.argmax(bad[row]))
    raise CaptureError(
        f"{path}: the scene state in row {row} holds a quaternion of norm {norms[row, which]:.4g}, "
        f"{name_column(layout, int(index[which, 0]))}; quaternions are wxyz with norm 1"
    )


def name_column(layout: SceneLayout, column: int) -> str:
    """What a place in a state's vector is: "the time", or such as "joint 'elbow' velocity of 'arm'"."""
    if column == 0:
        return "the time"
    entity = next(entity for entity in reversed(layout.entities) if layout.offsets[entity.name] <= column)
    place, joints = column - layout.offsets[entity.name], len(entity.joint_names)
    if place < POSE_SIZE:
        return f"the root pose of {entity.name!r}"
    place -= POSE_SIZE
    if place < VELOCITY_SIZE:
        return f"the root velocity of {entity.name!r}"
    place -= VELOCITY_SIZE
    if place < 2 * joints:
        kind = "position" if place < joints else "velocity"
        return f"the {kind} of joint {entity.joint_names[place % joints]!r} of {entity.name!r}"
    return f"the pose of link {entity.link_names[(place - 2 * joints) // POSE_SIZE]!r} of {entity.name!r}"


def quaternion_indices(layout: SceneLayout) -> NDArray[np.intp]:
    """(Q, 4) places of every quaternion in a state's vector."""
    starts = []
    for entity in layout.entities:
        start = layout.offsets[entity.name]
        links = start + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
        starts += [start, *range(links, links + POSE_SIZE * len(entity.link_names), POSE_SIZE)]
    return np.array(starts, np.intp).reshape(-1, 1) + np.arange(3, 7)
