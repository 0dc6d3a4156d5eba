"""INFER and its RESULT from any body, in the general way and in that of repeated ones, which must agree."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from remote_env.errors import ProtocolError, RemoteEnvError
from remote_env.protocol import frames
from remote_env.protocol.inference import InferCodec, decode_coded
from remote_env.protocol.repeated_inference import RepeatedRequest

MAX_BYTES = 1 << 20
FEATURES = {"state": ("float32", (2,)), "image": ("uint8", (24, 24, 3)), "none": ("int64", (0,))}
CODECS = (
    InferCodec({"state": ("float32", (2,))}, 2, MAX_BYTES),
    InferCodec({"state": ("float32", (2,))}, 0, MAX_BYTES, has_others=True),
    InferCodec(FEATURES, 1, MAX_BYTES, has_others=True),
    InferCodec({}, 7, MAX_BYTES, has_others=True),
)


def read_request(codec: InferCodec, frame: bytearray) -> None:
    """What a server makes of it."""
    header = frames.parse_header(frame)
    observation, episodes, views = codec.read_request(header, frame, frames.HEADER_SIZE, len(frame))
    assert sum(map(len, views)) == header.payload_size, "views that are not the payload"
    for view in views:
        view[:] = bytes(len(view))
    if not views and len(observation) == codec.arrays:
        repeated = codec.repeat(bytearray(frame), header.flags, header.payload_size, episodes)
        if repeated is not None:
            compare(repeated, frame, observation)
    with contextlib.suppress(RemoteEnvError):
        decode_coded(observation, max_bytes=MAX_BYTES)


def compare(repeated: RepeatedRequest, frame: bytearray, observation: dict[str, Any]) -> None:
    """The short way gives what the general one gave, or leaves it to that."""
    again = repeated.read(frame)
    if again is not None:
        assert again.keys() == observation.keys(), "other features"
        assert all(np.array_equal(again[name], observation[name]) for name in again), "other numbers"


def read_result(codec: InferCodec, frame: bytearray) -> None:
    """What a client makes of it."""
    header = frames.parse_header(frame)
    chunk, seconds, views = codec.read_result(header, frame, frames.HEADER_SIZE, len(frame))
    repeated = codec.repeat_result(bytearray(frame), header.flags, header.payload_size)
    if repeated is not None:
        again = repeated.read(frame)
        assert again is not None, "it is not like itself"
        assert again[0].tobytes() == chunk.tobytes(), "other actions"
        assert again[1] == seconds or seconds != seconds, "other seconds"
    assert sum(map(len, views)) == header.payload_size, "views that are not the payload"


def run(data: bytes) -> None:
    """Four bytes: who reads, the flags, and the payload's size; the rest is the body."""
    if len(data) < 4:
        return
    codec, payload_size = CODECS[data[0] >> 1 & 3], int.from_bytes(data[2:4], "little") * 64
    frame = frames.pack_frame(frames.INFER, data[4:], flags=data[1] & 15, payload_size=payload_size)
    with contextlib.suppress(ProtocolError):
        (read_result if data[0] & 1 else read_request)(codec, frame)
