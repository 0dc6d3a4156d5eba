"""STEP and its RESULT where action and observation are one small vector each: the same bytes, in a third of the time.

A step of such a task costs more in calls than in bytes, so this packs and reads whole frames in a few of them. It
yields exactly what `layout` yields, and leaves to it whatever is not the common case.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from remote_env.protocol import frames, layout

_AT = frames.HEADER_SIZE
_OBSERVATION_AT = _AT + layout.TRANSITION_SIZE


class VectorStep:
    """Whole frames of one session.

    Args:
        action: the action's dtype and length.
        observation: the observation's dtype and length.
        epoch: the session's.

    Attributes:
        step_shape: of each STEP frame.
        result_shape: of each RESULT frame.
    """

    def __init__(self, action: layout.Vector, observation: layout.Vector, epoch: int) -> None:
        self._action_dtype, self._action_shape = action.dtype, (action.length,)
        self._observation_dtype, self._observation_shape = observation.dtype, (observation.length,)
        self._exponents = exponent_masks(action) if action.dtype.kind == "f" else None
        step = bytes(action.length * action.dtype.itemsize)
        result = bytes(layout.TRANSITION_SIZE + observation.length * observation.dtype.itemsize)
        self._step = frames.pack_frame(frames.STEP, step, flags=frames.FIXED, epoch=epoch)
        self._result = frames.pack_frame(frames.RESULT, result, flags=frames.FIXED, epoch=epoch)
        self.step_shape = frames.Shape.of(self._step)
        self.result_shape = frames.Shape.of(self._result)

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

    def pack_result(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, sequence: int
    ) -> bytearray | None:
        """The RESULT frame, valid until the next call; None when a value is not of the commonest kind."""
        if (
            type(observation) is not np.ndarray
            or observation.dtype is not self._observation_dtype
            or observation.shape != self._observation_shape
        ):
            return None
        frame = self._result
        if not layout.write_transition(frame, _AT, reward, terminated, truncated):
            return None
        frame[_OBSERVATION_AT:] = observation.tobytes()
        frames.renumber_frame(frame, sequence, sequence)
        return frame

    def read_result(self, body: bytearray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The transition of a RESULT frame of `result_shape` that starts at `body[0]`."""
        reward, terminated, truncated = layout.read_transition(body, _AT)
        observation = np.frombuffer(body[_OBSERVATION_AT : self.result_shape.size], self._observation_dtype)
        return observation, reward, terminated, truncated, {}


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
