"""The forms that MetaSim's recordings have, brought into one: rows of states as columns, actions, what else is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from remote_env.errors import InputError
from remote_env.record.episode import Array
from remote_env.record.metasim_files import HEADER
from remote_env.tasks.metasim_states import KINDS, Columns, as_array, entities_of, stack_states

EPISODE_FORMAT, EPISODE_VERSION = "roboverse.episode", 1
ROOT_PARTS = {"pos": slice(0, 3), "rot": slice(3, 7), "vel": slice(7, 10), "ang_vel": slice(10, 13)}
VELOCITIES = ("vel", "ang_vel", "dof_vel")


@dataclass
class Take:
    """What a recording holds, in one form.

    Attributes:
        columns: its states, a row per step.
        joint_names: entity -> names, of joints that are bare arrays.
        actions: (T, D), or None.
        action_names: "robot/joint" of each of D, where known.
        rate_hz: steps per simulated second, where it tells.
        quaternions: which order its header states, if any.
        source: what recorded it.
        seed: of its simulator, or None.
        success: whether the episode was one, if it says.
    """

    columns: Columns
    joint_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    actions: Array | None = None
    action_names: list[str] = field(default_factory=list)
    rate_hz: float | None = None
    quaternions: str | None = None
    source: str = "metasim"
    seed: int | None = None
    success: bool | None = None

    @property
    def rows(self) -> int:
        """How many states."""
        return len(next(iter(self.columns.values()))["pos"])


def take_of(held: Any, episode: int, env_id: int, robot: str | None, names: Mapping[str, Sequence[str]]) -> Take:
    """The recording in whatever form it is held.

    Raises:
        InputError: it is of no known form, or holds no such episode, environment or robot.
    """
    if isinstance(held, Mapping) and isinstance(held.get(HEADER), Mapping):
        return _from_episode(held, env_id)
    if isinstance(held, Mapping) and any(kind in held for kind in KINDS):
        return _from_arrays(held, names)
    if isinstance(held, Mapping) and "states" not in held:
        robot, held = _choose(held, episode, robot)
    if isinstance(held, Mapping):
        return _from_trajectory(held, env_id, robot, names)
    if isinstance(held, Sequence) and not isinstance(held, (str, bytes)):
        return _from_trajectory({"states": held}, env_id, robot, names)
    raise InputError(f"it holds {type(held).__name__}; a recording is a list of nested states, or a dictionary of them")


def _from_episode(held: Mapping[str, Any], env_id: int) -> Take:
    """A `roboverse.episode`: arrays (T + 1, N, …) and a header that names them."""
    header = held[HEADER]
    if header.get("format") != EPISODE_FORMAT or int(header.get("format_version", 0)) > EPISODE_VERSION:
        raise InputError(
            f"its header says {header.get('format')!r} {header.get('format_version')}; {EPISODE_FORMAT!r} up to "
            f"{EPISODE_VERSION} is read"
        )
    origin = header.get("provenance") or {}
    _check_env_id(env_id, int(origin.get("num_envs", 1)))
    columns: Columns = {}
    for kind in KINDS:
        for name in header["entities"].get(kind, ()):
            arrays = (held.get(kind) or {}).get(name) or {}
            if "root_state" not in arrays:
                raise InputError(f"{kind}/{name} has no root_state; it has {sorted(arrays)}")
            links = header.get("body_names", {}).get(name, ())
            columns[f"{kind}/{name}"] = _entity(arrays, links, env_id)
    step_s, actions = origin.get("env_step_s"), held.get("actions")
    joints = {name: list(names) for name, names in header.get("joint_names", {}).items()}
    return Take(
        columns,
        joints,
        None if actions is None or not actions.size else actions[:, env_id],
        [f"{robot}/{joint}" for robot in header["entities"].get("robots", ()) for joint in joints.get(robot, ())],
        1.0 / step_s if step_s else None,
        header.get("quaternion"),
        f"metasim {origin.get('metasim_version') or 'of unknown version'} on {origin.get('simulator') or 'something'}",
        origin.get("seed"),
        (header.get("info") or {}).get("success"),
    )


def _entity(arrays: Mapping[str, Array], links: Sequence[str], env_id: int) -> dict[str, Any]:
    root = arrays["root_state"][:, env_id]
    entity: dict[str, Any] = {key: root[:, part] for key, part in ROOT_PARTS.items()}
    for theirs, ours in (("joint_pos", "dof_pos"), ("joint_vel", "dof_vel")):
        if theirs in arrays and arrays[theirs].shape[-1]:
            entity[ours] = arrays[theirs][:, env_id]
    if "body_state" in arrays:
        bodies = arrays["body_state"][:, env_id]
        if bodies.shape[1] != len(links):
            raise InputError(f"body_state has {bodies.shape[1]} links; body_names lists {list(links)}")
        entity["body"] = {
            link: {"pos": bodies[:, index, :3], "rot": bodies[:, index, 3:7]} for index, link in enumerate(links)
        }
    return entity


def _check_env_id(env_id: int, count: int) -> None:
    if not 0 <= env_id < count:
        raise InputError(f"env_id={env_id}; it holds {count} environments")


def _from_arrays(held: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> Take:
    """One nested dictionary with an array per leaf, steps first."""
    columns: Columns = {path: dict(entity) for path, entity in entities_of(held, "it").items()}
    lengths = {path: as_array(entity.get("pos", ()), f"{path}/pos").shape for path, entity in columns.items()}
    if any(len(shape) != 2 for shape in lengths.values()) or len({shape[0] for shape in lengths.values()}) != 1:
        raise InputError(
            f"its positions have the shapes {lengths}; a recording has (steps, 3), as many steps for each entity"
        )
    columns = {path: _arrays(entity, path) for path, entity in columns.items()}
    actions = held.get("actions", held.get("action"))
    return Take(columns, names, None if actions is None else as_array(actions, "actions"))


def _arrays(entity: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {
        key: _arrays(value, f"{path}/{key}") if isinstance(value, Mapping) else as_array(value, f"{path}/{key}")
        for key, value in entity.items()
        if value is not None
    }


def _choose(held: Mapping[str, Any], episode: int, robot: str | None) -> tuple[str, Mapping[str, Any]]:
    """The trajectory out of robot -> list of trajectories."""
    robots = [str(name) for name, value in held.items() if isinstance(value, Sequence) and not isinstance(value, str)]
    if not robots:
        raise InputError(f"it holds {sorted(map(str, held))[:8]}; neither states nor trajectories by robot")
    if robot is None and len(robots) > 1:
        raise InputError(f"it holds trajectories of {robots}; say which: robot={robots[0]!r}")
    chosen = robot or robots[0]
    if chosen not in robots:
        raise InputError(f"it holds trajectories of {robots}, none of {chosen!r}")
    if not 0 <= episode < len(held[chosen]):
        raise InputError(f"episode={episode}; it holds {len(held[chosen])} of {chosen!r}")
    return chosen, held[chosen][episode]


def _from_trajectory(
    held: Mapping[str, Any], env_id: int, robot: str | None, names: Mapping[str, Sequence[str]]
) -> Take:
    given = held.get("states")
    if not isinstance(given, Sequence) or not given:
        raise InputError("it has no states (its actions alone cannot be replayed without its simulator)")
    states = [_one_state(state, index, env_id, robot) for index, state in enumerate(given)]
    actions, action_names = _actions(held.get("actions"), robot)
    start = held.get("init_state")
    if start is not None and actions is not None and len(actions) == len(states):
        first = _one_state(start, 0, env_id, robot)
        if not _is_same(first, states[0]):
            states = [_like(first, states[0]), *states]
    return Take(stack_states(states), names, actions, action_names)


def _one_state(state: Any, index: int, env_id: int, robot: str | None) -> Any:
    """A state of one environment in the form with "robots" and "objects"."""
    if isinstance(state, Sequence) and not isinstance(state, str):
        _check_env_id(env_id, len(state))
        state = state[env_id]
    if not isinstance(state, Mapping):
        raise InputError(f"state {index} is {type(state).__name__}; it must be a nested dictionary")
    if any(kind in state for kind in KINDS):
        return state
    robots = {name: part for name, part in state.items() if name == robot}
    return {"robots": robots, "objects": {name: part for name, part in state.items() if name not in robots}}


def _is_same(first: Any, second: Any) -> bool:
    ours, theirs = entities_of(first, "init_state"), entities_of(second, "state 0")
    return all(
        np.allclose(as_array(ours[path].get(key), path), as_array(part[key], path), atol=1e-5)
        for path, part in theirs.items()
        for key in ("pos", "rot")
        if path in ours and ours[path].get(key) is not None and part.get(key) is not None
    )


def _like(first: Any, second: Any) -> Any:
    """The initial state with those keys alone that states have: it may lack links, and say more than they do."""
    ours, theirs = entities_of(first, "init_state"), entities_of(second, "state 0")
    nested: dict[str, Any] = {kind: {} for kind in KINDS}
    for path, part in theirs.items():
        kind, _, name = path.partition("/")
        if path not in ours or any(key not in ours[path] for key in part if key not in VELOCITIES):
            raise InputError(f"init_state lacks {path} or a part of it, {sorted(part)}; leave init_state out")
        nested[kind][name] = {key: ours[path].get(key, _zeros(value)) for key, value in part.items()}
    return nested


def _zeros(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict.fromkeys(value, 0.0)
    return None if value is None else np.zeros_like(as_array(value, "a velocity"))


def _actions(given: Any, robot: str | None) -> tuple[Array | None, list[str]]:
    """(T, D) joint targets and their names, out of dictionaries of targets by joint; or arrays as they are."""
    if given is None or not len(given):
        return None, []
    if not isinstance(given[0], Mapping):
        return as_array(given, "actions"), []
    rows = [_targets(action, index, robot) for index, action in enumerate(given)]
    for index, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise InputError(f"action {index} has targets for {sorted(row)}; action 0 for {sorted(rows[0])}")
    values = as_array([list(row.values()) for row in rows], "actions")
    if not np.isfinite(values).all():
        bad = int(np.argmax(~np.isfinite(values).all(axis=1)))
        raise InputError(f"action {bad} is {rows[bad]}; it must be finite")
    return values, list(rows[0])


def _targets(action: Any, index: int, robot: str | None) -> dict[str, Any]:
    by_robot = {robot or "robot": action} if "dof_pos_target" in action else action
    targets: dict[str, Any] = {}
    for name, part in by_robot.items():
        given = part.get("dof_pos_target") if isinstance(part, Mapping) else None
        if not given:
            raise InputError(f"action {index} of {name!r} has no dof_pos_target; it is {str(part)[:80]}")
        targets |= {f"{name}/{joint}": given[joint] for joint in sorted(given)}
    return targets
