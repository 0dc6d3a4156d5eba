"""What changed of a state: exact for every bit pattern, and refused where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from remote_env.errors import ProtocolError
from remote_env.protocol.state_delta import decode, encode

BITS = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1 << 63, 0x7FF8000000000001, 0xFFF0000000000123]))


def numbers(shape: Any) -> Any:
    return arrays.arrays(np.uint64, shape, elements=BITS).map(lambda bits: bits.view(np.float64))


@given(st.data(), st.integers(0, 9), st.integers(0, 5), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_it_is_exact(data: Any, count: int, rows: int, has_rows: bool, has_base: bool) -> None:
    shape = (rows, count) if has_rows else (count,)
    values = data.draw(numbers(shape))
    base = data.draw(numbers((count,))) if has_base else None
    encoded = encode(values, base)
    if encoded is not None:
        assert len(encoded) < values.nbytes
        back = decode(encoded, base, shape)
        assert back.shape == shape
        assert back.tobytes() == values.tobytes()


def test_what_stays_takes_half_a_byte_and_what_moves_its_lower_bytes() -> None:
    base = np.array([1.0, -0.0, np.nan, 1000.0])
    moved = base.copy()
    moved[3] = np.nextafter(moved[3], 2000)
    assert encode(base, base) == bytes(2)
    assert encode(moved, base) == b"\0\x10\x01"
    assert encode(np.stack([moved, moved, base]), base) == b"\0\x10\0\0\0\x10\x01\x01"


def test_a_scene_in_motion_gets_smaller() -> None:
    times = np.arange(64)[:, None] * 0.02
    scene = np.concatenate([np.sin(times + np.arange(60)), np.ones((64, 40))], axis=1)
    encoded = encode(scene[1:], scene[0])
    assert encoded is not None
    assert len(encoded) < 0.7 * scene[1:].nbytes


def test_what_would_not_be_smaller_is_left_alone() -> None:
    noise = np.random.default_rng(0).integers(1 << 60, 1 << 64, 50, np.uint64).view(np.float64)
    assert encode(noise, None) is None
    assert encode(np.empty(0), None) is None


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\x01", b"\0\x01ab", b"\x09\0" + bytes(9), b"\0\x10"])
def test_what_is_no_change_of_three_numbers_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="a change of"):
        decode(data, None, (3,))


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"a change of \(2, 3\) numbers to a state of \(4,\)"):
        decode(bytes(3), np.zeros(4), (2, 3))


@given(st.binary(max_size=40), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_or_read_one_way_only(data: bytes, count: int) -> None:
    try:
        values = decode(data, None, (count,))
    except ProtocolError:
        return
    assert values.shape == (count,)
