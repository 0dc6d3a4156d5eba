"""Scene states from and to MetaSim's nested dictionaries, by name. numpy alone.

MetaSim (RoboVerse) describes one environment as
`{"robots" | "objects": {name: {"pos", "rot", "vel", "ang_vel", "dof_pos", "dof_vel", "body"}}}`: metres, radians,
quaternions wxyz, velocities of the root link's origin in world axes, joints by name, `body` the same four of each
link. As its `metasim/utils/state.py` and `docs/source/concept/state.md` had it in September 2026 (RoboVerse,
`packages/metasim`, version 1.0.0b0), and since 0.2.0. Positions are in the environment's own frame: the handlers take
the environment's origin off.

A scene of T rows is held as *columns*: the same dictionary with one array per leaf, the rows along its first axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from remote_env.errors import InputError
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, Floats, SceneLayout, SceneState

KINDS = ("robots", "objects")
NORM_TOLERANCE = 1e-3  # as SceneState.check
SIZES = {"pos": 3, "rot": 4, "vel": 3, "ang_vel": 3}
QUATERNIONS = ("wxyz", "xyzw")

Columns = dict[str, dict[str, Any]]  # "robots/franka" -> {"pos": (T, 3), …, "dof_pos": {joint: (T,)}, "body": {…}}


def as_array(value: Any, where: str) -> Floats:
    """Numbers, also those of a torch tensor on any device, as float64.

    Raises:
        InputError: they are no numbers; `where` says whose.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is {str(value)[:80]!r}; it must be numbers") from error


def entities_of(state: Any, where: str) -> dict[str, Mapping[str, Any]]:
    """What `state` says of each entity, by "robots/name" or "objects/name".

    Raises:
        InputError: `state` is no nested dictionary of MetaSim's.
    """
    if not isinstance(state, Mapping) or not any(kind in state for kind in KINDS):
        got = sorted(map(str, state))[:8] if isinstance(state, Mapping) else type(state).__name__
        raise InputError(f'{where} has neither "robots" nor "objects"; it is {got}')
    found: dict[str, Mapping[str, Any]] = {}
    for kind in KINDS:
        for name, entity in dict(state.get(kind) or {}).items():
            if not isinstance(entity, Mapping):
                raise InputError(f"{where}: {kind}/{name} is {type(entity).__name__}; it must be a dictionary")
            found[f"{kind}/{name}"] = entity
    names = [path.partition("/")[2] for path in found]
    if len(set(names)) != len(names):
        raise InputError(f"{where}: a robot and an object share a name in {sorted(names)}; names must differ")
    return found


def stack_states(states: Sequence[Any], where: str = "state") -> Columns:
    """One column set from a nested dictionary per row.

    Raises:
        InputError: a row is no such dictionary, or names other entities, joints or links than the first one; the
            message says which row and what.
    """
    if not states:
        raise InputError(f"{where}: there is no state")
    rows = [entities_of(state, f"{where} {index}") for index, state in enumerate(states)]
    columns: Columns = {}
    for path in rows[0]:
        parts = []
        for index, row in enumerate(rows):
            if path not in row:
                raise InputError(f"{where} {index} lacks {path}, which {where} 0 has")
            parts.append(_present(row[path]))
        columns[path] = _stack(parts, path, where)
    for index, row in enumerate(rows):
        if row.keys() - columns.keys():
            raise InputError(f"{where} {index} has {sorted(row.keys() - columns.keys())}, which {where} 0 lacks")
    return columns


def _present(entity: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None or empty, as MetaSim gives what a handler does not tell."""
    return {
        key: value
        for key, value in entity.items()
        if value is not None and not (isinstance(value, Mapping) and not value)
    }


def _stack(parts: Sequence[Any], path: str, where: str) -> Any:
    """The same leaf of every row as one array; dictionaries are stacked key by key."""
    if not isinstance(parts[0], Mapping):
        leaves = [as_array(part, f"{where} {index}: {path}") for index, part in enumerate(parts)]
        shapes = {leaf.shape for leaf in leaves}
        if len(shapes) > 1:
            index = next(i for i, leaf in enumerate(leaves) if leaf.shape != leaves[0].shape)
            raise InputError(f"{where} {index}: {path} has shape {leaves[index].shape}, {where} 0 {leaves[0].shape}")
        return np.stack(leaves)
    for index, part in enumerate(parts):
        if not isinstance(part, Mapping) or part.keys() != parts[0].keys():
            theirs = part.keys() if isinstance(part, Mapping) else set()
            lacks, more = sorted(parts[0].keys() - theirs), sorted(theirs - parts[0].keys())
            raise InputError(f"{where} {index}: {path} lacks {lacks} of {where} 0 and has {more} more")
    return {key: _stack([part[key] for part in parts], f"{path}/{key}", where) for key in parts[0]}


def layout_of(columns: Columns, source: str, joint_names: Mapping[str, Sequence[str]] | None = None) -> SceneLayout:
    """The layout of these columns: robots first, joints in their own order, the root first of the links.

    Args:
        columns: as `stack_states` gives them.
        source: which simulator stated them.
        joint_names: entity -> names, where `dof_pos` is a bare array.

    Raises:
        InputError: joints have no names.
    """
    entities = []
    for path, entity in columns.items():
        name = path.partition("/")[2]
        joints = _joint_names(entity.get("dof_pos"), path, (joint_names or {}).get(name))
        links = [str(link) for link in entity.get("body", ())]
        entities.append(EntityLayout(name, joints, (name, *(link for link in links if link != name))))
    return SceneLayout(tuple(entities), source)


def _joint_names(positions: Any, path: str, given: Sequence[str] | None) -> tuple[str, ...]:
    if positions is None:
        return ()
    if isinstance(positions, Mapping):
        return tuple(map(str, positions))
    count = positions.shape[-1] if positions.ndim > 1 else 0
    if given is None:
        name = path.partition("/")[2]
        raise InputError(
            f"{path}/dof_pos is {count} numbers without joint names; MetaSim gives a dictionary "
            f"joint -> number. Name them: joint_names={{{name!r}: […]}}, in alphabetical order where MetaSim wrote them"
        )
    if len(given) != count or len(set(given)) != count:
        raise InputError(f"{path}/dof_pos is {count} numbers; joint_names gives {len(set(given))}: {list(given)}")
    return tuple(map(str, given))


def values_of(
    columns: Columns, layout: SceneLayout, times_s: Floats, *, quaternions: str = "wxyz", where: str = "state"
) -> Floats:
    """The rows as scene values.

    Args:
        columns: as `stack_states` gives them.
        layout: of these columns; velocities that they lack are zero.
        times_s: (T,) simulated times [s].
        quaternions: the order of the parts of theirs, "wxyz" or "xyzw".
        where: what a row is called in messages.

    Returns:
        (T, layout.size) float64.

    Raises:
        InputError: something is missing, of the wrong shape or not finite, or a quaternion's norm is not 1; the message
            names the row and the value.
    """
    values: Floats = np.zeros((len(times_s), layout.size))
    values[:, 0] = times_s
    for (path, entity), part in zip(columns.items(), layout.entities, strict=True):
        start = layout.offsets[part.name]
        block = values[:, start : start + part.size]
        reader = _Reader(len(times_s), quaternions, where)
        block[:, :POSE_SIZE] = reader.pose(entity, path)
        block[:, POSE_SIZE : POSE_SIZE + 3] = reader.vectors(entity, "vel", path)
        block[:, POSE_SIZE + 3 : POSE_SIZE + VELOCITY_SIZE] = reader.vectors(entity, "ang_vel", path)
        joints, offset = len(part.joint_names), POSE_SIZE + VELOCITY_SIZE
        block[:, offset : offset + joints] = reader.joints(entity, "dof_pos", part, path)
        block[:, offset + joints : offset + 2 * joints] = reader.joints(entity, "dof_vel", part, path)
        bodies = entity.get("body", {})
        for index, link in enumerate(part.link_names):
            at = offset + 2 * joints + POSE_SIZE * index
            body = bodies.get(link)  # the root, which is called like the entity, may not be among them
            pose = reader.pose(entity, path) if body is None else reader.pose(body, f"{path}/body/{link}")
            block[:, at : at + POSE_SIZE] = pose
    return values


class _Reader:
    """Reads checked arrays of `count` rows out of one entity's columns."""

    def __init__(self, count: int, quaternions: str, where: str) -> None:
        self._count, self._quaternions, self._where = count, quaternions, where

    def pose(self, entity: Mapping[str, Any], path: str) -> Floats:
        for key in ("pos", "rot"):
            if key not in entity:
                raise InputError(f"{path} has no {key!r} in {self._where} 0; it has {sorted(map(str, entity))}")
        turns = self.vectors(entity, "rot", path)
        norms = np.linalg.norm(turns, axis=1)
        bad = np.abs(norms - 1.0) > NORM_TOLERANCE
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"{path}/rot in {self._where} {row} is {turns[row].tolist()}, of norm {norms[row]:.4g}; a rotation is "
                f"a quaternion ({self._quaternions}) of norm 1"
            )
        turns = turns / norms[:, None]
        if self._quaternions == "xyzw":
            turns = np.roll(turns, 1, axis=1)
        return np.concatenate([self.vectors(entity, "pos", path), turns], axis=1)

    def vectors(self, entity: Mapping[str, Any], key: str, path: str) -> Floats:
        if key not in entity:
            return np.zeros((self._count, SIZES[key]))
        return self._checked(entity[key], (self._count, SIZES[key]), f"{path}/{key}")

    def joints(self, entity: Mapping[str, Any], key: str, part: EntityLayout, path: str) -> Floats:
        given, shape = entity.get(key), (self._count, len(part.joint_names))
        if given is None:
            return np.zeros(shape)
        if not isinstance(given, Mapping):
            return self._checked(given, shape, f"{path}/{key}")
        missing = [name for name in part.joint_names if name not in given]
        if missing:
            raise InputError(f"{path}/{key} lacks the joints {missing} that dof_pos has")
        columns = [self._checked(given[name], (self._count,), f"{path}/{key}/{name}") for name in part.joint_names]
        return np.stack(columns, axis=1) if columns else np.zeros(shape)

    def _checked(self, value: Any, shape: tuple[int, ...], path: str) -> Floats:
        array = as_array(value, path)
        if array.shape != shape and array.size == np.prod(shape, dtype=int) and array.shape[:1] == shape[:1]:
            array = array.reshape(shape)  # a joint's number may come as an array of one
        if array.shape != shape:
            raise InputError(f"{path} has shape {array.shape[1:]} in a {self._where}; it must have {shape[1:]}")
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{path} in {self._where} {row} is {array[row].tolist()}; it must be finite")
        return array


def check_convention(columns: Columns, where: str = "state") -> None:
    """Refuse rotations that look like xyzw: every entity is (0, 0, 0, 1) in the first row.

    That is no rotation at all in xyzw, and exactly half a turn about z of every single thing in wxyz.

    Raises:
        InputError: it is so; the message says how to tell which it is.
    """
    firsts = [as_array(entity["rot"], path)[0].ravel() for path, entity in columns.items() if "rot" in entity]
    if firsts and all(turn.shape == (4,) and np.abs(turn - (0, 0, 0, 1)).max() < 1e-6 for turn in firsts):
        raise InputError(
            f"every rotation in {where} 0 is (0, 0, 0, 1), of {list(columns)}: that is no rotation as xyzw, and half "
            'a turn about z as wxyz, which MetaSim writes. Say which it is: quaternions="xyzw" or quaternions="wxyz"'
        )


def to_metasim(state: SceneState, *, robots: Collection[str]) -> dict[str, Any]:
    """One scene as MetaSim's nested dictionary, for a handler's `set_states([…])` or a file.

    Args:
        state: the scene.
        robots: which of its entities are robots; the others are objects.

    Returns:
        {"robots": …, "objects": …} with numpy arrays and floats.

    Raises:
        InputError: `robots` names an entity that the scene lacks.
    """
    unknown = set(robots) - {entity.name for entity in state.layout.entities}
    if unknown:
        raise InputError(
            f"robots={sorted(unknown)} are not in this state; it has "
            f"{[entity.name for entity in state.layout.entities]}"
        )
    nested: dict[str, Any] = {kind: {} for kind in KINDS}
    for entity in state:
        names = entity.layout.joint_names
        part: dict[str, Any] = {
            "pos": entity.root_pose[:3].copy(),
            "rot": entity.root_pose[3:].copy(),
            "vel": entity.root_velocity[:3].copy(),
            "ang_vel": entity.root_velocity[3:].copy(),
        }
        if names:
            part["dof_pos"] = _named(names, entity.joint_positions)
            part["dof_vel"] = _named(names, entity.joint_velocities)
        nested[KINDS[0] if entity.layout.name in robots else KINDS[1]][entity.layout.name] = part
    return nested


def _named(names: Iterable[str], values: Floats) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
