"""INFER and its RESULT where one is like the one before but for its numbers: the same bytes, in a third of the time.

A small request costs more in calls than in bytes, so this fills and reads whole frames in a few of them. It yields
exactly what `inference` yields, and leaves to it whatever is not just like the last one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from remote_env.protocol.frames import HEADER_SIZE, Shape
from remote_env.protocol.layout import LARGE_ARRAY_SIZE

ROWS = struct.Struct("<I")
CHUNK = struct.Struct("<IId")  # rows, actions per row, seconds
_SECONDS = struct.Struct("<d")
_SECONDS_AT = HEADER_SIZE + 8
_CRC = struct.Struct("<I")
_CRC_AT = 12
_SIZES_AT = 32
_RESULT = struct.Struct("<IQQ16sd")  # CRC32, sequence, acknowledged, sizes and rows and actions, seconds
_TURN = struct.Struct("<IQQ")  # as frames.renumber_frame, whose work is done here without the call
_ACTIONS_AT = HEADER_SIZE + CHUNK.size
FLOAT32 = np.dtype("<f4")


class Leaf(NamedTuple):
    """One feature of fixed shape.

    Attributes:
        name: of the feature.
        dtype: of its items.
        shape: without the batch.
        row_bytes: of one row.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    row_bytes: int


class _Place(NamedTuple):
    """Where a feature lies in the frames.

    Attributes:
        name: of the feature.
        dtype: of its items.
        shape: with the batch.
        start: in the frame.
        end: likewise.
        memory: there, in the frame to be sent.
        is_float: whether its items may be infinite, or not numbers.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int
    memory: memoryview
    is_float: bool

    @classmethod
    def of(cls, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], frame: bytearray, start: int) -> _Place:
        """The place that begins at `start`."""
        end = start + np.ndarray(shape, dtype, frame, start).nbytes
        return cls(name, dtype, shape, start, end, memoryview(frame)[start:end], dtype.kind == "f")


class RepeatedRequest:
    """INFERs of the same rows, episodes and dtypes as one that was sent or read.

    Args:
        frame: that one, whole; its own.
        leaves: the policy's features, all of them.
        rows: B.
        episodes: B names.

    Attributes:
        shape: of each such frame.
        episodes: B names.
        frame: the next one to be sent.
        payload: none.
    """

    payload: Sequence[memoryview] = ()

    def __init__(self, frame: bytearray, leaves: Sequence[Leaf], rows: int, episodes: Sequence[str]) -> None:
        self.frame, self.episodes = frame, tuple(episodes)
        self.shape = Shape.of(frame)
        self._places: list[_Place] = []
        at = HEADER_SIZE + ROWS.size
        for name, dtype, shape, row_bytes in leaves:
            self._places.append(_Place.of(name, dtype, (rows, *shape), frame, at))
            at += rows * row_bytes
        self._first, self._tail_at = frame[HEADER_SIZE : HEADER_SIZE + ROWS.size], at
        self._tail = frame[at:]

    @classmethod
    def of(cls, frame: bytearray, leaves: Sequence[Leaf], rows: int, episodes: Sequence[str]) -> RepeatedRequest | None:
        """One like `frame`; None when it has large arrays, or not as many rows as episodes."""
        if any(leaf.row_bytes * rows >= LARGE_ARRAY_SIZE for leaf in leaves):
            return None
        if ROWS.unpack_from(frame, HEADER_SIZE)[0] != rows:  # it names more or fewer episodes than it has rows
            return None
        return cls(frame, leaves, rows, episodes)

    def fill(self, observation: Mapping[str, Any]) -> bool:
        """Put this observation into the frame; False when it is not of just these arrays."""
        for name, dtype, shape, _, _, memory, _ in self._places:
            value = observation.get(name)
            if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
                return False
            memory[:] = value.tobytes()
        return True

    def seal(self, kind: int, sequence: int, acknowledged: int) -> None:  # noqa: ARG002  it is an INFER
        """Give the frame its numbers."""
        frame = self.frame
        _TURN.pack_into(frame, _CRC_AT, 0, sequence, acknowledged)
        _CRC.pack_into(frame, _CRC_AT, crc32(frame))

    def read(self, body: bytearray) -> dict[str, Any] | None:
        """The observation of a frame of `shape` that starts at `body[0]`.

        None when rows or episodes are others, or a number may not be finite, which is for a closer look to tell.
        """
        if (
            body[HEADER_SIZE : HEADER_SIZE + ROWS.size] != self._first
            or body[self._tail_at : self.shape.size] != self._tail
        ):
            return None
        observation = {}
        for name, dtype, shape, start, end, _, is_float in self._places:
            # The slice is a copy, writable and its own.
            observation[name] = array = np.ndarray(shape, dtype, body[start:end])
            if is_float and not isfinite(np.vdot(array, array)):  # as quick_check.is_finite
                return None
        return observation


class RepeatedResult:
    """RESULTs of INFER with as many rows and actions as one that was sent or read.

    Args:
        frame: that one, whole; its own.
        shape: (B, K, D).

    Attributes:
        shape: of each such frame.
        frame: the next one to be sent.
        reply: the same as the buffers of a reply.
        actions: (B, K, D), the memory of its actions.
    """

    def __init__(self, frame: bytearray, shape: tuple[int, ...]) -> None:
        self.frame, self._actions = frame, shape
        self.reply = (frame,)
        self.actions: NDArray[np.float32] = np.ndarray(shape, FLOAT32, frame, _ACTIONS_AT)
        self._first = frame[HEADER_SIZE:_SECONDS_AT]
        self._middle = bytes(frame[_SIZES_AT:_SECONDS_AT])
        self.shape = Shape.of(frame)

    def fill(self, chunk: NDArray[np.float32], seconds: float, sequence: int) -> bytearray | None:
        """The RESULT with these actions, valid until the next call; None when there are more or fewer."""
        if chunk.shape != self._actions:
            return None
        self.actions[...] = chunk
        self.seal(seconds, sequence)
        return self.frame

    def seal(self, seconds: float, sequence: int) -> None:
        """Give the frame, whose actions are there, the rest."""
        frame = self.frame
        _RESULT.pack_into(frame, _CRC_AT, 0, sequence, sequence, self._middle, seconds)
        _CRC.pack_into(frame, _CRC_AT, crc32(frame))

    def read(self, body: bytearray) -> tuple[NDArray[np.float32], float] | None:
        """Actions and seconds of a frame of `shape` at `body[0]`; None when rows and actions are others."""
        if body[HEADER_SIZE:_SECONDS_AT] != self._first:
            return None
        seconds: float = _SECONDS.unpack_from(body, _SECONDS_AT)[0]
        return np.ndarray(self._actions, FLOAT32, body[_ACTIONS_AT : self.shape.size]), seconds
