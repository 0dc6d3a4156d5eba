"""Values of many steps as one: stacked arrays where they are alike, lists where they are not. Pure.

What is stacked of n values is an array or a list of n rows, or a dict or tuple of such.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_SIZE = 64  # bytes that a value counts at least: a body of many small values is full as well
_PLAIN = (bool, int, float)


def copied(value: Any) -> Any:
    """A copy that shares no memory with what a task may write to again."""
    if isinstance(value, np.ndarray):
        return np.array(value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(copied(item) for item in value)
    return value if isinstance(value, (str, bytes, np.generic, *_PLAIN)) else copy.deepcopy(value)


def size_of(value: Any) -> int:
    """About how many bytes it takes in a message."""
    if isinstance(value, Mapping):
        return MIN_SIZE + sum(MIN_SIZE + size_of(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return MIN_SIZE + sum(map(size_of, value))
    if isinstance(value, (str, bytes)):
        return MIN_SIZE + len(value)
    return MIN_SIZE + int(getattr(value, "nbytes", 0))


def stack(values: Sequence[Any]) -> Any:
    """Values of n steps as one: an (n, …) array, a dict or tuple of such, or a list of n where they are not alike."""
    if not values:
        return []
    first = values[0]
    kind = type(first)
    if any(type(value) is not kind for value in values):
        return list(values)
    if kind is np.ndarray:
        alike = all(value.shape == first.shape and value.dtype == first.dtype for value in values)
        return np.stack(values) if alike else list(values)
    if kind is dict and all(value.keys() == first.keys() for value in values):
        return {key: stack([value[key] for value in values]) for key in first}
    if kind is tuple and first and all(len(value) == len(first) for value in values):
        return tuple(stack(items) for items in zip(*values, strict=True))
    if isinstance(first, np.generic):
        return np.array(values, kind)
    return _stack_plain(list(values)) if kind in _PLAIN else list(values)


def _stack_plain(values: list[Any]) -> Any:
    try:
        return np.array(values, {bool: np.bool_, int: np.int64, float: np.float64}[type(values[0])])
    except OverflowError:
        return values


def join(parts: Sequence[Any]) -> Any:
    """What stacks of consecutive steps are together, as `stack` would have made it of all."""
    parts = [part for part in parts if not (type(part) is list and not part)]
    if len(parts) < 2:
        return parts[0] if parts else []
    first = parts[0]
    kind = type(first)
    if all(type(part) is kind for part in parts):
        if kind is np.ndarray and all(p.dtype == first.dtype and p.shape[1:] == first.shape[1:] for p in parts):
            return np.concatenate(parts)
        if kind is dict and all(part.keys() == first.keys() for part in parts):
            return {key: join([part[key] for part in parts]) for key in first}
        if kind is tuple and all(len(part) == len(first) for part in parts):
            return tuple(join(items) for items in zip(*parts, strict=True))
    return [row for part in parts for row in rows(part)]


class TooManyRows(ValueError):
    """More than there may be.

    Attributes:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} rows")
        self.count = count


def rows(stacked: Any, most: int | None = None) -> list[Any]:
    """The n values that were stacked.

    Args:
        stacked: as `stack` made it.
        most: how large n may be. An array without items takes no memory, and has as many rows as it says.

    Raises:
        TypeError, ValueError: it is nothing that was stacked.
        TooManyRows: n is more than `most`.
    """
    if isinstance(stacked, dict):
        columns = [rows(column, most) for column in stacked.values()]
        return [dict(zip(stacked, items, strict=True)) for items in zip(*columns, strict=True)]
    if isinstance(stacked, tuple):
        return list(zip(*(rows(column, most) for column in stacked), strict=True))
    if isinstance(stacked, (str, bytes)):
        raise TypeError(f"a {type(stacked).__name__}")
    if most is not None and len(stacked) > most:
        raise TooManyRows(len(stacked))
    return list(stacked)
