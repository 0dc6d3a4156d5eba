"""How far a replay is from its capture: poses computed by the local model against captured poses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remote_env.state import POSE_SIZE, VELOCITY_SIZE, Floats, SceneLayout, SceneState

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Fidelity:
    """The largest differences over a replay; exactly 0 where every bit agrees.

    Root and link poses are computed by the local model's forward kinematics from the captured joints and
    roots; a flipped joint sign, a wrong scale or another geometry shows in them. Joint errors compare what
    the local model holds with what was captured.

    Attributes:
        max_position_error_m: over all root and link poses [m].
        max_rotation_error_rad: over the same [rad].
        max_joint_error_rad: over all joints [rad, or m for slides].
        worst_position: "entity/link at state N" of that error, "" when nothing differs.
        worst_rotation: likewise.
        worst_joint: likewise.
        states: how many states were compared.
        links: how many poses per state were compared.
        missing_links: captured links that the local model lacks: not compared.
    """

    max_position_error_m: float = 0.0
    max_rotation_error_rad: float = 0.0
    max_joint_error_rad: float = 0.0
    worst_position: str = ""
    worst_rotation: str = ""
    worst_joint: str = ""
    states: int = 0
    links: int = 0
    missing_links: tuple[str, ...] = ()

    @classmethod
    def merge(cls, parts: Iterable[Fidelity]) -> Fidelity:
        """The fidelity of several stretches of one replay together."""
        parts = list(parts)
        position = max(parts, key=lambda part: part.max_position_error_m)
        rotation = max(parts, key=lambda part: part.max_rotation_error_rad)
        joint = max(parts, key=lambda part: part.max_joint_error_rad)
        return cls(
            position.max_position_error_m,
            rotation.max_rotation_error_rad,
            joint.max_joint_error_rad,
            position.worst_position,
            rotation.worst_rotation,
            joint.worst_joint,
            sum(part.states for part in parts),
            parts[0].links,
            parts[0].missing_links,
        )


@dataclass(frozen=True)
class Errors:
    """How far T states are from what was captured.

    Attributes:
        position_m: (T, P) distance of each pose [m].
        rotation_rad: (T, P) angle of each pose [rad].
        joint: (T, J) difference of each joint [rad, or m for slides].
    """

    position_m: Floats
    rotation_rad: Floats
    joint: Floats


class FidelityMeter:
    """Compares captured states with what the local model made of them.

    Attributes:
        poses: (P,) what is compared: "entity" for a root, "entity/link" for a link.
        joints: (J,) likewise: "entity/joint".
        missing_links: captured links that the local model lacks: not compared.

    Args:
        captured: the layout of the states as captured.
        local: the layout of the states read back from the local model.
    """

    def __init__(self, captured: SceneLayout, local: SceneLayout) -> None:
        theirs, ours = _pose_places(captured), _pose_places(local)
        self.poses = [name for name in theirs if name in ours]
        self.missing_links = tuple(name for name in theirs if name not in ours)
        self._captured_poses = _pose_index([theirs[name] for name in self.poses])
        self._local_poses = _pose_index([ours[name] for name in self.poses])
        captured_joints, local_joints = _joint_places(captured), _joint_places(local)
        self.joints = [name for name in captured_joints if name in local_joints]
        self._captured_joints = np.array([captured_joints[name] for name in self.joints], np.intp)
        self._local_joints = np.array([local_joints[name] for name in self.joints], np.intp)
        self._worst: dict[str, tuple[float, str]] = dict.fromkeys(("position", "rotation", "joint"), (0.0, ""))
        self._states = 0

    def add(self, index: int, captured: SceneState, local: SceneState) -> None:
        """Compare one state; `index` names it in the result."""
        self.add_all(captured.values[None], local.values[None], first=index)

    def add_all(self, captured: Floats, local: Floats, *, first: int = 0, stride: int = 1) -> Errors:
        """Compare many states at once; gives every single error too.

        Args:
            captured: (T, size of the captured layout).
            local: (T, size of the local layout).
            first: what the result calls the first of them.
            stride: how much further each next one is.
        """
        errors = self.errors(captured, local)
        for kind, values, names in (
            ("position", errors.position_m, self.poses),
            ("rotation", errors.rotation_rad, self.poses),
            ("joint", errors.joint, self.joints),
        ):
            self._note(kind, values, names, first, stride)
        self._states += len(captured)
        return errors

    def errors(self, captured: Floats, local: Floats) -> Errors:
        """As `add_all`, without remembering anything."""
        theirs, ours = self.poses_of(captured, local)
        return Errors(
            np.linalg.norm(theirs[..., :3] - ours[..., :3], axis=-1),
            rotation_error(theirs[..., 3:], ours[..., 3:]),
            np.abs(captured[:, self._captured_joints] - local[:, self._local_joints]),
        )

    def poses_of(self, captured: Floats, local: Floats) -> tuple[Floats, Floats]:
        """(T, P, 7) captured and local poses of the same things, in the order of `poses`."""
        return captured[:, self._captured_poses], local[:, self._local_poses]

    @property
    def fidelity(self) -> Fidelity:
        """The largest differences so far."""
        worst = self._worst
        return Fidelity(
            worst["position"][0],
            worst["rotation"][0],
            worst["joint"][0],
            worst["position"][1],
            worst["rotation"][1],
            worst["joint"][1],
            self._states,
            len(self.poses),
            self.missing_links,
        )

    def _note(self, kind: str, errors: Floats, names: list[str], first: int, stride: int) -> None:
        if not errors.size:
            return
        row, column = divmod(int(np.argmax(errors)), errors.shape[1])
        if errors[row, column] > self._worst[kind][0]:
            where = f"{names[column]} at state {first + row * stride}"
            self._worst[kind] = float(errors[row, column]), where


def rotation_error(first: Floats, second: Floats) -> Floats:
    """The angles between unit quaternions, exactly 0 where they are equal or opposite.

    Args:
        first: (…, 4) wxyz.
        second: (…, 4) wxyz.

    Returns:
        (…) in [0, π]. From the chord, not from the arc cosine of the product, which loses small angles: two
        unit quaternions an angle θ apart lie 2·sin(θ/4) apart.
    """
    chord = np.minimum(np.linalg.norm(first - second, axis=-1), np.linalg.norm(first + second, axis=-1))
    angles: Floats = 4.0 * np.arcsin(np.minimum(chord / 2.0, 1.0))
    return angles


def _pose_places(layout: SceneLayout) -> dict[str, int]:
    """Where each pose starts in the vector: "entity" for the root, "entity/link" for the links."""
    places = {}
    for entity in layout.entities:
        start = layout.offsets[entity.name]
        places[entity.name] = start
        links = _joints_start(start) + 2 * len(entity.joint_names)
        places |= {f"{entity.name}/{link}": links + POSE_SIZE * index for index, link in enumerate(entity.link_names)}
    return places


def _joint_places(layout: SceneLayout) -> dict[str, int]:
    return {
        f"{entity.name}/{joint}": _joints_start(layout.offsets[entity.name]) + index
        for entity in layout.entities
        for index, joint in enumerate(entity.joint_names)
    }


def _joints_start(start: int) -> int:
    return start + POSE_SIZE + VELOCITY_SIZE


def _pose_index(starts: list[int]) -> Indices:
    return np.array(starts, np.intp)[:, None] + np.arange(POSE_SIZE)
