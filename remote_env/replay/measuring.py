"""From captured values to a `FidelityReport`: shows every state in the local model, without drawing any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from remote_env.replay.contacts import LocalContact, find_contacts, find_limit_violations, joint_names, told_pairs
from remote_env.replay.fidelity import Errors, FidelityMeter, rotation_error
from remote_env.replay.fitting import fitting
from remote_env.replay.mapped_states import MappedStates
from remote_env.replay.mapping import Mapping as NameMapping
from remote_env.replay.replayer import Replayer
from remote_env.replay.report import CONTACT_DEPTH_M, EntityFidelity, FidelityReport, LinkFidelity, Spread
from remote_env.replay.time_base import measure_time_base
from remote_env.state import EntityLayout, Floats, SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene

_ROWS_AT_ONCE = 2048  # bounds the memory of a long episode
_CLEARLY_WRONG_RAD, _RIGHT_RAD = 0.1, 0.01
_CLEARLY_WRONG_M = 0.005


def report_replay(
    replayer: Replayer,
    layout: SceneLayout,
    values: Floats,
    *,
    rate_hz: float = 0.0,
    infos: Sequence[Mapping[str, Any]] = (),
    name: str = "capture",
    contact_depth_m: float = CONTACT_DEPTH_M,
) -> FidelityReport:
    """How far captured states are from what a replayer's model makes of them; its own state stays as it is.

    Args:
        replayer: of the local model, with its mapping.
        layout: of the states.
        values: (T, layout.size) captured, T ≥ 1.
        rate_hz: see `measure_replay`.
        infos: likewise.
        name: likewise.
        contact_depth_m: likewise.

    Raises:
        ReplayError: the states do not fit the model; see `Replayer.check_names`.
        InputError: a value is not finite or a quaternion has no unit norm.
    """
    mapped = replayer.mapped_states(layout)
    return measure_replay(
        values,
        replayer.scene,
        mapped,
        rate_hz=rate_hz,
        infos=infos,
        name=name,
        contact_depth_m=contact_depth_m,
        left_out=reasons(fitting(replayer.mapping, layout, replayer.scene)),
    )


def reasons(mapping: NameMapping) -> dict[str, str]:
    """What a mapping leaves out -> why."""
    found = dict(mapping.ignore_entities)
    for name, entity in mapping.entities.items():
        for parts in (entity.ignore_joints, entity.ignore_links):
            found |= {f"{name}/{part}": reason for part, reason in parts.items()}
    model = {**mapping.ignore_model_entities, **mapping.ignore_model_joints}
    return found | {f"{name} of the model": reason for name, reason in model.items()}


def measure_replay(
    values: Floats,
    scene: MujocoScene,
    mapped: MappedStates,
    *,
    rate_hz: float = 0.0,
    infos: Sequence[Mapping[str, Any]] = (),
    name: str = "capture",
    contact_depth_m: float = CONTACT_DEPTH_M,
    left_out: Mapping[str, str] | None = None,
) -> FidelityReport:
    """Show every captured state in the local model and compare what that makes of it.

    Args:
        values: (T, mapped.captured.size) captured, T ≥ 1.
        scene: of the local model.
        mapped: what turns the values into the model's, from `Mapping.compile`.
        rate_hz: states per simulated second that the capture claims; 0: none.
        infos: of the episode; where they have "contacts", pairs of names, these are what the far end told.
        name: of the capture, for messages.
        contact_depth_m: contacts deeper than this are penetrations [m].
        left_out: what the mapping ignores, and why; only passed on.

    Raises:
        InputError: a value is not finite or a quaternion has no unit norm.
    """
    meter = FidelityMeter(mapped.layout, scene.layout)
    writer = scene.writer(mapped.layout, moved=mapped.moved)
    data, model = mujoco.MjData(scene.model), scene.model
    wanted = mapped.apply(values)
    writer.check(wanted)
    parts, hints = [], _Hints(meter)
    for first in range(0, len(wanted), _ROWS_AT_ONCE):
        rows = wanted[first : first + _ROWS_AT_ONCE]
        shown = scene.show(writer, rows, data)
        parts.append(meter.add_all(rows, shown, first=first))
        hints.look(rows, shown)
    errors = Errors(*(np.concatenate([getattr(part, kind) for part in parts]) for kind in vars(parts[0])))
    told = told_pairs(infos)
    contacts = find_contacts(model, writer, wanted, deeper_than_m=contact_depth_m)
    namer = _Namer(mapped.captured_names)
    return FidelityReport(
        name,
        mapped.captured.source,
        len(values),
        _entities(mapped.layout, meter, errors, _slides(model), namer),
        tuple(_with_told(contact, told, mapped.captured_names) for contact in contacts),
        told is not None,
        contact_depth_m,
        find_limit_violations(model, writer, wanted),
        measure_time_base(values[:, 0], rate_hz),
        tuple(dict.fromkeys((*mapped.missing_links, *meter.missing_links))),
        dict(left_out or {}),
        tuple(hints.said()),
        meter.fidelity,
    )


class _Namer:
    """The names of a report: the model's, with the capture's beside it where that differs."""

    def __init__(self, captured: Mapping[str, str]) -> None:
        self._captured = captured

    def __call__(self, name: str) -> str:
        theirs = self._captured.get(name, name)
        return name if theirs == name else f"{name} ({theirs} in the capture)"


def _slides(model: mujoco.MjModel) -> set[str]:
    kinds = zip(joint_names(model), model.jnt_type, strict=True)
    return {name for name, kind in kinds if kind == mujoco.mjtJoint.mjJNT_SLIDE}


def _entities(
    layout: SceneLayout, meter: FidelityMeter, errors: Errors, slides: set[str], namer: _Namer
) -> tuple[EntityFidelity, ...]:
    poses = {name: column for column, name in enumerate(meter.poses)}
    joints = {name: column for column, name in enumerate(meter.joints)}
    return tuple(_entity(entity, poses, joints, errors, slides, namer) for entity in layout.entities)


def _entity(
    entity: EntityLayout,
    poses: Mapping[str, int],
    joints: Mapping[str, int],
    errors: Errors,
    slides: set[str],
    namer: _Namer,
) -> EntityFidelity:
    pose_names = [name for name in (entity.name, *_parts(entity, entity.link_names)) if name in poses]
    joint_parts = [name for name in _parts(entity, entity.joint_names) if name in joints]
    groups = {
        "position_m": (errors.position_m, [poses[name] for name in pose_names], pose_names),
        "rotation_rad": (errors.rotation_rad, [poses[name] for name in pose_names], pose_names),
    }
    for kind, chosen in (
        ("joint_rad", [name for name in joint_parts if name not in slides]),
        ("joint_m", [name for name in joint_parts if name in slides]),
    ):
        groups[kind] = (errors.joint, [joints[name] for name in chosen], chosen)
    spreads = {
        kind: Spread.of(values[:, columns], [namer(name) for name in names])
        for kind, (values, columns, names) in groups.items()
    }
    over_time = {kind: values[:, columns].max(axis=1) for kind, (values, columns, _) in groups.items() if columns}
    links = tuple(_link(name, poses[name], errors, namer) for name in pose_names)
    return EntityFidelity(entity.name, **spreads, links=links, over_time=over_time)


def _parts(entity: EntityLayout, names: Sequence[str]) -> list[str]:
    return [f"{entity.name}/{name}" for name in names]


def _link(name: str, column: int, errors: Errors, namer: _Namer) -> LinkFidelity:
    said = [namer(name)]
    position = Spread.of(errors.position_m[:, [column]], said) or Spread()
    rotation = Spread.of(errors.rotation_rad[:, [column]], said) or Spread()
    return LinkFidelity(said[0], position, rotation)


def _with_told(
    contact: LocalContact, told: set[frozenset[str]] | None, captured_names: Mapping[str, str]
) -> LocalContact:
    """Whether the far end told of it: by the names of the capture, of the parts or of their whole entities."""
    if told is None:
        return contact
    first, second = (_names_of(name, captured_names) for name in (contact.first, contact.second))
    is_told = any(frozenset((one, other)) in told for one in first for other in second)
    return LocalContact(**{**vars(contact), "is_told": is_told})


def _names_of(name: str, captured_names: Mapping[str, str]) -> set[str]:
    entity, _, part = name.partition("/")
    theirs = captured_names.get(name, name)
    return {name, theirs, part or entity, theirs.rpartition("/")[2], entity, captured_names.get(entity, entity)}


class _Hints:
    """What large errors look like: another order of quaternions, or a base that stands elsewhere."""

    def __init__(self, meter: FidelityMeter) -> None:
        self._meter = meter
        self._worst_rad, self._worst_turned_rad = 0.0, 0.0
        self._offsets: list[Floats] = []
        self._states = self._moved_states = 0

    def look(self, wanted: Floats, shown: Floats) -> None:
        theirs, ours = self._meter.poses_of(wanted, shown)
        if not theirs.size:
            return
        angles = rotation_error(theirs[..., 3:], ours[..., 3:])
        off = angles > _RIGHT_RAD
        self._worst_rad = max(self._worst_rad, float(angles.max()))
        if off.any():
            turned = rotation_error(np.roll(theirs[..., 3:], 1, axis=-1), ours[..., 3:])[off]
            self._worst_turned_rad = max(self._worst_turned_rad, float(turned.max()))
        offsets = theirs[..., :3] - ours[..., :3]
        moved = np.linalg.norm(offsets, axis=-1) > _CLEARLY_WRONG_M
        self._states += len(moved)
        self._moved_states += int(moved.any(axis=1).sum())
        if moved.any():
            self._offsets.append(offsets[moved])

    def said(self) -> list[str]:
        said = []
        if self._worst_rad > _CLEARLY_WRONG_RAD and self._worst_turned_rad <= _RIGHT_RAD:
            said.append("the captured quaternions look like x, y, z, w; states hold w, x, y, z")
        if self._offsets and self._moved_states == self._states and self._worst_rad <= _RIGHT_RAD:
            offsets = np.concatenate(self._offsets)
            middle = np.median(offsets, axis=0)
            if np.abs(offsets - middle).max() <= _CLEARLY_WRONG_M / 5:
                said.append(
                    "whatever is off in position is off by the same "
                    f"({middle[0]:.4g}, {middle[1]:.4g}, {middle[2]:.4g}) m, capture minus model: "
                    "a base or the world stands elsewhere (`base` or `origin` in a mapping)"
                )
        return said
