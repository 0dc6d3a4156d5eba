"""SceneState: named poses and joints of one environment at one moment, with units and frames. Pure.

Conventions, everywhere in this project: positions in metres; quaternions **wxyz**, unit norm; joints in radians
(hinge) or metres (slide); velocities per second. Poses and velocities are in the world frame of the entity's own
environment; a root velocity is that of the body frame's origin (not of the centre of mass), linear then angular.
Names travel with values; order never carries meaning.

The numbers of one state are one flat float64 vector whose meaning a `SceneLayout` gives: a stream of states sends
its layout once, and reading a state costs no copy.
"""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError

POSE_SIZE = 7  # x y z [m], qw qx qy qz
VELOCITY_SIZE = 6  # vx vy vz [m/s], wx wy wz [rad/s]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EntityLayout:
    """The names of one entity's parts.

    Attributes:
        name: the entity (an articulation or a rigid object).
        joint_names: one name per scalar joint; a free root joint is the root pose, not a joint.
        link_names: bodies whose world poses the state carries, for checking a replay; may be empty.
    """

    name: str
    joint_names: tuple[str, ...] = ()
    link_names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many float64 values this entity takes in a state's vector."""
        return POSE_SIZE + VELOCITY_SIZE + 2 * len(self.joint_names) + POSE_SIZE * len(self.link_names)


@dataclass(frozen=True)
class SceneLayout:
    """What each value of a state's vector means: `time_s` first, then each entity's block in order.

    A block holds root pose (7), root velocity (6), joint positions (J), joint velocities (J), link poses (L, 7).

    Attributes:
        entities: in the order of their blocks.
        source: which simulator and version stated these values, such as "mujoco 3.8.1".
    """

    entities: tuple[EntityLayout, ...]
    source: str = ""

    @functools.cached_property
    def size(self) -> int:
        """Length of the vector."""
        return 1 + sum(entity.size for entity in self.entities)

    @functools.cached_property
    def offsets(self) -> dict[str, int]:
        """Entity name -> index in the vector where its block starts."""
        offsets, offset = {}, 1
        for entity in self.entities:
            offsets[entity.name] = offset
            offset += entity.size
        if len(offsets) != len(self.entities):
            raise InputError(f"two entities share a name in {[entity.name for entity in self.entities]}")
        return offsets

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that name this layout."""
        text = json.dumps(self.to_plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def without_links(self) -> tuple[SceneLayout, NDArray[np.intp]]:
        """The same entities without poses of links, and where its values stand in a vector of this layout."""
        entities = tuple(EntityLayout(entity.name, entity.joint_names) for entity in self.entities)
        starts = (self.offsets[entity.name] for entity in entities)
        kept = [np.arange(start, start + entity.size) for start, entity in zip(starts, entities, strict=True)]
        return SceneLayout(entities, self.source), np.concatenate([np.zeros(1, np.intp), *kept])

    def __hash__(self) -> int:
        """Of little, and so equal for many: layouts are looked up at every step, and few meet in one table."""
        return hash((self.source, len(self.entities)))

    def entity(self, name: str) -> EntityLayout:
        """The layout of the entity called `name`; InputError lists the known names."""
        for entity in self.entities:
            if entity.name == name:
                return entity
        raise InputError(f"no entity {name!r} in this state; it has {[entity.name for entity in self.entities]}")

    def to_plain(self) -> dict[str, Any]:
        """This layout as plain dicts, lists and strings, for JSON, HDF5 attributes and the wire."""
        return {
            "source": self.source,
            "entities": [
                {"name": entity.name, "joints": list(entity.joint_names), "links": list(entity.link_names)}
                for entity in self.entities
            ],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SceneLayout:
        """The exact opposite of `to_plain`; InputError when `plain` is not one."""
        try:
            entities = tuple(
                EntityLayout(_read(entity, "name", str), _names(entity, "joints"), _names(entity, "links"))
                for entity in _read(plain, "entities", (list, tuple))
            )
            layout = cls(entities, _read(plain, "source", str))
        except (KeyError, TypeError) as error:
            raise InputError(f"not a scene layout ({error!r:.200}): {reprlib.repr(plain)}") from error
        layout.offsets  # noqa: B018  refuses entities that share a name
        return layout


def _read(plain: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """What a dict that somebody sent or stored holds there; TypeError when it is of another kind."""
    if not isinstance(plain, Mapping):
        raise TypeError(f"a {type(plain).__name__} in place of a dict")
    value = plain[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key} is a {type(value).__name__}")
    return value


def _names(plain: Any, key: str) -> tuple[str, ...]:
    names = tuple(_read(plain, key, (list, tuple)))
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{key} holds something else than names")
    return names


@dataclass(frozen=True)
class EntityState:
    """One entity's values; every array is a view into the state's vector.

    Attributes:
        layout: the names that belong to the values.
        root_pose: (7,) position [m] and quaternion wxyz.
        root_velocity: (6,) linear [m/s] then angular [rad/s].
        joint_positions: (J,) [rad or m].
        joint_velocities: (J,) [rad/s or m/s].
        link_poses: (L, 7) as `root_pose`.
    """

    layout: EntityLayout
    root_pose: Floats
    root_velocity: Floats
    joint_positions: Floats
    joint_velocities: Floats
    link_poses: Floats


@dataclass(frozen=True, eq=False)
class SceneState:
    """The scene at one moment.

    Attributes:
        layout: what `values` mean.
        values: (layout.size,) float64.
        native: opaque bytes that restore the same backend exactly, or None.
    """

    layout: SceneLayout
    values: Floats
    native: bytes | None = None

    def __post_init__(self) -> None:
        values, size = self.values, self.layout.size
        if not isinstance(values, np.ndarray) or values.shape != (size,) or values.dtype != np.float64:
            got = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
            raise InputError(f"a state's values are {got}; this layout needs float64 ({size},)")
        if self.native is not None and not isinstance(self.native, bytes):
            raise InputError(f"a state's native part is a {type(self.native).__name__}; it is bytes or None")

    @property
    def time_s(self) -> float:
        """Simulated time [s] since the episode's start."""
        return float(self.values[0])

    def __getitem__(self, name: str) -> EntityState:
        layout = self.layout.entity(name)
        return _entity_view(layout, self.values, self.layout.offsets[name])

    def __iter__(self) -> Iterator[EntityState]:
        return (self[entity.name] for entity in self.layout.entities)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SceneState):
            return NotImplemented
        return (
            self.layout == other.layout
            and self.values.tobytes() == other.values.tobytes()
            and self.native == other.native
        )

    __hash__ = None  # type: ignore[assignment]  # equality compares mutable arrays

    def without_links(self) -> SceneState:
        """The same scene without the poses of links, which follow from the rest; its values are a copy."""
        layout, kept = self.layout.without_links
        return SceneState(layout, self.values[kept])

    def check(self) -> None:
        """Raise InputError naming the entity when a value is not finite or a quaternion has no unit norm."""
        for entity in self:
            block = (entity.root_pose, entity.root_velocity, entity.joint_positions, entity.joint_velocities)
            if not all(np.isfinite(part).all() for part in block) or not np.isfinite(entity.link_poses).all():
                raise InputError(f"the state of {entity.layout.name!r} at {self.time_s} s is not finite")
            quaternions = np.vstack([entity.root_pose, entity.link_poses])[:, 3:]
            norms = np.linalg.norm(quaternions, axis=1)
            if (np.abs(norms - 1.0) > 1e-3).any():
                raise InputError(
                    f"the state of {entity.layout.name!r} at {self.time_s} s holds a quaternion of norm "
                    f"{norms[np.argmax(np.abs(norms - 1.0))]:.4g}; quaternions are wxyz with norm 1"
                )


def _entity_view(layout: EntityLayout, values: Floats, start: int) -> EntityState:
    joints, links = len(layout.joint_names), len(layout.link_names)
    velocity = start + POSE_SIZE
    positions = velocity + VELOCITY_SIZE
    velocities = positions + joints
    poses = velocities + joints
    return EntityState(
        layout,
        root_pose=values[start:velocity],
        root_velocity=values[velocity:positions],
        joint_positions=values[positions:velocities],
        joint_velocities=values[velocities:poses],
        link_poses=values[poses : poses + POSE_SIZE * links].reshape(links, POSE_SIZE),
    )


SHAPE_SIZES = {"box": 3, "sphere": 1, "capsule": 2, "cylinder": 2}  # how many numbers each kind's size has


@dataclass(frozen=True)
class Shape:
    """One primitive of an entity, in the frame of its link, for drawing what a local model lacks.

    Attributes:
        entity: whose part it is.
        link: the body that carries it; the entity's root has the entity's own name in some simulators, and is always
            the first of `EntityLayout.link_names`.
        kind: "box", "sphere", "capsule" or "cylinder"; the axis of the latter two is z.
        size: half extents x y z [m]; or the radius; or the radius and half the length without caps, as MuJoCo has it.
        pose: (7,) position [m] and quaternion wxyz in the link's frame.
        rgba: (4,) in 0 to 1.
        is_solid: whether it collides.
    """

    entity: str
    link: str
    kind: str
    size: tuple[float, ...]
    pose: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    rgba: tuple[float, ...] = (0.5, 0.5, 0.5, 1.0)
    is_solid: bool = True

    def __post_init__(self) -> None:
        for name in ("entity", "link", "kind"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"the {name} of a shape is a {type(getattr(self, name)).__name__}; it is a name")
        for name in ("size", "pose", "rgba"):
            values = getattr(self, name)
            if len(values) > POSE_SIZE:
                raise InputError(f"the {name} of a shape has {len(values)} numbers")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        numbers = (*self.size, *self.pose, *self.rgba)
        if self.kind not in SHAPE_SIZES or len(self.size) != SHAPE_SIZES[self.kind] or min(self.size) <= 0:
            raise InputError(
                f"the shape of {self.entity}/{self.link} is {self.kind!r} of size {self.size}; allowed are "
                f"{SHAPE_SIZES}, each number above 0"
            )
        if len(self.pose) != POSE_SIZE or len(self.rgba) != 4 or not np.isfinite(numbers).all():
            raise InputError(f"the shape of {self.entity}/{self.link} needs a finite pose of 7 and rgba of 4 numbers")


@dataclass(frozen=True)
class SceneDescription:
    """What a scene looks like, as far as its simulator tells: enough to replay a capture without a model of one's own.

    Attributes:
        shapes: primitives of its entities; may be empty.
        mjcf: a MuJoCo model that the simulator itself made of the scene (Newton's MuJoCo solver does), or "".
        notes: what could not be told, in words, such as the meshes that were left out.
    """

    shapes: tuple[Shape, ...] = ()
    mjcf: str = ""
    notes: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """This description as plain dicts, lists and strings."""
        shapes = [
            {**vars(shape), "size": list(shape.size), "pose": list(shape.pose), "rgba": list(shape.rgba)}
            for shape in self.shapes
        ]
        return {"shapes": shapes, "mjcf": self.mjcf, "notes": list(self.notes)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SceneDescription:
        """The exact opposite of `to_plain`; InputError when `plain` is not one."""
        try:
            shapes = tuple(Shape(**shape) for shape in _read(plain, "shapes", (list, tuple)))
            return cls(shapes, _read(plain, "mjcf", str), _names(plain, "notes"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"not a scene description ({error!r:.200}): {reprlib.repr(plain)}") from error
