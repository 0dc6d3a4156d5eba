"""INFER and its RESULT: what is read is what was packed, and the short way makes the bytes of the long one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_env.errors import ProtocolError
from remote_env.protocol import frames
from remote_env.protocol.frames import HEADER_SIZE
from remote_env.protocol.inference import InferCodec, Request

FEATURES = st.dictionaries(
    st.sampled_from(["state", "velocity", "image", "depth"]),
    st.tuples(
        st.sampled_from(["float32", "float64", "uint8", "int64", "bool"]), st.lists(st.integers(0, 40), max_size=3)
    ),
    max_size=4,
)
names = st.lists(st.sampled_from(["", "a", "episode 7", "ü"]), min_size=1, max_size=5)
SETTINGS = settings(max_examples=80, deadline=None)


def make_observation(features: Any, rows: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 2, (rows, *shape)).astype(dtype) for name, (dtype, shape) in features.items()}


def cross(request: Request, kind: int = frames.INFER) -> tuple[frames.Header, bytearray, bytes]:
    """Header, frame and payload as they arrive."""
    request.seal(kind, 7, 6)
    return frames.parse_header(request.frame), bytearray(request.frame), b"".join(request.payload)


def fill(views: list[memoryview], payload: bytes) -> None:
    at = 0
    for view in views:
        view[:] = payload[at : at + len(view)]
        at += len(view)
    assert at == len(payload)


def check_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert [value.dtype, value.shape, value.tobytes()] == [
                other[name].dtype,
                other[name].shape,
                other[name].tobytes(),
            ]
            assert other[name].flags.writeable
        else:
            assert value == other[name]


@SETTINGS
@given(FEATURES, names, st.integers(0, 99), st.booleans(), st.booleans())
def test_what_is_read_is_what_was_packed(features: Any, episodes: list[str], seed: int, text: bool, odd: bool) -> None:
    observation = make_observation(features, len(episodes), seed)
    if text:
        observation["instruction"] = [f"do {row}" for row in range(len(episodes))]
    if odd and "state" in observation:
        observation["state"] = observation["state"].astype(np.float16)  # not what the layout says
    codec = InferCodec(features, 3, has_others=text)
    header, frame, payload = cross(codec.pack_request(observation, episodes))
    read, named, views = codec.read_request(header, frame, HEADER_SIZE, len(frame))
    fill(views, payload)
    check_same(observation, read)
    assert list(named) == episodes


@SETTINGS
@given(FEATURES, names, st.integers(0, 99))
def test_the_short_way_makes_the_same_bytes(features: Any, episodes: list[str], seed: int) -> None:
    codec = InferCodec(features, 3)
    first = codec.pack_request(make_observation(features, len(episodes), seed), episodes)
    first.seal(frames.INFER, 1, 0)
    repeated = codec.repeat(bytearray(first.frame), first.flags, first.payload_size, episodes)
    if repeated is None:
        assert first.payload or not first.flags & frames.FIXED
        return
    observation = make_observation(features, len(episodes), seed + 1)
    second = codec.pack_request(observation, episodes)
    second.seal(frames.INFER, 2, 1)
    assert repeated.fill(observation)
    repeated.seal(frames.INFER, 2, 1)
    assert repeated.frame == second.frame
    read = repeated.read(bytearray(second.frame))
    assert read is not None
    check_same(observation, read)


def test_the_short_way_leaves_alone_what_is_not_like_the_last() -> None:
    codec = InferCodec({"state": ("float32", (3,))}, 2)
    first = codec.pack_request({"state": np.zeros((1, 3), np.float32)}, ["a"])
    first.seal(frames.INFER, 1, 0)
    repeated = codec.repeat(first.frame, first.flags, 0, ["a"])
    assert repeated is not None
    for other in ({}, {"state": np.zeros((2, 3), np.float32)}, {"state": np.zeros((1, 3))}, {"state": [0.0] * 3}):
        assert not repeated.fill(other)
    same_length = codec.pack_request({"state": np.zeros((1, 3), np.float32)}, ["b"])
    same_length.seal(frames.INFER, 2, 0)
    assert repeated.read(bytearray(same_length.frame)) is None


@SETTINGS
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 20), st.floats(0, 10))
def test_results(rows: int, length: int, size: int, seconds: float) -> None:
    codec = InferCodec({}, size)
    chunk = np.random.default_rng(length).normal(size=(rows, length, size)).astype(np.float32)
    result = codec.pack_result(chunk, seconds)
    header, frame, payload = cross(result, frames.RESULT)
    read, took, views = codec.read_result(header, frame, HEADER_SIZE, len(frame))
    fill(views, payload)
    assert [read.tobytes(), read.shape, took] == [chunk.tobytes(), chunk.shape, seconds]
    like = codec.repeat_result(bytearray(frame), header.flags, header.payload_size)
    if like is None:
        assert payload
        return
    other = codec.pack_result(chunk + 1, seconds / 2)
    other.seal(frames.RESULT, 8, 8)
    assert like.fill(chunk + 1, seconds / 2, 8) == other.frame
    again = like.read(bytearray(other.frame))
    assert again is not None
    np.testing.assert_array_equal(again[0], chunk + 1)


def test_actions_of_other_rows_in_a_frame_of_the_same_length() -> None:
    codec = InferCodec({}, 2)
    one, two = (
        codec.pack_result(np.zeros((2, 1, 2), np.float32), 0.0),
        codec.pack_result(np.zeros((1, 2, 2), np.float32), 0.0),
    )
    for result in (one, two):
        result.seal(frames.RESULT, 1, 1)
    like = codec.repeat_result(bytearray(one.frame), one.flags, 0)
    assert like is not None
    assert like.read(bytearray(two.frame)) is None
    assert like.fill(np.zeros((1, 2, 2), np.float32), 0.0, 1) is None


@pytest.mark.parametrize(("rows", "length"), [(1, 3), (2, 2), (1 << 31, 1 << 31)])
def test_a_result_that_lies_about_its_size_is_refused(rows: int, length: int) -> None:
    codec = InferCodec({}, 2)
    result = codec.pack_result(np.zeros((1, 2, 2), np.float32), 0.0)
    header, frame, _ = cross(result, frames.RESULT)
    frame[HEADER_SIZE : HEADER_SIZE + 8] = rows.to_bytes(4, "little") + length.to_bytes(4, "little")
    with pytest.raises(ProtocolError):
        codec.read_result(header, frame, HEADER_SIZE, len(frame))
