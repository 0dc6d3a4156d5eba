"""Coding of arrays: exact where it says so, refused where it lies."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import simplejpeg
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from remote_env.errors import ConfigError, InputError, MessageTooBig, ProtocolError
from remote_env.protocol import codec
from remote_env.protocol.coding import (
    CODERS,
    available_coders,
    choose_coder,
    decode_array,
    encode_array,
    is_coded,
)

PLENTY = 1 << 30
SMOOTH = np.kron(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), np.ones((16, 16, 1), np.uint8))


def over_the_wire(value: Any) -> Any:
    """What arrives of a value."""
    body, payload = codec.encode(value, where="test")
    arrived, views = codec.decode(body, sum(map(len, payload)))
    for view, sent in zip(views, payload, strict=True):
        view[:] = sent
    return arrived


def zstd(data: bytes, shape: list[int], dtype: str = "uint8", **options: Any) -> dict[str, Any]:
    frame = zstandard.ZstdCompressor(level=1, **options).compress(data)
    return {"coder": "zstd", "dtype": dtype, "shape": shape, "data": [np.frombuffer(frame, np.uint8)]}


@pytest.mark.parametrize("coder", ["zstd", "bitlz4", "bitzstd"])
@given(
    arrays.arrays(
        st.sampled_from(["u1", "<i4", "<f4", "<f8", "?"]),
        arrays.array_shapes(max_dims=4, max_side=12),
        elements={"allow_nan": False},
    ),
    st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_lossless_coders_are_exact(coder: str, array: Any, times: int) -> None:
    array = np.stack([array] * times)
    coded = over_the_wire(encode_array(array, coder))
    back = decode_array(coded, max_bytes=PLENTY) if is_coded(coded) else coded
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_views_and_other_byte_orders_are_coded_as_what_they_show() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, ::2] = 7
    for array in (image[:, ::2], image.transpose(2, 0, 1), np.zeros(1000, ">f4") + 1):
        coded = encode_array(array, "zstd")
        assert is_coded(coded)
        np.testing.assert_array_equal(decode_array(coded, max_bytes=PLENTY), array)


def test_what_coding_would_not_make_smaller_is_sent_as_it_is() -> None:
    noise = np.random.default_rng(0).integers(0, 255, 5000, np.uint8)
    small = np.zeros(10, np.uint8)
    assert encode_array(noise, "zstd") is noise
    assert encode_array(small, "zstd") is small
    assert encode_array(SMOOTH, "raw") is SMOOTH


def test_jpeg_is_near() -> None:
    batch = np.stack([SMOOTH, SMOOTH[::-1]])
    coded = over_the_wire(encode_array(batch, "jpeg"))
    assert [len(coded["data"]), coded["shape"]] == [2, [2, 64, 64, 3]]
    back = decode_array(coded, max_bytes=batch.nbytes)
    assert np.abs(back.astype(int) - batch).max() < 20
    assert back.flags.writeable


@pytest.mark.parametrize(
    "array", [np.zeros((3, 32, 32), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((0, 32, 3), np.uint8)]
)
def test_jpeg_takes_images_alone(array: Any) -> None:
    with pytest.raises(InputError, match="channels last"):
        encode_array(array, "jpeg")


# What a hostile peer may send


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstd(bytes(1 << 24), [1 << 24])
    assert len(bomb["data"][0]) < 2000
    with pytest.raises(MessageTooBig, match="16777216 bytes; allowed are 1000000"):
        decode_array(bomb, max_bytes=1_000_000)
    with pytest.raises(ProtocolError, match=r"a zstd frame of 16777216 bytes .* of 100"):
        decode_array({**bomb, "shape": [100]}, max_bytes=1_000_000)
    with pytest.raises(ProtocolError, match="18446744073709551615 bytes"):
        decode_array(zstd(bytes(5000), [5000], write_content_size=False), max_bytes=PLENTY)
    with pytest.raises(MessageTooBig):
        decode_array({**bomb, "shape": [(1 << 32) - 1] * 3}, max_bytes=PLENTY)


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    frame = bytearray(zstd(bytes(5000), [5000])["data"][0].tobytes())
    at = frame.index((5000 - 256).to_bytes(2, "little"))
    frame[at : at + 2] = (100 - 0).to_bytes(2, "little")  # 356 bytes announced
    lie = {"coder": "zstd", "dtype": "uint8", "shape": [356], "data": [np.frombuffer(bytes(frame), np.uint8)]}
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        decode_array(lie, max_bytes=PLENTY)


@pytest.mark.parametrize("more", [b"x", b"(\xb5/\xfd", None])
def test_bytes_behind_a_frame_are_refused(more: bytes | None) -> None:
    honest = zstd(bytes(5000), [5000])
    frame = honest["data"][0].tobytes()
    honest["data"] = [np.frombuffer(frame + (frame if more is None else more), np.uint8)]
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        decode_array(honest, max_bytes=PLENTY)


def test_a_jpeg_of_another_size_is_refused_before_it_is_decoded() -> None:
    huge = np.frombuffer(simplejpeg.encode_jpeg(np.zeros((3000, 3000, 3), np.uint8)), np.uint8)
    value = {"coder": "jpeg", "dtype": "uint8", "shape": [64, 64, 3], "data": [huge]}
    with pytest.raises(ProtocolError, match="a JPEG of 3000 × 3000 for an image of 64 × 64"):
        decode_array(value, max_bytes=PLENTY)


COUNTS = encode_array(SMOOTH, "jpeg")
FAULTS: list[dict[str, Any]] = [
    {"coder": "zip"},
    {"coder": 3},
    {"dtype": "object"},
    {"dtype": "O"},
    {"dtype": None},
    {"shape": [64, 64, -3]},
    {"shape": [64, 64, True]},
    {"shape": "64"},
    {"shape": [1] * 40},
    {"shape": [2, 64, 64, 3]},
    {"shape": [0, 64, 64, 3]},
    {"shape": [64, 64]},
    {"dtype": "float32"},
    {"data": b"x"},
    {"data": [b"x"]},
    {"data": []},
    {"data": [np.zeros(4)]},
    {"data": [np.zeros(0, np.uint8)]},
    {"data": [np.zeros((2, 2), np.uint8)]},
    {"data": [COUNTS["data"][0][:50]]},
    {"data": [COUNTS["data"][0][:-300]]},
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("coder", ["jpeg", "zstd"])
def test_what_is_not_what_it_says_is_refused(fault: dict[str, Any], coder: str) -> None:
    honest = encode_array(SMOOTH, coder)
    if "data" in fault and coder == "zstd" and fault["data"] and isinstance(fault["data"][0], np.ndarray):
        fault = {"data": [honest["data"][0][: len(fault["data"][0]) % 40]]}
    if fault.get("shape") == [64, 64] and coder == "jpeg":
        fault = {"shape": [64, 64, 1]}
    with pytest.raises(ProtocolError):
        decode_array({**honest, **fault}, max_bytes=PLENTY)


@given(st.binary(max_size=200), st.sampled_from(["zstd", "jpeg"]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_or_decoded(data: bytes, coder: str) -> None:
    value = {"coder": coder, "dtype": "uint8", "shape": [8, 8, 3], "data": [np.frombuffer(data, np.uint8)]}
    with pytest.raises(ProtocolError):
        decode_array(value, max_bytes=PLENTY)


# Who codes how


def test_auto_is_lossless() -> None:
    assert choose_coder("auto", CODERS, is_near=True) == "raw"
    assert choose_coder("auto", CODERS, is_near=False) == "zstd"
    assert choose_coder("auto", ("raw", "jpeg"), is_near=False) == "raw"


def test_what_was_asked_for_is_taken_or_refused() -> None:
    assert [choose_coder(coder, CODERS, is_near=True) for coder in CODERS] == list(CODERS)
    with pytest.raises(
        ConfigError, match=r"the server cannot code images as 'zstd': it lacks 'zstandard'.*pip install"
    ):
        choose_coder("zstd", ("raw",), is_near=False)
    with pytest.raises(
        ConfigError, match="unknown image coding 'png'; there are auto, raw, zstd, bitlz4, bitzstd, jpeg"
    ):
        choose_coder("png", CODERS, is_near=False)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = encode_array(SMOOTH, "zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for use in (lambda: encode_array(SMOOTH, "zstd"), lambda: decode_array(coded, max_bytes=PLENTY)):
        with pytest.raises(ConfigError, match=r"need 'zstandard'.*pip install 'remote-env\[images\]'"):
            use()
    assert "zstd" not in available_coders()
    assert choose_coder("auto", CODERS, is_near=False) == "raw"
