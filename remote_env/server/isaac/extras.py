"""What an Isaac Lab environment says besides observations and rewards, as infos that can cross. No Isaac here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SUCCESS_NAMES = ("is_success", "success", "successes")


def plain_extras(extras: Mapping[str, Any], num_envs: int, *, single: bool, left_out: set[str], path: str = "") -> Any:
    """An info from `extras` that are on the host: arrays per environment, Python's own for single numbers.

    Args:
        extras: nested; arrays where tensors were.
        num_envs: how many environments there are.
        single: whether to give the one environment's own values instead of arrays with one row.
        left_out: gets the key paths of what cannot cross, such as objects of the simulator's.
        path: of `extras` itself.
    """
    info: dict[str, Any] = {}
    for key, value in extras.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            info[str(key)] = plain_extras(value, num_envs, single=single, left_out=left_out, path=f"{name}/")
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
            info[str(key)] = _plain_array(np.asarray(value), num_envs, single=single)
        elif value is None or _is_plain(value):
            info[str(key)] = value
        elif isinstance(value, (list, tuple)) and all(map(_is_plain, value)):
            info[str(key)] = list(value)
        else:
            left_out.add(name)
    return info


def _is_plain(value: Any) -> bool:
    """A text, or a number that the wire has: of an integer 64 bits."""
    is_integer = isinstance(value, int)
    return -(2**63) <= value < 2**64 if is_integer else isinstance(value, (str, float))


def _plain_array(array: Any, num_envs: int, *, single: bool) -> Any:
    if array.ndim == 0:
        return array.item()
    if single and len(array) == num_envs == 1:
        return array[0].item() if array.ndim == 1 else array[0]
    return array


def success_of(info: Mapping[str, Any], num_envs: int | None) -> Any:
    """What the task says about success, by one of the names in use; None when it says nothing.

    Args:
        info: plain.
        num_envs: of a batch, of which (num_envs,) values are wanted: a rate of all of them says nothing about each.
            None: of one environment, one value.
    """
    for name in SUCCESS_NAMES:
        value = info.get(name)
        if num_envs is not None and isinstance(value, np.ndarray) and value.shape == (num_envs,):
            return value.astype(bool)
        if num_envs is None and isinstance(value, (bool, int, float)):
            return bool(value)
    return None


def leaves(extras: Mapping[str, Any]) -> list[Any]:
    """Everything in nested `extras` that is no mapping; alive for as long as the list is."""
    found = []
    for value in extras.values():
        found += leaves(value) if isinstance(value, Mapping) else [value]
    return found


def without(extras: Mapping[str, Any], old: list[Any]) -> dict[str, Any]:
    """`extras` without the very objects in `old`, which Isaac Lab leaves there until something else is said."""
    known, kept = {id(value) for value in old}, {}
    for key, value in extras.items():
        if isinstance(value, Mapping):
            if inner := without(value, old):
                kept[key] = inner
        elif id(value) not in known:
            kept[key] = value
    return kept
