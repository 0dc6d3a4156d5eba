"""MappedStates: values of captured states into the names, frames and numbers of a local model, all rows at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError
from remote_env.poses import compose, cross, rotate
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, Floats, SceneLayout

Numbers = tuple[float, ...]
SAME_PLACE: Numbers = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
_NOWHERE = 0  # a captured value, times 0: what has no source


@dataclass(frozen=True)
class PoseSource:
    """Where a pose of the model comes from.

    Attributes:
        start: of the captured pose in a state's values; -1 where `pose` alone says it, in the model's world.
        velocity: start of the velocity that belongs to it; -1 where there is none.
        pose: (7,) of the model's body in the frame of the captured one.
    """

    start: int
    velocity: int = -1
    pose: Numbers = SAME_PLACE


@dataclass(frozen=True)
class JointSource:
    """Where a joint of the model comes from: factor * values[position] + offset."""

    position: int
    velocity: int
    factor: float = 1.0
    offset: float = 0.0


@dataclass
class Block:
    """What becomes one entity of the model, by the model's names."""

    root: PoseSource | None = None
    joints: dict[str, JointSource] = field(default_factory=dict)
    links: dict[str, PoseSource] = field(default_factory=dict)


class MappedStates:
    """Turns values of one captured layout into values of `layout`; made by `Mapping.compile`.

    Args:
        captured: of the states.
        blocks: the model's entity -> where its values come from.
        origin: (7,) the environment's frame in the model's world.
        moved: entities of the model whose fixed root is put where `layout` has it.
        captured_names: "entity" or "entity/part" of the model -> the capture's name for it, where they differ.
        missing_links: captured links that the model lacks, by the capture's names.

    Attributes:
        captured: as given.
        layout: of the result: the model's own names for whatever the capture has, and expected poses of its bodies. A
            model joint that the capture does not set is not in it.
    """

    def __init__(
        self,
        captured: SceneLayout,
        blocks: dict[str, Block],
        *,
        origin: Numbers = SAME_PLACE,
        moved: frozenset[str] = frozenset(),
        captured_names: dict[str, str] | None = None,
        missing_links: tuple[str, ...] = (),
    ) -> None:
        self.captured, self.moved, self.missing_links = captured, moved, missing_links
        self.captured_names = captured_names or {}
        self.layout = SceneLayout(
            tuple(EntityLayout(name, tuple(block.joints), tuple(block.links)) for name, block in blocks.items()),
            captured.source,
        )
        plan = _plan(blocks, origin)
        self._is_identity = self.layout == captured and not plan.changes
        self._plan = plan
        if self._is_identity:
            self.layout = captured  # the very object: whoever compares by identity sees no change

    def apply(self, values: Floats) -> Floats:
        """The model's numbers for captured ones.

        Args:
            values: (captured.size,) or (T, captured.size) float64.

        Returns:
            (layout.size,) or (T, layout.size); `values` themselves where nothing is to be changed.

        Raises:
            InputError: `values` have another size.
        """
        if values.shape[-1] != self.captured.size:
            raise InputError(
                f"values of shape {values.shape}; states of this capture have {self.captured.size} numbers"
            )
        if self._is_identity:
            return values
        mapped = self._plan.apply(values.reshape(-1, values.shape[-1]))
        return mapped.reshape(*values.shape[:-1], self.layout.size)


@dataclass(frozen=True)
class _Plan:
    """The arithmetic of a mapping, by columns of the result."""

    gather: NDArray[np.intp]  # (size,) columns of the captured values
    scaled: NDArray[np.intp]  # columns of the result that become factor * value + offset
    factors: Floats
    offsets: Floats
    posed: NDArray[np.intp]  # (K, 7) columns that are poses to be changed
    poses: Floats  # (K, 7) by what
    spun: NDArray[np.intp]  # (R, 13) root poses and velocities to be changed
    arms: Floats  # (R, 3) the model's origin in the captured body's frame
    placed: NDArray[np.intp]  # columns that are constant
    places: Floats
    origin: Floats | None

    @property
    def changes(self) -> bool:
        return bool(self.scaled.size or self.posed.size or self.placed.size or self.origin is not None)

    def apply(self, rows: Floats) -> Floats:
        out: Floats = rows[:, self.gather]
        if self.scaled.size:
            out[:, self.scaled] = out[:, self.scaled] * self.factors + self.offsets
        if self.spun.size:
            out[:, self.spun[:, 7:]] = self._velocities(out[:, self.spun])
        if self.posed.size:
            poses = compose(out[:, self.posed], self.poses)
            out[:, self.posed] = poses if self.origin is None else compose(self.origin, poses)
        if self.placed.size:
            out[:, self.placed] = self.places
        return out

    def _velocities(self, roots: Floats) -> Floats:
        """Of points that lie elsewhere on the same bodies: v + ω × (R · arm); in the model's axes."""
        linear, angular = roots[..., 7:10], roots[..., 10:13]
        linear = linear + cross(angular, rotate(roots[..., 3:7], self.arms))
        if self.origin is not None:
            linear, angular = rotate(self.origin[3:], linear), rotate(self.origin[3:], angular)
        return np.concatenate([linear, angular], axis=-1)


class _Columns:
    """Collects a plan, value by value of the result."""

    def __init__(self, origin: Numbers) -> None:
        self._origin = None if origin == SAME_PLACE else np.array(origin)
        self._gather: list[int] = [0]
        self._scaled: list[tuple[int, float, float]] = []
        self._posed: list[tuple[list[int], Numbers]] = []
        self._spun: list[tuple[list[int], Numbers]] = []
        self._placed: list[tuple[int, float]] = []

    def add_pose(self, source: PoseSource) -> None:
        here = self._next(POSE_SIZE)
        if source.start < 0:
            self._gather += [_NOWHERE] * POSE_SIZE
            self._placed += list(zip(here, source.pose, strict=True))
            return
        self._gather += range(source.start, source.start + POSE_SIZE)
        if source.pose != SAME_PLACE or self._origin is not None:
            self._posed.append((here, source.pose))

    def add_velocity(self, source: PoseSource) -> None:
        here = self._next(VELOCITY_SIZE)
        if source.velocity < 0:
            self._gather += [_NOWHERE] * VELOCITY_SIZE
            self._placed += [(column, 0.0) for column in here]
            return
        self._gather += range(source.velocity, source.velocity + VELOCITY_SIZE)
        if source.pose != SAME_PLACE or self._origin is not None:
            self._spun.append((list(range(here[0] - POSE_SIZE, here[0])) + here, source.pose[:3]))

    def add_scalar(self, column: int, factor: float, offset: float) -> None:
        if (factor, offset) != (1.0, 0.0):
            self._scaled.append((len(self._gather), factor, offset))
        self._gather.append(column)

    def _next(self, count: int) -> list[int]:
        return list(range(len(self._gather), len(self._gather) + count))

    def plan(self) -> _Plan:
        return _Plan(
            np.array(self._gather, np.intp),
            np.array([entry[0] for entry in self._scaled], np.intp),
            np.array([entry[1] for entry in self._scaled]),
            np.array([entry[2] for entry in self._scaled]),
            np.array([entry[0] for entry in self._posed], np.intp).reshape(-1, POSE_SIZE),
            np.array([entry[1] for entry in self._posed]).reshape(-1, POSE_SIZE),
            np.array([entry[0] for entry in self._spun], np.intp).reshape(-1, POSE_SIZE + VELOCITY_SIZE),
            np.array([entry[1] for entry in self._spun]).reshape(-1, 3),
            np.array([entry[0] for entry in self._placed], np.intp),
            np.array([entry[1] for entry in self._placed]),
            self._origin,
        )


def _plan(blocks: dict[str, Block], origin: Numbers) -> _Plan:
    columns = _Columns(origin)
    for name, block in blocks.items():
        if block.root is None:
            raise InputError(f"nothing says where {name!r} is")
        columns.add_pose(block.root)
        columns.add_velocity(block.root)
        for joint in block.joints.values():
            columns.add_scalar(joint.position, joint.factor, joint.offset)
        for joint in block.joints.values():
            columns.add_scalar(joint.velocity, joint.factor, 0.0)
        for source in block.links.values():
            columns.add_pose(source)
    return columns.plan()
