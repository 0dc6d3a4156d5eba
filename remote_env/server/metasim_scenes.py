"""Scenes of a MetaSim handler: read as scene values, and written back by name. Never run on a MetaSim of today.

What it relies on is MetaSim's own source of September 2026 (RoboVerse `packages/metasim`, 1.0.0b0; the same since
0.2.0): `get_states(mode="tensor")` gives a `TensorState` of `{robots, objects}: name -> root_state (N, 13), joint_pos
(N, J), joint_vel, body_state (N, B, 13), body_names`, joints and bodies in alphabetical order
(`get_joint_names(name, sort=True)`); `set_states(states, env_ids)` takes the whole batch and writes the rows of
`env_ids`. A handler that gives a list of nested dictionaries instead is read and written as such.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from remote_env.errors import InputError, Unsupported
from remote_env.poses import velocity_of_centre, velocity_of_origin
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, Floats, SceneLayout, SceneState
from remote_env.tasks.metasim_states import KINDS, Columns, as_array, layout_of, stack_states, to_metasim, values_of

ROOT = POSE_SIZE + VELOCITY_SIZE
VELOCITY_TOLERANCE = 1e-3  # [m/s, rad/s], beside a thousandth of the value: float32 keeps seven digits
OF_CENTRES = ("isaacsim", "isaaclab")  # Isaac Lab's root_state_w has the velocity of the centre of mass


class MetaSimScenes:
    """Reads and writes the scenes of one handler's environments.

    Args:
        handler: launched.
        source: which simulator and version states the values.

    Attributes:
        layout: of every environment's scene.
        robots: which entities are robots.
    """

    def __init__(self, handler: Any, source: str) -> None:
        self.handler = handler
        columns, names = self._columns()
        self.layout = layout_of(columns, source, names)
        self._count = len(next(iter(columns.values()))["pos"])
        self.robots = [path.partition("/")[2] for path in columns if path.startswith(KINDS[0])]

    def read(self, times_s: Floats) -> Floats:
        """(N, layout.size) scenes of all environments, which are at these (N,) simulated times [s].

        Raises:
            InputError: the simulator gave a value that is not finite or no rotation; the message names both.
        """
        columns, _ = self._columns()
        return values_of(columns, self.layout, times_s, where="environment")

    def write(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """Put these environments into these scenes, row by row, by name.

        Raises:
            InputError: names differ, or a value is none; nothing was written.
            Unsupported: the simulator took the poses and left the velocities out.
        """
        self._check_names(layout)
        for row in values:
            SceneState(layout, row).check()
        states = self.handler.get_states(mode="tensor")
        write = self._write_dictionaries if isinstance(states, list) else self._write_tensors
        write(states, layout, values, list(env_ids))
        self._check_velocities(layout, values, env_ids)

    def _columns(self) -> tuple[Columns, dict[str, list[str]]]:
        states = self.handler.get_states(mode="tensor")
        if isinstance(states, list):
            return stack_states(states, "environment"), {}
        columns: Columns = {}
        names: dict[str, list[str]] = {}
        for kind in KINDS:
            for name, entity in getattr(states, kind).items():
                columns[f"{kind}/{name}"] = self._entity_columns(name, entity)
                names[name] = list(self.handler.get_joint_names(name, sort=True))
        return columns, names

    def _entity_columns(self, name: str, entity: Any) -> dict[str, Any]:
        root = as_array(entity.root_state, f"{name}.root_state")
        velocity, centres = root[:, POSE_SIZE:], self._centres(name)
        if centres is not None:
            velocity = velocity_of_origin(velocity, root[:, 3:POSE_SIZE], centres)
        columns: dict[str, Any] = {
            "pos": root[:, :3],
            "rot": root[:, 3:POSE_SIZE],
            "vel": velocity[:, :3],
            "ang_vel": velocity[:, 3:],
        }
        if _has_values(entity.joint_pos):
            columns["dof_pos"] = as_array(entity.joint_pos, f"{name}.joint_pos")
        if _has_values(entity.joint_vel):
            columns["dof_vel"] = as_array(entity.joint_vel, f"{name}.joint_vel")
        if _has_values(entity.body_state):
            bodies = as_array(entity.body_state, f"{name}.body_state")
            links = list(entity.body_names or self.handler.get_body_names(name, sort=True))
            columns["body"] = {
                link: {"pos": bodies[:, index, :3], "rot": bodies[:, index, 3:POSE_SIZE]}
                for index, link in enumerate(links)
            }
        return columns

    def _centres(self, name: str) -> Floats | None:
        """(N, 3) the centre of mass in the root's frame, where the handler's velocities are of that; else None."""
        if str(getattr(self.handler.scenario, "simulator", "")) not in OF_CENTRES:
            return None
        scene = self.handler.scene
        data = {**scene.articulations, **scene.rigid_objects}[name].data
        centres = getattr(data, "body_com_pos_b", None)
        if centres is None:
            centres = getattr(data, "com_pos_b", None)  # before Isaac Lab 2.2
        if centres is None:
            return None
        return as_array(centres, f"{name}.com_pos_b").reshape(len(centres), -1, 3)[:, 0]

    def _check_names(self, layout: SceneLayout) -> None:
        theirs, ours = _names(layout), _names(self.layout)
        if theirs != ours:
            raise InputError(
                f"the state (of {layout.source or 'an unnamed source'}) is of another scene: only in the state: "
                f"{', '.join(sorted(theirs - ours)) or 'nothing'}; only here: "
                f"{', '.join(sorted(ours - theirs)) or 'nothing'}"
            )

    def _write_tensors(self, states: Any, layout: SceneLayout, values: Floats, env_ids: list[int]) -> None:
        written = {}
        for kind in KINDS:
            entities = {}
            for name, entity in getattr(states, kind).items():
                root, positions, velocities = _parts(layout, self.layout.entity(name), values)
                centres = self._centres(name)
                if centres is not None:
                    root[:, POSE_SIZE:] = velocity_of_centre(
                        root[:, POSE_SIZE:], root[:, 3:POSE_SIZE], centres[env_ids]
                    )
                changes = {"root_state": _patched(entity.root_state, env_ids, root)}
                if positions.size:
                    changes["joint_pos"] = _patched(entity.joint_pos, env_ids, positions)
                    changes["joint_vel"] = _patched(entity.joint_vel, env_ids, velocities)
                entities[name] = dataclasses.replace(entity, **changes)
            written[kind] = entities
        self.handler.set_states(dataclasses.replace(states, **written, cameras={}, extras={}), env_ids)

    def _write_dictionaries(self, states: list[Any], layout: SceneLayout, values: Floats, env_ids: list[int]) -> None:
        written = copy.deepcopy(states)
        for env_id, row in zip(env_ids, values, strict=True):
            nested = to_metasim(SceneState(layout, row), robots=self.robots)
            for kind in KINDS:
                for name, part in nested[kind].items():
                    written[env_id][kind][name].update(part)
        self.handler.set_states(written, env_ids)

    def _check_velocities(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """Handlers before 1.0.0b0 set velocities to zero, some later ones still do; a restore must not hide that."""
        now = self.read(np.zeros(self._count))[list(env_ids)]
        for entity in self.layout.entities:
            asked, got = _parts(layout, entity, values), _parts(self.layout, entity, now)
            wanted = np.concatenate([asked[0][:, POSE_SIZE:], asked[2]], axis=1)
            found = np.concatenate([got[0][:, POSE_SIZE:], got[2]], axis=1)
            if (np.abs(wanted - found) > VELOCITY_TOLERANCE * (1.0 + np.abs(wanted))).any():
                raise Unsupported(
                    f"{type(self.handler).__name__} took the poses of this state but not the velocities of "
                    f"{entity.name!r} (largest asked for {np.abs(wanted).max():.3g}, now {np.abs(found).max():.3g}); "
                    "MetaSim 1.0.0b0 and later restores them on most simulators. The scene has been changed: reset, or "
                    "restore a state at rest"
                )


def _has_values(tensor: Any) -> bool:
    return tensor is not None and 0 not in tensor.shape


def _names(layout: SceneLayout) -> set[str]:
    names = {entity.name for entity in layout.entities}
    return names | {f"{entity.name}/{joint}" for entity in layout.entities for joint in entity.joint_names}


def _parts(layout: SceneLayout, entity: EntityLayout, values: Floats) -> tuple[Floats, Floats, Floats]:
    """(K, 13) root, (K, J) joint positions and velocities out of rows of `layout`, joints in `entity`'s order."""
    theirs, start = layout.entity(entity.name), layout.offsets[entity.name]
    place = {name: index for index, name in enumerate(theirs.joint_names)}
    order = [start + ROOT + place[name] for name in entity.joint_names]
    positions = values[:, order]
    velocities = values[:, [index + len(place) for index in order]]
    return values[:, start : start + ROOT].copy(), positions, velocities


def _patched(tensor: Any, env_ids: list[int], rows: Floats) -> Any:
    """A copy of a torch tensor (or an array) with these rows replaced."""
    array = np.array(as_array(tensor, "the simulator's state"))
    array[env_ids] = rows
    return like(tensor, array)


def like(tensor: Any, array: Any) -> Any:
    """`array` as a tensor of the same kind, type and device; as an array where `tensor` is one."""
    if hasattr(tensor, "new_tensor"):
        return tensor.new_tensor(array)
    return np.asarray(array, tensor.dtype)
