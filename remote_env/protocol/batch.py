"""What a batch of environments says in a RESULT (docs/protocol.md, "Batches"). Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ProtocolError
from remote_env.protocol.layout import array_layout
from remote_env.state import SceneLayout

AUTORESET_MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
_REWARDS = tuple(map(np.dtype, ("<f8", "<f4")))
_REWARD_CODES = {dtype: code for code, dtype in enumerate(_REWARDS)}

# A path to an array of objects, its shape, its items in C order.
Objects = list[tuple[tuple[Any, ...], list[int], list[Any]]]


class BatchTransition:
    """The fixed place of rewards and flags, before the observation: a byte for the rewards' dtype, three arrays.

    Args:
        num_envs: how many environments the batch has.
    """

    def __init__(self, num_envs: int) -> None:
        flags = np.dtype(np.bool_), (num_envs,)
        self._layouts = [array_layout((dtype, (num_envs,)), flags, flags) for dtype in _REWARDS]

    def pack(self, rewards: Any, terminated: Any, truncated: Any) -> tuple[bytearray, list[memoryview]] | None:
        """The bytes for the body and those for the payload; None when a value is not exactly such an array."""
        code = _REWARD_CODES.get(rewards.dtype) if type(rewards) is np.ndarray else None
        if code is None:
            return None
        layout = self._layouts[code]
        packed = bytearray(1 + layout.size)
        packed[0] = code
        payload = layout.write((rewards, terminated, truncated), packed, 1)
        return None if payload is None else (packed, payload)

    def read(self, body: bytearray, offset: int, end: int) -> tuple[tuple[Any, Any, Any], list[memoryview], int]:
        """Rewards, terminated and truncated, the views that the payload is to fill, and the offset behind them.

        Raises:
            ProtocolError: the body is too short, or names another dtype.
        """
        if offset >= end or body[offset] >= len(_REWARDS):
            raise ProtocolError("a batch's transition without the code of its rewards' dtype")
        layout = self._layouts[body[offset]]
        values, views = layout.read(body, offset + 1, end)
        return values, views, offset + 1 + layout.size


def split_objects(info: Any) -> tuple[Any, Objects]:
    """Take the arrays of objects out of an info: what is left, with None in their places, and what they held.

    Gymnasium's vector environments keep there what does not stack: final observations, texts, None.
    """
    found: Objects = []
    return _without_objects(info, (), found), found


def _without_objects(value: Any, path: tuple[Any, ...], found: Objects) -> Any:
    if type(value) is dict:
        return {key: _without_objects(item, (*path, key), found) for key, item in value.items()}
    if type(value) is list:
        return [_without_objects(item, (*path, index), found) for index, item in enumerate(value)]
    if type(value) is not np.ndarray or value.dtype != np.object_:
        return value
    items: list[Any] = []
    found.append((path, list(value.shape), items))  # before those inside it
    items += [_without_objects(item, (*path, index), found) for index, item in enumerate(value.reshape(-1))]
    return None


def join_objects(info: Any, objects: Any) -> Any:
    """The exact opposite of `split_objects`; changes `info`.

    Raises:
        ProtocolError: `objects` do not fit `info`.
    """
    whole = {"info": info}
    try:
        for path, shape, items in objects:
            if not path:
                raise ValueError("an array in place of the info")
            keys = ("info", *path)
            place: Any = whole
            for key in keys[:-1]:
                place = _item(place, key)
            if _item(place, keys[-1]) is not None:
                raise ValueError("an array in a place that is taken")
            _inside(place)[keys[-1]] = _object_array(items, shape)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise ProtocolError(f"arrays of objects that do not fit the info: {error!r:.200}") from error
    return whole["info"]


def _object_array(items: Any, shape: Any) -> NDArray[Any]:
    whole = isinstance(items, list) and isinstance(shape, list) and all(type(size) is int for size in shape)
    if not whole or min(shape, default=0) < 0 or math.prod(shape) != len(items):
        raise ValueError("a shape that is none, or has more or fewer places than there are items")
    array = np.empty(len(items), np.object_)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)


def _item(place: Any, key: Any) -> Any:
    """What is there; only where an info may hold something else than numbers, and where there is something."""
    if isinstance(place, dict):
        return place[key]
    if isinstance(place, np.ndarray) and place.dtype != np.object_:
        raise TypeError("an array of objects within an array of numbers")
    if not isinstance(place, (list, np.ndarray)) or type(key) is not int or key < 0:
        raise TypeError(f"a path into a {type(place).__name__}, by a {type(key).__name__}")
    return _inside(place)[key]


def _inside(value: Any) -> Any:
    return value.reshape(-1) if isinstance(value, np.ndarray) else value


def check_env_ids(env_ids: Any, num_envs: int) -> NDArray[np.int64]:
    """Which environments are meant, (K,) int64; all of them for None.

    Raises:
        ValueError: one is not in the batch, is named twice, or is no whole number.
    """
    if env_ids is None:
        return np.arange(num_envs)
    wanted = f"a list of whole numbers from 0 to {num_envs - 1}, or None for all"
    try:
        ids = np.asarray([env_ids] if isinstance(env_ids, (int, np.integer)) else env_ids)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"env_ids={env_ids!r}: {wanted}") from error
    is_whole = ids.dtype.kind in "iu" or not ids.size
    if ids.ndim != 1 or not is_whole:
        raise ValueError(f"env_ids={env_ids!r}: {wanted}")
    if ids.size and not 0 <= ids.min() <= ids.max() < num_envs:
        bad = ids[(ids < 0) | (ids >= num_envs)][0]
        raise ValueError(f"env_ids names {bad}; this batch has the environments 0 to {num_envs - 1}")
    if len(set(ids.tolist())) != ids.size:
        raise ValueError(f"env_ids={env_ids!r} names an environment twice")
    return ids.astype(np.int64)


def check_rows(layout: SceneLayout, values: Any, count: int) -> None:
    """ValueError when `values` are not `count` states of `layout`, a row each."""
    is_array = isinstance(values, np.ndarray) and values.dtype == np.float64
    if not is_array or values.shape != (count, layout.size):
        got = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise ValueError(f"the states' values are {got}; {count} of this layout are float64 {(count, layout.size)}")
