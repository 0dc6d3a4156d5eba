"""A batch as the parts that several servers have of it: cut by rows, and put together again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import iterate


def cut_rows(space: Space[Any], batch: Any, rows: slice) -> Any:
    """Some rows of a batch of values of `space`, as views where those can be.

    Args:
        space: of one environment's value.
        batch: as a vector environment takes and returns it: dicts and tuples of stacked arrays.
        rows: which.
    """
    if isinstance(space, spaces.Dict):
        return {key: cut_rows(child, batch[key], rows) for key, child in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(cut_rows(child, part, rows) for child, part in zip(space.spaces, batch, strict=True))
    return batch[rows]


def join_rows(space: Space[Any], parts: Sequence[Any]) -> Any:
    """The batches one below the other, in memory of their own; the opposite of `cut_rows`."""
    if isinstance(space, spaces.Dict):
        return {key: join_rows(space[key], [part[key] for part in parts]) for key in parts[0]}
    if isinstance(space, spaces.Tuple):
        return tuple(join_rows(child, rows) for child, rows in zip(space.spaces, zip(*parts, strict=True), strict=True))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return tuple(itertools.chain.from_iterable(parts))  # what does not stack


def copy_rows(space: Space[Any], batch: Any) -> Any:
    """A batch in memory of its own, for a sender that may change it."""
    return join_rows(space, [batch]) if isinstance(batch, (np.ndarray, dict, tuple)) else list(batch)


def objects_of(space: Space[Any], batch: Any, count: int) -> Any:
    """An array of objects (count,), each a value of one environment, as `final_obs` has it.

    Args:
        space: of the batch.
        batch: of that space.
        count: how many rows it has.
    """
    objects = np.full(count, None, object)
    for index, value in enumerate(iterate(space, batch)):
        objects[index] = value
    return objects


def join_infos(parts: Sequence[dict[str, Any]], counts: Sequence[int]) -> dict[str, Any]:
    """The infos of batches as one of all, as Gymnasium's vector environments make theirs.

    Where a part lacks a key its rows are zeros, or None, and the mask `_key` is false there. A value that has no row
    for each environment becomes a tuple of what the parts have.

    Args:
        parts: of each batch its infos.
        counts: of each how many environments it has.
    """
    if not any(parts):
        return {}
    keys = dict.fromkeys(itertools.chain.from_iterable(parts))
    return {key: _join_key([part.get(key) for part in parts], counts) for key in keys}


def _join_key(values: Sequence[Any], counts: Sequence[int]) -> Any:
    there = [value for value in values if value is not None]
    if all(isinstance(value, dict) for value in there):
        return join_infos([value or {} for value in values], counts)
    if not all(_has_rows(value, count) for value, count in zip(values, counts, strict=True) if value is not None):
        return tuple(values)
    first = there[0]
    alike = all(value.shape[1:] == first.shape[1:] and _is_alike(value, first) for value in there)
    shape = (sum(counts), *first.shape[1:]) if alike else (sum(counts),)
    joined = np.zeros(shape, first.dtype) if alike and first.dtype != np.object_ else np.full(shape, None, object)
    start = 0
    for value, count in zip(values, counts, strict=True):
        if value is not None:
            _set_rows(joined, start, value, alike=alike)
        start += count
    return joined


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape[:1] == (count,)


def _is_alike(value: Any, first: Any) -> bool:
    # Numbers take the first one's type, as they do in Gymnasium's own.
    return value.dtype == first.dtype or (value.dtype.kind in "biuf" and first.dtype.kind in "biuf")


def _set_rows(joined: Any, start: int, value: Any, *, alike: bool) -> None:
    if alike:
        joined[start : start + len(value)] = value
        return
    for index, item in enumerate(value, start):
        joined[index] = item
