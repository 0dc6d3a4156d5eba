"""Import of MetaSim's recordings: nested dictionaries of states, and RoboVerse's episode and trajectory files.

Conventions of theirs and what is assumed where they leave something out: `remote_env.tasks.metasim_states`.
`to_metasim` goes the other way, one state at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import CaptureError, InputError
from remote_env.record.episode import Episode, EpisodeInfo
from remote_env.record.metasim_files import read_file
from remote_env.record.metasim_takes import VELOCITIES, Take, take_of
from remote_env.state import Floats, SceneLayout, SceneState
from remote_env.tasks.metasim_states import KINDS, QUATERNIONS, check_convention, layout_of, to_metasim, values_of

__all__ = ["read_metasim", "to_metasim"]

# What a value of another kind than its place calls for raises, somewhere: a number for a dictionary, a missing key.
_MISSHAPEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def read_metasim(
    source: Any,
    *,
    rate_hz: float | None = None,
    episode: int = 0,
    env_id: int = 0,
    robot: str | None = None,
    quaternions: str | None = None,
    joint_names: Mapping[str, Sequence[str]] | None = None,
    task: str = "",
) -> Episode:
    """One episode of MetaSim's, to be replayed or written as a capture.

    Args:
        source: a file (`.npz`, `.json`, `.json.gz`, `.yaml`, `.hdf5`; pickles are refused, with the way to convert
            them), or what one holds: a list of nested states, one per step; a dictionary of such with "states",
            "actions" and "init_state"; a dictionary robot -> list of these; or one nested dictionary with an array per
            leaf, steps first.
        rate_hz: steps per simulated second; needed unless the file tells.
        episode: which, where a file holds several.
        env_id: which environment, where states are of a batch.
        robot: which entity is the robot, where a file holds several robots' trajectories.
        quaternions: "wxyz" or "xyzw", if it is known; MetaSim writes wxyz.
        joint_names: entity -> names, where joints come as bare arrays.
        task: what to call it.

    Returns:
        An episode of T steps with T + 1 scene states. Rewards are 0 and flags False: MetaSim does not record them.
        `info.extra["metasim"]` says what was assumed, such as velocities that are not there.

    Raises:
        CaptureError: something is missing or no number, or a quaternion's norm is not 1; the message says what and
            where.
        InputError: an argument is wrong, or `rate_hz` is needed.
    """
    if quaternions not in (None, *QUATERNIONS):
        raise InputError(f"quaternions={quaternions!r}; it must be one of {QUATERNIONS}, or None")
    is_file = isinstance(source, (str, Path))
    name = str(source) if is_file else f"this {type(source).__name__}"
    held = read_file(Path(source).expanduser()) if is_file else source
    try:
        take = take_of(held, episode, env_id, robot, joint_names or {})
        rate_hz = take.rate_hz if rate_hz is None else rate_hz
        if rate_hz is not None and rate_hz > 0:
            return _episode(take, rate_hz, quaternions, task or (Path(name).name.partition(".")[0] if is_file else ""))
    except InputError as error:
        raise CaptureError(f"{name}: {error}") from error
    except _MISSHAPEN as error:
        raise CaptureError(f"{name} is no recording in a form that is known: {error!r}") from error
    raise InputError(f"rate_hz is {rate_hz}; say how many steps a simulated second has, such as rate_hz=50.0")


def _episode(take: Take, rate_hz: float, quaternions: str | None, task: str) -> Episode:
    if not take.columns:
        raise InputError("it holds no robot and no object")
    order = _quaternion_order(take, quaternions)
    layout = layout_of(take.columns, take.source, take.joint_names)
    values = values_of(take.columns, layout, np.arange(take.rows) / rate_hz, quaternions=order)
    steps = take.rows - 1
    if steps < 1:
        raise InputError("it holds one state alone; an episode has at least two")
    actions = np.zeros((steps, 0)) if take.actions is None else take.actions[:steps]
    if len(actions) != steps:
        raise InputError(f"it has {take.rows} states and {len(actions)} actions; T actions have T or T + 1 states")
    lacking = {path: [key for key in VELOCITIES if _lacks(entity, key)] for path, entity in take.columns.items()}
    notes = {
        "robots": [path.partition("/")[2] for path in take.columns if path.startswith(KINDS[0])],
        "action_names": take.action_names,
        "assumed_zero": {path: keys for path, keys in lacking.items() if keys},
        "not_recorded": ["rewards", "terminated", "truncated", *(["actions"] if take.actions is None else [])],
        "quaternions": order,
    }
    last: dict[str, Any] = {} if take.success is None else {"is_success": bool(take.success)}
    observed = {"qpos": _joints(values, layout, 0), "qvel": _joints(values, layout, 1)}
    return Episode(
        EpisodeInfo(float(rate_hz), task, seed=take.seed, extra={"metasim": notes}),
        actions=actions,
        rewards=np.zeros(steps),
        terminated=np.zeros(steps, bool),
        truncated=np.zeros(steps, bool),
        infos=[{} for _ in range(steps)] + [last],
        observations={key: rows[:-1] for key, rows in observed.items()},
        final_observation={key: rows[-1] for key, rows in observed.items()},
        layout=layout,
        scene_values=values,
    )


def _quaternion_order(take: Take, given: str | None) -> str:
    if given is None and take.quaternions is None:
        check_convention(take.columns)
    if given is None and take.quaternions not in (None, "wxyz"):
        raise InputError(
            f'its header says that quaternions are {take.quaternions!r}; say quaternions="xyzw" to have them turned'
        )
    return given or "wxyz"


def _lacks(entity: Mapping[str, Any], key: str) -> bool:
    return key not in entity and (key != "dof_vel" or "dof_pos" in entity)


def _joints(values: Floats, layout: SceneLayout, which: int) -> Floats:
    """(T, J) positions (0) or velocities (1) of every joint, entity by entity."""
    place = SceneState(layout, np.arange(layout.size, dtype=np.float64))
    parts = [(entity.joint_positions, entity.joint_velocities)[which] for entity in place]
    return values[:, np.concatenate(parts).astype(np.intp)]
