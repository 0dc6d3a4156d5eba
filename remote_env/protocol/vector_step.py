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
    """

    def __init__(self, action: layout.Vector, observation: layout.Vector, epoch: int) -> None:
        self._action_dtype, self._action_shape = action.dtype, (action.length,)
        self._observation_dtype, self._observation_shape = observation.dtype, (observation.length,)
        self._observation_end = _OBSERVATION_AT + observation.length * observation.dtype.itemsize
        self._result_size = self._observation_end - _AT
        self._is_float = action.dtype.kind == "f"
        self._step = frames.pack_frame(
            frames.STEP, bytes(action.length * action.dtype.itemsize), flags=frames.FIXED, epoch=epoch
        )
        self._result = frames.pack_frame(frames.RESULT, bytes(self._result_size), flags=frames.FIXED, epoch=epoch)

    def pack_step(self, action: Any, sequence: int, acknowledged: int) -> bytearray | None:
        """The STEP frame, valid until the next call; None when the action is not finite or not just the layout's."""
        if (
            type(action) is not np.ndarray
            or action.dtype is not self._action_dtype
            or action.shape != self._action_shape
            # Searching the bytes for a zero takes a third of the time of `.all()`.
            or (self._is_float and 0 in np.isfinite(action).tobytes())
        ):
            return None
        frame = self._step
        frame[_AT:] = action.tobytes()
        frames.renumber_frame(frame, sequence, acknowledged)
        return frame

    def read_step(self, header: frames.Header, body: bytearray, start: int) -> Any:
        """The action of a STEP frame; None when it is not of this layout alone."""
        if header[3] != frames.FIXED or header[8] != len(self._step) - _AT or header[9]:
            return None
        return np.frombuffer(body[start : start + header[8]], self._action_dtype)

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

    def read_result(
        self, header: frames.Header, body: bytearray, start: int
    ) -> tuple[Any, Any, Any, Any, dict[str, Any]] | None:
        """The transition of a RESULT frame; None when there is more in it than a layout."""
        if header[3] != frames.FIXED or header[8] != self._result_size or header[9]:
            return None
        reward, terminated, truncated = layout.read_transition(body, start)
        at = start + layout.TRANSITION_SIZE
        observation = np.frombuffer(body[at : start + header[8]], self._observation_dtype)
        return observation, reward, terminated, truncated, {}
