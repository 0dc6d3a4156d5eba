"""openpi's messages: msgpack with numpy's arrays as maps, checked before memory is taken; no pickle, no objects."""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from remote_env.errors import ProtocolError

RESET_KEY, EPISODE_KEY = "__reset__", "__episode__"
OURS = "remote_env"  # the key of our part of the metadata
MAX_ITEMS = 20_000  # of all lists and maps of a message
MAX_LIST = 8_192
MAX_DIMENSIONS = 8
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"


def encode(message: Any) -> bytes:
    """A message's bytes.

    Args:
        message: plain values, numpy arrays and scalars of booleans and numbers.

    Raises:
        TypeError: there is something else in it.
    """
    packed: bytes = msgpack.packb(message, default=_pack)
    return packed


def decode(data: bytes) -> Any:
    """The exact opposite of `encode`; arrays are read-only views of `data`'s parts.

    Raises:
        ProtocolError: the bytes are no message, or hold an array that is not what it says, or not of numbers.
    """
    counter = _Counter()
    try:
        return msgpack.unpackb(
            data,
            object_hook=counter.close_map,
            list_hook=counter.close_list,
            max_array_len=MAX_LIST,
            max_map_len=MAX_LIST,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except Exception as error:  # msgpack has many, and hostile bytes reach more
        raise ProtocolError(f"no openpi message: {type(error).__name__}: {error}") from error


class _Counter:
    """Counts what a message holds while it is read, and makes its arrays."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def close_list(self, items: list[Any]) -> list[Any]:
        self._count(1 + len(items))
        return items

    def close_map(self, items: dict[Any, Any]) -> Any:
        self._count(1 + len(items))
        if _ARRAY in items:
            return _array(items)
        return _scalar(items) if _SCALAR in items else items

    def _count(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            raise ProtocolError(f"an openpi message with more than {MAX_ITEMS} values")


def _array(items: dict[Any, Any]) -> np.ndarray[Any, Any]:
    dtype, shape, data = _dtype(items.get(b"dtype")), items.get(b"shape"), items.get(b"data")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise ProtocolError(f"an array of shape {shape!r:.100}; at most {MAX_DIMENSIONS} whole numbers are allowed")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise ProtocolError(f"an array of shape {tuple(shape)} and dtype {dtype} with {size} bytes of data")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(items: dict[Any, Any]) -> Any:
    value = items.get(b"data")
    if not isinstance(value, (bool, int, float)):
        raise ProtocolError(f"a scalar of numpy's that is a {type(value).__name__}")
    return _dtype(items.get(b"dtype")).type(value)


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ProtocolError(f"an array of dtype {name!r:.60}; booleans, whole numbers and floats are allowed")
    return np.dtype(name)


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 <= size < 1 << 31


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"an openpi message holds plain values and arrays of numbers; got {type(value).__name__}")
