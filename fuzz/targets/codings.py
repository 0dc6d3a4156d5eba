"""Coded arrays: Zstandard and Blosc frames and JPEGs from anybody, into no more memory than was announced."""

from __future__ import annotations

import contextlib

import numpy as np

from remote_env.errors import ProtocolError
from remote_env.protocol.coding import decode_array

MAX_BYTES = 1 << 20
HEADS = (
    ("zstd", "float32", [2, 8]),
    ("zstd", "uint8", [64, 64, 3]),
    ("zstd", "bool", [1024]),
    ("zstd", "complex128", [0]),
    ("jpeg", "uint8", [16, 16, 3]),
    ("jpeg", "uint8", [2, 16, 16, 3]),
    ("jpeg", "uint8", [8, 24, 3]),
    ("jpeg", "uint8", [1, 1, 3]),
    ("bitlz4", "uint8", [64, 64, 3]),
    ("bitzstd", "uint8", [64, 64, 3]),
    ("bitlz4", "float64", [300]),
    ("bitzstd", "float32", [2, 300]),
    ("bitlz4", "uint8", [2000]),
    ("bitzstd", "bool", [2, 2000]),
    ("bitlz4", "int16", [1, 1, 3]),
    ("bitzstd", "uint8", [2, 32, 32, 3]),
)


def run(data: bytes) -> None:
    """The first byte says as what the rest is decoded; its high bits, whether the rest is a size and two parts."""
    if not data:
        return
    coder, dtype, shape = HEADS[data[0] & 15]
    parts = [np.frombuffer(data[1:], np.uint8)]
    if len(shape) == 4 or data[0] & 0x80:
        half = len(data) // 2
        parts = [np.frombuffer(data[1:half], np.uint8), np.frombuffer(data[half:], np.uint8)]
    if data[0] & 0x40 and len(data) > 4:
        shape = [data[1] * data[2], data[3], 3]
    value = {"coder": coder, "dtype": dtype, "shape": shape, "data": parts}
    with contextlib.suppress(ProtocolError):
        array = decode_array(value, max_bytes=MAX_BYTES)
        assert array.nbytes <= MAX_BYTES, "more than was allowed"
        assert (array.dtype.name, list(array.shape)) == (dtype, shape), "not what was announced"
        assert array.flags.writeable
        assert array.flags.c_contiguous
