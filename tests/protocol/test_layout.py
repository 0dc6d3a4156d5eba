"""Fixed layouts: what fits exactly arrives exactly; what does not is refused, never bent."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from strategies import arrays

from remote_env.errors import ProtocolError
from remote_env.protocol import layout

START = 5


def round_trip(space: spaces.Space[Any], value: Any) -> Any:
    """`value` after a write and a read; None (never a value of these spaces) when it does not fit."""
    compiled = layout.compile_layout(space)
    assert compiled is not None
    body = bytearray(START + compiled.size)
    payload = compiled.write(value, body, START)
    if payload is None:
        return None
    again, views = compiled.read(bytearray(body), START, len(body))
    assert [len(view) for view in views] == [len(part) for part in payload]
    for view, part in zip(views, payload, strict=True):
        view[:] = part
    return again


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert other.flags.writeable
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for part, part_again in zip(one, other, strict=True):
            assert_same(part, part_again)
    else:
        assert one == other


@st.composite
def fixed_spaces(draw: st.DrawFn, depth: int = 2) -> spaces.Space[Any]:
    choices = ["box", "discrete", "binary", "multi"] + ["dict", "tuple"] * (depth > 0)
    kind = draw(st.sampled_from(choices))
    if kind == "box":
        shape = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=3)))
        return spaces.Box(-10, 10, shape, draw(st.sampled_from([np.float32, np.float64, np.int16, np.float16])))
    if kind == "discrete":
        return spaces.Discrete(draw(st.integers(1, 9)), start=draw(st.integers(-5, 5)))
    if kind == "binary":
        return spaces.MultiBinary(draw(st.integers(1, 9)))
    if kind == "multi":
        return spaces.MultiDiscrete(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    parts = draw(st.lists(fixed_spaces(depth - 1), max_size=3))
    if kind == "tuple":
        return spaces.Tuple(parts)
    return spaces.Dict({f"k{number}": part for number, part in enumerate(parts)})


@given(fixed_spaces(), st.integers(0, 99))
def test_samples_arrive_exactly(space: spaces.Space[Any], seed: int) -> None:
    space.seed(seed)
    value = space.sample()
    assert_same(value, round_trip(space, value))


@given(arrays(), st.sampled_from([np.float32, np.float64, np.uint8, np.bool_]))
def test_an_array_fits_exactly_or_not_at_all(array: np.ndarray, dtype: Any) -> None:
    if array.ndim and array.shape[-1] >= 2**31:
        return
    space = spaces.Box(0, 1, array.shape, dtype)
    again = round_trip(space, array)
    fits = array.dtype == np.dtype(dtype).newbyteorder("<")
    assert (again is not None) == fits
    if fits:
        assert again.tobytes() == array.tobytes()


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Discrete(3), True),
        (spaces.Discrete(3), np.int32(1)),
        (spaces.Discrete(3), np.bool_(True)),
        (spaces.Discrete(3), 1.0),
        (spaces.Discrete(3), 2**63),
        (spaces.Discrete(3), np.array(1)),
        (spaces.Discrete(3), None),
        (spaces.Box(0, 1, (2,)), np.zeros(2)),
        (spaces.Box(0, 1, (2,)), np.zeros((1, 2), np.float32)),
        (spaces.Box(0, 1, (2,)), [0.0, 0.0]),
        (spaces.Box(0, 1, (2,)), np.zeros(2, ">f4")),
        (spaces.Box(0, 1, (2,)), np.zeros(2, np.float32).view(Subclass)),
        (spaces.Box(0, 1, ()), np.float32(0)),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)}), {"b": 0, "a": 1}),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"a": 0, "b": 1}),
        (spaces.Dict({"a": spaces.Discrete(2)}), {}),
        (spaces.Dict({"a": spaces.Discrete(2)}), [("a", 0)]),
        (spaces.Tuple([spaces.Discrete(2)]), [0]),
        (spaces.Tuple([spaces.Discrete(2)]), (0, 1)),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,))]), (0, None)),
    ],
)
def test_what_is_not_exact_is_refused(space: spaces.Space[Any], value: Any) -> None:
    assert round_trip(space, value) is None


@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -(2**63), np.int64(7), np.int64(-(2**63))])
def test_integers_keep_their_kind(value: Any) -> None:
    assert_same(value, round_trip(spaces.Discrete(3), value))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.OneOf([spaces.Discrete(2)]),
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(3)}),
        spaces.Tuple([spaces.Tuple([spaces.Text(1)])]),
    ],
)
def test_spaces_of_unknown_size_have_none(space: spaces.Space[Any]) -> None:
    assert layout.compile_layout(space) is None


def test_a_body_that_is_too_short() -> None:
    compiled = layout.compile_layout(spaces.Box(0, 1, (4,)))
    assert compiled is not None
    with pytest.raises(ProtocolError, match="too short"):
        compiled.read(bytearray(15), 0, 15)


def test_what_is_read_is_a_copy() -> None:
    compiled = layout.compile_layout(spaces.Box(0, 1, (4,)))
    assert compiled is not None
    body = bytearray(compiled.size)
    value, _ = compiled.read(body, 0, len(body))
    value += 1
    assert body == bytearray(compiled.size)


def test_large_arrays_travel_out_of_line() -> None:
    small, large = (layout.compile_layout(spaces.Box(0, 255, (size,), np.uint8)) for size in (4095, 4096))
    assert small is not None
    assert large is not None
    assert (small.size, large.size) == (4095, 0)


rewards = (
    st.floats()
    | st.integers()
    | st.floats(width=32).map(np.float32)
    | st.floats().map(np.float64)
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
    | st.booleans()
    | st.just(None)
    | st.integers(-100, 100).map(np.int32)
)
flags = st.booleans() | st.booleans().map(np.bool_) | st.sampled_from([0, 1, None])


@given(rewards, flags, flags)
def test_transitions_keep_their_types_or_are_refused(reward: Any, terminated: Any, truncated: Any) -> None:
    body = bytearray(START + layout.TRANSITION_SIZE)
    if not layout.write_transition(body, START, reward, terminated, truncated):
        inexact = type(reward) in (int, np.int64) and abs(int(reward)) > 2**53
        odd = type(reward) not in (float, np.float64, np.float32, int, np.int64)
        assert inexact or odd or not {type(terminated), type(truncated)} <= {bool, np.bool_}
        return
    again = layout.read_transition(body, START)
    for one, other in zip((reward, terminated, truncated), again, strict=True):
        assert type(one) is type(other)
        assert one == other or (math.isnan(one) and math.isnan(other))
    assert math.copysign(1, reward) == math.copysign(1, again[0]) or math.isnan(reward)


@given(st.binary(min_size=layout.TRANSITION_SIZE, max_size=layout.TRANSITION_SIZE))
def test_transitions_of_random_bytes(data: bytes) -> None:
    with contextlib.suppress(ProtocolError), np.errstate(over="ignore"):
        layout.read_transition(bytearray(data), 0)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("kind", [3, 4, 5, 255])
def test_rewards_that_are_no_integers(reward: float, kind: int) -> None:
    with pytest.raises(ProtocolError, match="reward"):
        layout.read_transition(bytearray(struct.pack("<dBB", reward, kind, 0)), 0)


@given(st.lists(st.floats(), max_size=9), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_states(values: list[float], number: int, missing: int) -> None:
    packed = layout.pack_state(number, np.array(values, np.float64))
    body = bytearray(b"xy") + packed + b"rest"
    again, vector, end = layout.read_state(body, 2, len(body))
    assert (again, vector.tobytes(), end) == (number, np.array(values, np.float64).tobytes(), 2 + len(packed))
    if missing:
        with pytest.raises(ProtocolError):
            layout.read_state(body, 2, 2 + len(packed) - missing)
