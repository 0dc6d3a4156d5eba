"""VectorStep's frames are the bytes that layout and codec make, and its readers take what they make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import ProtocolError
from remote_env.protocol import codec, frames, layout
from remote_env.protocol.vector_step import VectorStep, exponent_masks, has_all_ones

EPOCH = 3
FLOATS = (np.float16, np.float32, np.float64)


def make_step(dtype: Any = np.float32, length: int = 5) -> VectorStep:
    return VectorStep(layout.Vector(np.dtype(dtype), length), layout.Vector(np.dtype(np.float64), 3), EPOCH)


def general_result(transition: Any, sequence: int) -> bytes:
    """The same RESULT by the general way."""
    observation, reward, terminated, truncated, info = transition
    fixed = layout.compile_layout(Box(-np.inf, np.inf, (3,), np.float64))
    assert fixed is not None
    body = bytearray(layout.TRANSITION_SIZE + fixed.size)
    assert layout.write_transition(body, 0, reward, terminated, truncated)
    assert fixed.write(observation, body, layout.TRANSITION_SIZE) == []
    tail = codec.encode({"info": info}, where="info")[0] if info else b""
    flags = frames.FIXED | (frames.TAIL if tail else 0)
    numbers = {"epoch": EPOCH, "sequence": sequence, "acknowledged": sequence}
    return bytes(frames.pack_frame(frames.RESULT, bytes(body) + tail, flags=flags, **numbers))


def tail_of(info: dict[str, Any]) -> bytes:
    return codec.encode({"info": info}, where="info")[0] if info else b""


class Played:
    """A byte stream that brings the given frames, one to each receive."""

    def __init__(self, *frames_: bytes) -> None:
        self._frames = list(frames_)

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        frame = self._frames.pop(0)
        view[: len(frame)] = frame
        return len(frame)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=5, max_size=5), st.integers(1, 2**40))
def test_a_step_is_what_the_general_way_sends(values: list[float], sequence: int) -> None:
    step = make_step()
    action = np.array(values, np.float32)
    numbers = {"epoch": EPOCH, "sequence": sequence, "acknowledged": sequence - 1}
    expected = frames.pack_frame(frames.STEP, action.tobytes(), flags=frames.FIXED, **numbers)
    packed = step.pack_step(action, sequence, sequence - 1)
    assert packed == expected
    assert step.read_step(bytearray(expected)).tobytes() == action.tobytes()


INFOS = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.floats() | st.text(), max_size=3
)
REWARDS = st.floats() | st.integers(-(2**53), 2**53) | st.floats().map(np.float64) | st.floats(width=32).map(np.float32)


@given(REWARDS, st.booleans(), st.booleans() | st.booleans().map(np.bool_), INFOS)
def test_a_result_is_what_the_general_way_sends(reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
    transition = (np.array([0.1, np.nan, -np.inf]), reward, terminated, truncated, info)
    server, client = make_step(), make_step()
    expected = general_result(transition, 9)
    assert server.pack_result(transition, tail_of(info), 9) == expected
    stream = frames.FrameStream(Played(expected, expected))  # type: ignore[arg-type]
    if stream.recv_shaped(client.result_shape, 0.0) == 0:
        client.expect_like(stream.recv(0.0))
        assert stream.recv_shaped(client.result_shape, 0.0) == 9
    observation, *flags, got = client.read_result(stream.body)
    assert observation.tobytes() == transition[0].tobytes()
    assert [type(flag) for flag in flags] == [type(reward), type(terminated), type(truncated)]
    assert repr(flags) == repr([reward, terminated, truncated])
    assert repr(got) == repr(info)


def test_infos_that_repeat_are_equal_and_never_shared() -> None:
    step = make_step()
    for info in ({"is_success": False}, {"parts": [1, 2]}):
        frame = bytearray(general_result((np.zeros(3), 0.0, False, False, info), 1))
        step.expect_like(frames.parse_header(frame))
        first, second = step.read_result(frame)[4], step.read_result(frame)[4]
        assert first == second == info
        first["more"] = 1
        first.get("parts", []).append(3)
        assert second == info
        assert step.read_result(frame)[4] == info


def test_observations_are_writable_and_their_own() -> None:
    step = make_step()
    frame = bytearray(general_result((np.ones(3), 0.0, False, False, {}), 1))
    first = step.read_result(frame)[0]
    first[:] = 7
    assert step.read_result(frame)[0].tolist() == [1, 1, 1]


def test_a_tail_that_is_no_info_is_refused() -> None:
    step = make_step()
    tail = codec.encode([1], where="tail")[0]
    body = bytes(layout.TRANSITION_SIZE + 24) + tail
    frame = frames.pack_frame(frames.RESULT, body, flags=frames.FIXED | frames.TAIL, epoch=EPOCH)
    step.expect_like(frames.parse_header(frame))
    with pytest.raises(ProtocolError, match="no info"):
        step.read_result(frame)


@pytest.mark.parametrize(
    "action",
    [np.zeros(4, np.float32), np.zeros(5), np.zeros((5, 1), np.float32), [0.0] * 5, np.full(5, np.nan, np.float32)],
    ids=["length", "dtype", "shape", "list", "nan"],
)
def test_what_is_not_exactly_the_layouts_is_left_to_the_general_way(action: Any) -> None:
    assert make_step().pack_step(action, 1, 0) is None


@given(st.data(), st.sampled_from(FLOATS), st.integers(1, 20))
def test_all_ones_means_not_finite(data: st.DataObject, dtype: Any, length: int) -> None:
    size = np.dtype(dtype).itemsize * length
    raw = data.draw(st.binary(min_size=size, max_size=size))
    vector = np.frombuffer(raw, dtype).copy()
    if data.draw(st.booleans()):
        vector[data.draw(st.integers(0, length - 1))] = data.draw(st.sampled_from((np.inf, -np.inf, np.nan)))
    masks = exponent_masks(layout.Vector(np.dtype(dtype), length))
    assert has_all_ones(vector.tobytes(), masks) == (not np.isfinite(vector).all())


def test_a_damaged_frame_of_the_right_shape_is_refused() -> None:
    step = make_step()
    frame = bytearray(general_result((np.zeros(3), 0.0, False, False, {}), 1))
    frame[-1] ^= 1
    stream = frames.FrameStream(Played(bytes(frame)))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="CRC32"):
        stream.recv_shaped(step.result_shape, 0.0)
