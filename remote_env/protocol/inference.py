"""INFER and its RESULT: observations in a fixed layout, chunks of actions back (docs/protocol.md, "Policies"). Pure.

Both ends derive the same layout from the policy's features. Arrays that are just what the features say cross as their
own memory; everything else (texts, coded images, arrays of another kind) crosses as a MessagePack value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import MessageTooBig, ProtocolError
from remote_env.protocol import codec, frames
from remote_env.protocol.coding import decode_array, is_coded
from remote_env.protocol.layout import LARGE_ARRAY_SIZE, byte_view
from remote_env.protocol.repeated_inference import CHUNK, FLOAT32, ROWS, Leaf, RepeatedRequest, RepeatedResult

MAX_ROWS = 1 << 16


class Request(NamedTuple):
    """A frame that is ready to be sent, but for its header.

    Attributes:
        frame: room for the header, then the body.
        flags: of the header.
        payload: the large arrays' own memory.
    """

    frame: bytearray
    flags: int
    payload: Sequence[memoryview]

    @property
    def payload_size(self) -> int:
        """In bytes."""
        return sum(map(len, self.payload)) if self.payload else 0

    def seal(self, kind: int, sequence: int, acknowledged: int) -> None:
        """Write the header; MessageTooBig as `finish_frame`."""
        frames.finish_frame(self.frame, kind, self.flags, 0, sequence, acknowledged, self.payload_size)


class InferCodec:
    """Packs and reads INFER and its RESULT.

    Args:
        arrays: feature name -> dtype and shape without the batch, of those that are arrays, in the metadata's order.
        action_size: D, how many numbers an action has.
        max_message_bytes: of the arrays of one message.
        has_others: whether the policy has features that are no arrays.

    Attributes:
        arrays: how many features are arrays.
    """

    def __init__(
        self,
        arrays: Mapping[str, tuple[str, Sequence[int]]],
        action_size: int,
        max_message_bytes: int = frames.MAX_PAYLOAD_SIZE,
        *,
        has_others: bool = False,
    ) -> None:
        self._leaves = [_leaf(name, dtype, shape) for name, (dtype, shape) in arrays.items()]
        self._fixed_names = frozenset(arrays)
        self.arrays = len(arrays)
        self._action_size, self._has_others = action_size, has_others
        self._limits = codec.Limits(max_payload_bytes=max_message_bytes, max_array_bytes=max_message_bytes)
        self._tail: tuple[bytes, tuple[str, ...]] = (b"", ())  # the last one read, which is likely the next

    def pack_request(self, observation: Mapping[str, Any], episode_ids: Sequence[str]) -> Request:
        """The INFER for these rows.

        Args:
            observation: feature name -> (B, *shape) array, list of B texts, or what `encode_array` made of an array.
            episode_ids: B names.

        Raises:
            InputError: something inside cannot cross; nothing was sent.
        """
        rows = len(episode_ids)
        parts: list[bytes] = [ROWS.pack(rows)]
        payload: list[memoryview] = []
        for name, dtype, shape, row_bytes in self._leaves:
            value = observation.get(name)
            if type(value) is not np.ndarray or value.dtype != dtype or value.shape != (rows, *shape):
                return _pack_value(observation, episode_ids)
            if row_bytes * rows < LARGE_ARRAY_SIZE:
                parts.append(value.tobytes())
            else:
                payload.append(byte_view(value))
        if not self._leaves:
            return _pack_value(observation, episode_ids)
        frame = bytearray(frames.HEADER_SIZE)
        frame += b"".join(parts)
        rest = _rest(observation, episode_ids, self._fixed_names)
        if not rest:
            return Request(frame, frames.FIXED, payload)
        tail, more = codec.encode(rest, where="observation")
        frame += tail
        return Request(frame, frames.FIXED | frames.TAIL, [*payload, *more])

    def repeat(
        self, frame: bytearray, flags: int, payload_size: int, episodes: Sequence[str]
    ) -> RepeatedRequest | None:
        """For further requests like this one, sealed or read; None when it is not of the kind that this is for.

        Args:
            frame: header and body; not used by anybody else from now on.
            flags: of its header.
            payload_size: likewise.
            episodes: that it names.
        """
        if not flags & frames.FIXED or payload_size or self._has_others:
            return None
        return RepeatedRequest.of(frame, self._leaves, len(episodes), episodes)

    def read_request(
        self, header: frames.Header, body: bytearray, start: int, end: int
    ) -> tuple[dict[str, Any], Sequence[str], list[memoryview]]:
        """The observation, the rows' episodes, and the views that the payload is to fill.

        Coded arrays are still coded: `decode_coded` them once the payload is there.

        Raises:
            ProtocolError: the body is not one that `pack_request` makes (also MessageTooBig).
        """
        if header.payload_size > self._limits.max_payload_bytes:
            raise MessageTooBig(
                f"an observation of {header.payload_size} bytes; this server takes {self._limits.max_payload_bytes}"
            )
        if not header.flags & frames.FIXED:
            value, views = codec.decode(bytes(body[start:end]), header.payload_size, self._limits)
            observation, episodes = _read_rest(value, 1)
            return observation, episodes, views
        rows, at = _read_rows(body, start, end)
        fixed, at, views, left = self._read_arrays(body, at, end, rows, header.payload_size)
        if not header.flags & frames.TAIL:
            if at != end or left:
                raise ProtocolError(f"an INFER with {end - at} + {left} bytes left over")
            return fixed, ("",) * rows, views
        tail = bytes(body[at:end])
        if tail == self._tail[0] and not left:
            return fixed, self._tail[1], views
        value, more = codec.decode(tail, left, self._limits)
        observation, episodes = _read_rest(value, rows)
        if twice := observation.keys() & fixed.keys():
            raise ProtocolError(f"an INFER that holds {sorted(twice)[0][:60]!r} twice")
        if not observation and "episodes" in value:
            self._tail = (tail, episodes)
        return {**fixed, **observation}, episodes, [*views, *more]

    def _read_arrays(
        self, body: bytearray, at: int, end: int, rows: int, payload_left: int
    ) -> tuple[dict[str, Any], int, list[memoryview], int]:
        """The arrays in the body, where what follows begins, the views of the large ones, and what they leave over."""
        observation: dict[str, Any] = {}
        views: list[memoryview] = []
        for name, dtype, shape, row_bytes in self._leaves:
            size = row_bytes * rows
            if size < LARGE_ARRAY_SIZE:
                if end - at < size:
                    raise ProtocolError(f"an INFER of {rows} rows ends inside {name!r}")
                # The slice is a copy, writable and its own.
                observation[name] = np.ndarray((rows, *shape), dtype, body[at : at + size])
                at += size
                continue
            payload_left -= size
            if payload_left < 0:
                raise ProtocolError(f"the payload of an INFER of {rows} rows ends inside {name!r}")
            observation[name] = array = np.empty((rows, *shape), dtype)
            views.append(byte_view(array))
        return observation, at, views, payload_left

    def pack_result(self, chunk: NDArray[np.float32], seconds: float) -> Request:
        """The RESULT with these actions.

        Args:
            chunk: (B, K, D) float32.
            seconds: from the request's coming to here, to show [s].
        """
        frame = bytearray(frames.HEADER_SIZE)
        frame += CHUNK.pack(chunk.shape[0], chunk.shape[1], seconds)
        if chunk.nbytes >= LARGE_ARRAY_SIZE:
            return Request(frame, frames.FIXED, [byte_view(chunk)])
        frame += chunk.tobytes()
        return Request(frame, frames.FIXED, ())

    def repeat_result(self, frame: bytearray, flags: int, payload_size: int) -> RepeatedResult | None:
        """For further RESULTs like this one, sealed or read; see `repeat`."""
        if flags != frames.FIXED or payload_size:
            return None
        rows, length, _ = CHUNK.unpack_from(frame, frames.HEADER_SIZE)
        return RepeatedResult(frame, (rows, length, self._action_size))

    def read_result(
        self, header: frames.Header, body: bytearray, start: int, end: int
    ) -> tuple[NDArray[np.float32], float, list[memoryview]]:
        """The actions (B, K, D), the server's seconds, and the views that the payload is to fill.

        Raises:
            ProtocolError: the body is not one that `pack_result` makes.
        """
        if header.flags != frames.FIXED or end - start < CHUNK.size:
            raise ProtocolError(f"a RESULT of an INFER with the flags {header.flags} and {end - start} bytes")
        rows, length, seconds = CHUNK.unpack_from(body, start)
        if rows > MAX_ROWS:
            raise ProtocolError(f"actions for {rows} rows; at most {MAX_ROWS} are allowed")
        shape = (rows, length, self._action_size)
        at, size = start + CHUNK.size, rows * length * self._action_size * FLOAT32.itemsize
        if (end - at, header.payload_size) != ((0, size) if size >= LARGE_ARRAY_SIZE else (size, 0)):
            raise ProtocolError(f"actions {shape} in {end - at} + {header.payload_size} bytes")
        if size < LARGE_ARRAY_SIZE:
            return np.ndarray(shape, FLOAT32, body[at:end]), seconds, []
        chunk: NDArray[np.float32] = np.empty(shape, FLOAT32)
        return chunk, seconds, [byte_view(chunk)]


def decode_coded(observation: dict[str, Any], *, max_bytes: int) -> dict[str, Any]:
    """The observation with its coded arrays decoded; `max_bytes` bounds their sum. Errors as `decode_array`."""
    if not any(map(is_coded, observation.values())):
        return observation
    plain = dict(observation)
    for name, value in observation.items():
        if is_coded(value):
            plain[name] = array = decode_array(value, max_bytes=max_bytes)
            max_bytes -= array.nbytes
    return plain


def _leaf(name: str, dtype: str, shape: Sequence[int]) -> Leaf:
    try:
        kind = np.dtype(np.dtype(dtype).newbyteorder("<").str)
    except TypeError as error:
        raise ProtocolError(f"the feature {name!r:.60} has the dtype {dtype!r:.60}: {error}") from error
    size = kind.itemsize
    for length in shape:
        size *= int(length)
    if kind not in codec.DTYPES or min(shape, default=0) < 0 or size > frames.MAX_PAYLOAD_SIZE:
        raise ProtocolError(f"the feature {name!r:.60} is {kind} {str(shape)[:60]}, which no message can hold")
    return Leaf(name, kind, tuple(map(int, shape)), size)


def _rest(observation: Mapping[str, Any], episode_ids: Sequence[str], fixed: Iterable[str]) -> dict[str, Any]:
    """What the fixed layout does not hold; empty when there is nothing to say."""
    rest: dict[str, Any] = {}
    if any(episode_ids):
        rest["episodes"] = list(episode_ids)
    others = {name: value for name, value in observation.items() if name not in fixed}
    if others:
        rest["observation"] = others
    return rest


def _pack_value(observation: Mapping[str, Any], episode_ids: Sequence[str]) -> Request:
    value = {"episodes": list(episode_ids), "observation": dict(observation)}
    body, payload = codec.encode(value, where="observation")
    return Request(bytearray(frames.HEADER_SIZE) + body, 0, payload)


def _read_rows(body: bytearray, start: int, end: int) -> tuple[int, int]:
    if end - start < ROWS.size:
        raise ProtocolError(f"an INFER of {end - start} bytes")
    rows = ROWS.unpack_from(body, start)[0]
    if rows > MAX_ROWS:
        raise ProtocolError(f"an INFER of {rows} rows; at most {MAX_ROWS} are allowed")
    return rows, start + ROWS.size


def _read_rest(value: Any, rows: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Observation and episodes of a MessagePack value; ("",) per row when it names none."""
    if not isinstance(value, dict):
        raise ProtocolError(f"an INFER whose value is {type(value).__name__}, not a dict")
    observation, episodes = value.get("observation", {}), value.get("episodes", [""] * rows)
    if not isinstance(observation, dict) or not all(isinstance(name, str) for name in observation):
        raise ProtocolError("an INFER whose observation is not a dict with names")
    if isinstance(episodes, list) and len(episodes) > MAX_ROWS:
        raise ProtocolError(f"an INFER of {len(episodes)} episodes; at most {MAX_ROWS} are allowed")
    if not isinstance(episodes, list) or not all(isinstance(episode, str) for episode in episodes):
        raise ProtocolError("an INFER whose episodes are not a list of names")
    return observation, tuple(episodes)
