"""Fixed layouts: values of known shape, packed without msgpack (docs/protocol.md, "Fixed layouts").

A space of Box, MultiBinary, MultiDiscrete, Discrete, and Dict or Tuple of these has a fixed layout; Text, Sequence,
Graph and OneOf have none. A value goes by its layout only when it is *exactly* what the layout says (type, dtype,
shape, keys); otherwise the caller sends it as a msgpack value, so that what arrives is always what was given.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from remote_env.errors import ProtocolError

LARGE_ARRAY_SIZE = 4096  # from this size on an array travels out of line, into memory of its own
_INT = struct.Struct("<Bq")  # whether it is a numpy int64, value
_INT64 = np.iinfo(np.int64)


class _ArrayLeaf:
    """One array of known dtype and shape."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self.bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self.is_large = self.bytes >= LARGE_ARRAY_SIZE
        self.size = 0 if self.is_large else self.bytes

    def fits(self, value: Any) -> bool:
        return (
            type(value) is np.ndarray
            and (value.dtype is self.dtype or value.dtype == self.dtype)
            and value.shape == self.shape
        )

    def write(self, value: Any, body: bytearray, offset: int, payload: list[memoryview]) -> bool:
        if not self.fits(value):
            return False
        if self.is_large:
            payload.append(byte_view(value))
        else:
            body[offset : offset + self.bytes] = value.tobytes()
        return True

    def read(self, body: bytearray, offset: int, payload: list[memoryview]) -> Any:
        if self.is_large:
            array: Any = np.empty(self.shape, self.dtype)
            payload.append(byte_view(array))
            return array
        if not self.bytes:
            return np.empty(self.shape, self.dtype)  # NumPy makes no array from an empty buffer
        # The slice is a copy, writable and its own.
        return np.frombuffer(body[offset : offset + self.bytes], self.dtype).reshape(self.shape)


class _IntLeaf:
    """One integer of 64 bits, Python's or NumPy's."""

    size = _INT.size

    def write(self, value: Any, body: bytearray, offset: int, payload: list[memoryview]) -> bool:
        kind = type(value)
        if kind is not np.int64 and (kind is not int or not _INT64.min <= value <= _INT64.max):
            return False
        _INT.pack_into(body, offset, kind is np.int64, value)
        return True

    def read(self, body: bytearray, offset: int, payload: list[memoryview]) -> Any:
        is_numpy, value = _INT.unpack_from(body, offset)
        if is_numpy > 1:
            raise ProtocolError(f"an integer of kind {is_numpy}; there are 0 and 1")
        return np.int64(value) if is_numpy else value


class _DictNode:
    """A dict with known keys in a known order."""

    def __init__(self, children: dict[str, Any]) -> None:
        self.children = children
        self.keys = list(children)
        self.size = sum(child.size for child in children.values())

    def write(self, value: Any, body: bytearray, offset: int, payload: list[memoryview]) -> bool:
        if type(value) is not dict or list(value) != self.keys:
            return False
        for key, child in self.children.items():
            if not child.write(value[key], body, offset, payload):
                return False
            offset += child.size
        return True

    def read(self, body: bytearray, offset: int, payload: list[memoryview]) -> Any:
        value = {}
        for key, child in self.children.items():
            value[key] = child.read(body, offset, payload)
            offset += child.size
        return value


class _TupleNode:
    """A tuple of known length."""

    def __init__(self, children: list[Any]) -> None:
        self.children = children
        self.size = sum(child.size for child in children)

    def write(self, value: Any, body: bytearray, offset: int, payload: list[memoryview]) -> bool:
        if type(value) is not tuple or len(value) != len(self.children):
            return False
        for item, child in zip(value, self.children, strict=True):
            if not child.write(item, body, offset, payload):
                return False
            offset += child.size
        return True

    def read(self, body: bytearray, offset: int, payload: list[memoryview]) -> Any:
        items = []
        for child in self.children:
            items.append(child.read(body, offset, payload))
            offset += child.size
        return tuple(items)


class ValueLayout:
    """Packs and unpacks the values of one space.

    Attributes:
        size: bytes that every value takes in the body.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self.size: int = root.size

    @property
    def vector(self) -> Vector | None:
        """What the values are when they are one small vector; else None."""
        root = self._root
        if isinstance(root, _ArrayLeaf) and len(root.shape) == 1 and root.size > 0:
            return Vector(root.dtype, root.shape[0])
        return None

    def write(self, value: Any, body: bytearray, offset: int) -> list[memoryview] | None:
        """Pack `value` at `offset`; the large arrays' bytes in order, or None when it does not fit exactly."""
        payload: list[memoryview] = []
        return payload if self._root.write(value, body, offset, payload) else None

    def read(self, body: bytearray, offset: int, end: int) -> tuple[Any, list[memoryview]]:
        """The value packed at `offset`, and the views of its large arrays, which the payload is to fill.

        Raises:
            ProtocolError: the body is shorter than the layout.
        """
        if end - offset < self.size:
            raise ProtocolError(f"a body of {end - offset} bytes is too short for a layout of {self.size}")
        payload: list[memoryview] = []
        return self._root.read(body, offset, payload), payload


class Vector(NamedTuple):
    """One small vector: what a `VectorStep` takes.

    Attributes:
        dtype: of its elements.
        length: how many they are, at least one.
    """

    dtype: np.dtype[Any]
    length: int


def compile_layout(space: Any) -> ValueLayout | None:
    """The layout of `space`'s values, or None when their size is not known from it."""
    root = _compile(space)
    return None if root is None else ValueLayout(root)


def array_layout(*arrays: tuple[Any, tuple[int, ...]]) -> ValueLayout:
    """The layout of a tuple of arrays, each of a dtype and a shape."""
    return ValueLayout(_TupleNode([_ArrayLeaf(np.dtype(dtype), shape) for dtype, shape in arrays]))


def _compile(space: Any) -> Any:
    # By name, so that this module needs no gymnasium and takes the same class from any version of it.
    kind = type(space).__name__
    if kind in ("Box", "MultiBinary", "MultiDiscrete"):
        return _ArrayLeaf(np.dtype(np.dtype(space.dtype).newbyteorder("<").str), tuple(space.shape))
    if kind == "Discrete":
        return _IntLeaf()
    if kind == "Dict":
        children = {key: _compile(child) for key, child in space.spaces.items()}
        return None if None in children.values() else _DictNode(children)
    if kind == "Tuple":
        items = [_compile(child) for child in space.spaces]
        return None if None in items else _TupleNode(items)
    return None


def byte_view(array: np.ndarray[Any, Any]) -> memoryview:
    """The array's memory as 1-D bytes; of a copy when it is not C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


_TRANSITION = struct.Struct("<dBB")  # reward, its kind, flags
TRANSITION_SIZE = _TRANSITION.size
_KINDS: list[type] = [float, np.float64, np.float32, int, np.int64]
_KIND_OF = {kind: code for code, kind in enumerate(_KINDS)}
_TERMINATED, _TRUNCATED, _TERMINATED_NUMPY, _TRUNCATED_NUMPY = 1, 2, 4, 8
_ALL_FLAGS = 15
_EXACT_INT = 1 << 53  # float64 holds every integer up to here


def write_transition(body: bytearray, offset: int, reward: Any, terminated: Any, truncated: Any) -> bool:
    """Pack reward and flags with their exact types; False when one is of another type than a layout knows."""
    if terminated is False and truncated is False and type(reward) is float:
        _TRANSITION.pack_into(body, offset, reward, 0, 0)  # the common case
        return True
    kind = _KIND_OF.get(type(reward))
    if kind is None or (kind >= 3 and not -_EXACT_INT <= reward <= _EXACT_INT):
        return False
    flags = 0
    if terminated is not False:
        if terminated is True:
            flags = _TERMINATED
        elif type(terminated) is np.bool_:
            flags = _TERMINATED_NUMPY | bool(terminated)
        else:
            return False
    if truncated is not False:
        if truncated is True:
            flags |= _TRUNCATED
        elif type(truncated) is np.bool_:
            flags |= _TRUNCATED_NUMPY | (bool(truncated) << 1)
        else:
            return False
    _TRANSITION.pack_into(body, offset, reward, kind, flags)
    return True


def read_transition(body: bytearray, offset: int) -> tuple[Any, Any, Any]:
    """Reward, terminated and truncated, each of the type that was written."""
    reward, kind, flags = _TRANSITION.unpack_from(body, offset)
    if not kind and not flags:
        return reward, False, False
    if kind:
        reward = _reward(reward, kind)
    if flags <= 3:
        return reward, flags & 1 == 1, flags & 2 == 2
    if flags > _ALL_FLAGS:
        raise ProtocolError(f"a transition with the flags {flags:#x}; there are those up to {_ALL_FLAGS:#x}")
    terminated, truncated = flags & _TERMINATED != 0, flags & _TRUNCATED != 0
    return (
        reward,
        np.bool_(terminated) if flags & _TERMINATED_NUMPY else terminated,
        np.bool_(truncated) if flags & _TRUNCATED_NUMPY else truncated,
    )


def _reward(value: float, kind: int) -> Any:
    if kind >= len(_KINDS) or not _LIMITS[kind](value):
        raise ProtocolError(f"reward {value} of kind {kind}")
    return _KINDS[kind](value)


def _is_float32(value: float) -> bool:
    with np.errstate(over="ignore"):
        return math.isnan(value) or float(np.float32(value)) == value


def _is_exact_int(value: float) -> bool:
    return -_EXACT_INT <= value <= _EXACT_INT and value.is_integer()


def _is_any(_value: float) -> bool:
    return True


_LIMITS: list[Callable[[float], bool]] = [_is_any, _is_any, _is_float32, _is_exact_int, _is_exact_int]

_STATE = struct.Struct("<II")  # layout's number, how many float64 follow
_CHANGE = struct.Struct("<IIQI")  # layout's number, how many float64, the reply that they change, how many bytes follow


def pack_state(layout_number: int, values: np.ndarray[Any, Any]) -> bytes:
    """A SceneState's vector, float64, after the number under which its layout was announced."""
    return _STATE.pack(layout_number, values.size) + values.tobytes()


def pack_change(layout_number: int, count: int, base: int, change: bytes) -> bytes:
    """What has changed of the vector of `count` numbers that came with the reply `base`, as `state_delta` writes it."""
    return _CHANGE.pack(layout_number, count, base, len(change)) + change


def read_change(body: bytearray, offset: int, end: int) -> tuple[int, int, int, memoryview, int]:
    """What `pack_change` was given, and the offset behind it; ProtocolError when the body is too short."""
    if end - offset < _CHANGE.size:
        raise ProtocolError("a body ends inside what has changed of a state")
    number, count, base, size = _CHANGE.unpack_from(body, offset)
    start = offset + _CHANGE.size
    if end - start < size:
        raise ProtocolError(f"a change of {size} bytes does not fit into {end - start}")
    return number, count, base, memoryview(body)[start : start + size], start + size


def read_state(body: bytearray, offset: int, end: int) -> tuple[int, np.ndarray[Any, Any], int]:
    """The layout's number, the vector, and the offset behind it; ProtocolError when the body is too short."""
    if end - offset < _STATE.size:
        raise ProtocolError("a body ends inside a state")
    number, count = _STATE.unpack_from(body, offset)
    start = offset + _STATE.size
    if end - start < 8 * count:
        raise ProtocolError(f"a state of {count} values does not fit into {end - start} bytes")
    values = np.ndarray((count,), np.float64, body, start).copy()
    return number, values, start + 8 * count
