"""The spaces that an Isaac Lab environment's observations and actions obey, of one environment. No Isaac here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError


def choose_groups(observation: Any, wanted: str) -> Any:
    """The observation that clients get: one group's, or all as a dict.

    Args:
        observation: {"policy": …, "critic": …}, as every Isaac Lab environment gives.
        wanted: a group's name, or "all".

    Raises:
        ConfigError: there is no such group.
    """
    if not isinstance(observation, Mapping):
        return observation
    if wanted == "all":
        return dict(observation)
    if wanted not in observation:
        raise ConfigError(f"observation={wanted!r}: this task has the groups {sorted(observation)}; or 'all'")
    return observation[wanted]


def observed_space(declared: Any, observation: Any, name: str = "observation") -> spaces.Space[Any]:
    """The space that observations really obey, from the declared one and a first observation of all environments.

    Isaac Lab declares float32 without bounds for whatever a task gives, images among them. Where shape or dtype differ
    from what was declared, what is observed counts.

    Args:
        declared: for one environment; None when nothing is.
        observation: (N, …) arrays, nested in dicts.
        name: for the log.
    """
    if isinstance(observation, Mapping):
        inner = declared.spaces if isinstance(declared, spaces.Dict) else {}
        return spaces.Dict(
            {str(key): observed_space(inner.get(key), part, f"{name}/{key}") for key, part in observation.items()}
        )
    shape, dtype = observation.shape[1:], observation.dtype
    if isinstance(declared, spaces.Box) and declared.shape == shape and declared.dtype == dtype:
        return declared
    if isinstance(declared, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)) and declared.shape == shape:
        return declared
    if declared is not None:
        print(f"{name}: declared as {declared}, observed as {dtype} {shape}; advertised as observed", flush=True)
    return spaces.Box(*_bounds(dtype), shape=shape, dtype=dtype.type)


def _bounds(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype == np.bool_:
        return 0, 1
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def check_action(action: Any, space: spaces.Space[Any], num_envs: int | None) -> NDArray[Any]:
    """(N, …) actions for the simulator, from one environment's or a batch's.

    Args:
        action: arrays, lists or numbers, passed on unclipped.
        space: for one environment.
        num_envs: None when `action` is that of one environment.

    Raises:
        InputError: the shape is not the space's; nothing was stepped.
    """
    array = np.asarray(action)
    expected = (space.shape or ()) if num_envs is None else (num_envs, *(space.shape or ()))
    if array.dtype.kind not in "fiub" or array.shape != expected:
        raise InputError(
            f"an action of {array.dtype} {array.shape}; this task takes {space.dtype} {expected}"
            + ("" if num_envs is None else f", a row for each of its {num_envs} environments")
        )
    return array.astype(space.dtype, copy=False).reshape(num_envs or 1, *(space.shape or (1,)))


def nan_parts(observation: Any, rewards: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Which environments have NaN where: name of the part -> (N,); empty when there is none.

    Infinities are left alone: a depth image's sky is one.
    """
    found = {}
    for name, array in (*_leaves(observation, "observation"), ("reward", rewards)):
        if array.dtype.kind == "f":
            rows = np.isnan(array).reshape(len(array), -1).any(axis=1)
            if rows.any():
                found[name] = rows
    return found


def _leaves(observation: Any, name: str) -> list[tuple[str, NDArray[Any]]]:
    if isinstance(observation, Mapping):
        return [leaf for key, part in observation.items() for leaf in _leaves(part, f"{name}/{key}")]
    return [(name, observation)]


def row(tree: Any, index: int) -> Any:
    """One environment's part of arrays with a row for each, nested in dicts; an array of memory of its own."""
    if isinstance(tree, Mapping):
        return {key: row(part, index) for key, part in tree.items()}
    return tree[index].copy() if tree.ndim > 1 else tree[index]
