"""STEP and its RESULT where action and observation are one small vector each: the same bytes, in a third of the time.

A step of such a task costs more in calls than in bytes, so this packs and reads whole frames in a few of them. It
yields exactly what `layout` yields, and leaves to it whatever is not the common case. Where only the action is a
vector, the request alone goes so: beside an image calls cost more yet, since it drives everything out of the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from remote_env.errors import ProtocolError
from remote_env.protocol import codec, frames, layout

_AT = frames.HEADER_SIZE
_OBSERVATION_AT = _AT + layout.TRANSITION_SIZE
_NO_VECTOR = layout.Vector(np.dtype(np.uint8), 0)
_CONSTANTS = frozenset((bool, int, float, str, bytes, type(None)))

# observation, reward, terminated, truncated, info
Transition = tuple[Any, Any, Any, Any, dict[str, Any]]


class VectorStep:
    """Whole frames of one session. An info travels behind the vectors, as a msgpack tail.

    Args:
        action: the action's dtype and length.
        observation: the observation's dtype and length; None when it is something else, and results are not for this.
        epoch: the session's.

    Attributes:
        has_results: whether observations are vectors, too.
        step_shape: of each STEP frame.
        result_shape: of the RESULT frame that is most likely the next: one as long as the last.
    """

    def __init__(self, action: layout.Vector, observation: layout.Vector | None, epoch: int) -> None:
        self._action_dtype, self._action_shape = action.dtype, (action.length,)
        self.has_results = observation is not None
        observation = observation or _NO_VECTOR
        self._observation_dtype, self._observation_shape = observation.dtype, (observation.length,)
        self._exponents = exponent_masks(action) if action.dtype.kind == "f" else None
        self._tail_at = _OBSERVATION_AT + observation.length * observation.dtype.itemsize
        self._epoch = epoch
        step = bytes(action.length * action.dtype.itemsize)
        self._step = frames.pack_frame(frames.STEP, step, flags=frames.FIXED, epoch=epoch)
        self._result = self._empty_result(0)
        self.step_shape = frames.Shape.of(self._step)
        self.result_shape = frames.Shape.of(self._result)
        self._last_tail = bytearray()
        self._last_info: dict[str, Any] = {}

    def _empty_result(self, tail_size: int) -> bytearray:
        flags = frames.FIXED | frames.TAIL if tail_size else frames.FIXED
        body = bytes(self._tail_at - _AT + tail_size)
        return frames.pack_frame(frames.RESULT, body, flags=flags, epoch=self._epoch)

    def pack_step(self, action: Any, sequence: int, acknowledged: int) -> bytearray | None:
        """The STEP frame, valid until the next call; None when the action is not finite or not just the layout's."""
        if (
            type(action) is not np.ndarray
            or action.dtype is not self._action_dtype
            or action.shape != self._action_shape
        ):
            return None
        data = action.tobytes()
        if self._exponents and has_all_ones(data, self._exponents):
            return None
        frame = self._step
        frame[_AT:] = data
        frames.renumber_frame(frame, sequence, acknowledged)
        return frame

    def read_step(self, body: bytearray) -> Any:
        """The action of a STEP frame of `step_shape` that starts at `body[0]`."""
        return np.frombuffer(body[_AT : self.step_shape.size], self._action_dtype)

    def pack_result(self, transition: Transition, tail: bytes, sequence: int) -> bytearray | None:
        """The RESULT frame, valid until the next call; None when a value is not of the commonest kind.

        Args:
            transition: what the task returned; its info is in the tail.
            tail: the msgpack value {"info": ...}, empty when there is none.
            sequence: of the request.
        """
        observation, reward, terminated, truncated, _ = transition
        if (
            type(observation) is not np.ndarray
            or observation.dtype is not self._observation_dtype
            or observation.shape != self._observation_shape
        ):
            return None
        if len(self._result) != self._tail_at + len(tail):
            self._result = self._empty_result(len(tail))
        frame = self._result
        if not layout.write_transition(frame, _AT, reward, terminated, truncated):
            return None
        frame[_OBSERVATION_AT : self._tail_at] = observation.tobytes()
        frame[self._tail_at :] = tail
        frames.renumber_frame(frame, sequence, sequence)
        return frame

    def read_result(self, body: bytearray) -> Transition:
        """The transition of a RESULT frame of `result_shape` that starts at `body[0]`.

        Raises:
            ProtocolError: its tail is no info.
        """
        reward, terminated, truncated = layout.read_transition(body, _AT)
        observation = np.frombuffer(body[_OBSERVATION_AT : self._tail_at], self._observation_dtype)
        tail = body[self._tail_at : self.result_shape.size]
        info = self._read_info(tail) if tail else {}
        return observation, reward, terminated, truncated, info

    def _read_info(self, tail: bytearray) -> dict[str, Any]:
        if tail != self._last_tail or not self._last_info:
            value, _ = codec.decode(tail, 0)
            if not isinstance(value, dict) or not isinstance(value.get("info"), dict):
                raise ProtocolError("a RESULT whose tail holds no info")
            info: dict[str, Any] = value["info"]
            # Only what cannot be changed may be handed out twice.
            is_constant = all(type(item) in _CONSTANTS for item in info.values())
            self._last_tail, self._last_info = tail, info if is_constant else {}
            return dict(info)
        return dict(self._last_info)

    def expect_like(self, header: frames.Header) -> None:
        """Take a RESULT that was not of `result_shape` for the likeliest next, if it may be one of ours."""
        tail_size = _AT + header.body_size - self._tail_at
        if tail_size >= 0 and header.payload_size == 0:
            self.result_shape = frames.Shape.of(self._empty_result(tail_size))


def exponent_masks(vector: layout.Vector) -> tuple[int, int, int]:
    """For `has_all_ones`: every element's exponent bits, their lowest bits, and its sign bit, as an integer each."""
    bits = 8 * vector.dtype.itemsize
    fraction = np.finfo(vector.dtype).nmant
    every = sum(1 << (bits * index) for index in range(vector.length))
    return every * ((1 << (bits - 1)) - (1 << fraction)), every << fraction, every << (bits - 1)


def has_all_ones(data: bytes, masks: tuple[int, int, int]) -> bool:
    """Whether an element's exponent is all ones, that is (IEEE 754) whether it is infinite or not a number.

    Adding one to such an exponent, and only to such a one, carries into the sign's place. A third of the time of
    `np.isfinite(...).all()`.
    """
    exponents, ones, signs = masks
    return bool(((int.from_bytes(data, "little") & exponents) + ones) & signs)
