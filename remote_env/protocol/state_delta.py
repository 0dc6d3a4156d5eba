"""What changed of a vector of float64, in as few bytes as a quick look finds (docs/protocol.md, "State deltas"). Pure.

Each number is compared bit by bit with the one before it. Of the difference (exclusive or) those bytes are written that
are not leading zeros, and before them all how many they are, in four bits each: exact for every bit pattern, NaNs and
-0.0 too. Of a scene in motion about a third of the numbers stay as they are, and most others keep their upper bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ProtocolError

Floats = NDArray[np.float64]
Bits = NDArray[np.uint64]

_WIDTH = 8  # bytes of a float64
_LITTLE = np.dtype("<u8")
_FIRST_OF_BYTES = np.uint64(1) << (np.arange(_WIDTH, dtype=np.uint64) * np.uint64(8))  # the least number of 1 … 8 bytes
_PLACES = np.arange(_WIDTH)


def encode(values: Floats, base: Floats | None) -> bytes | None:
    """What turns `base` into `values`; None where that is no smaller than the values themselves.

    Args:
        values: (n,) float64, or (K, n): then each row builds on the one before it.
        base: (n,) float64, what the first row builds on; None stands for zeros.
    """
    data = _pack(_differences(values, base))
    return data if len(data) < values.size * _WIDTH else None


def decode(data: bytes | memoryview, base: Floats | None, shape: tuple[int, ...]) -> Floats:
    """The values that `encode` was given; new memory.

    Args:
        data: as `encode` made it, sent by whomever.
        base: as it was given to `encode`.
        shape: of the values, (n,) or (K, n); whoever calls has checked how much memory that takes.

    Raises:
        ProtocolError: the data is not of that shape, or not what `encode` makes.
    """
    differences = _unpack(data, int(np.prod(shape, dtype=np.int64))).reshape(shape)
    if base is not None:
        first = differences if len(shape) == 1 else differences[:1]
        if base.shape != first.shape[-1:]:
            raise ProtocolError(f"a change of {shape} numbers to a state of {base.shape}")
        np.bitwise_xor(first, _bits(base), out=first)
    if len(shape) > 1:
        np.bitwise_xor.accumulate(differences, axis=0, out=differences)
    return differences.view(np.float64)


def _differences(values: Floats, base: Floats | None) -> Bits:
    differences = _bits(values).copy()
    if differences.ndim > 1:
        differences[1:] ^= _bits(values)[:-1]
    if base is not None:
        first = differences if differences.ndim == 1 else differences[:1]
        first ^= _bits(base)
    return differences


def _bits(values: Floats) -> Bits:
    bits: Bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    return bits


def _pack(differences: Bits) -> bytes:
    flat = differences.reshape(-1)
    widths = (flat[:, None] >= _FIRST_OF_BYTES).sum(axis=1, dtype=np.uint8)
    parts = flat.astype(_LITTLE, copy=False).view(np.uint8).reshape(-1, _WIDTH)
    if len(widths) % 2:
        widths = np.append(widths, np.uint8(0))
    pairs = widths[::2] | widths[1::2] << np.uint8(4)
    written: NDArray[np.uint8] = parts[widths[: len(flat), None] > _PLACES]
    return bytes(pairs.tobytes() + written.tobytes())


def _unpack(data: bytes | memoryview, count: int) -> Bits:
    head = (count + 1) // 2
    whole = np.frombuffer(data, np.uint8)
    if len(whole) < head:
        raise ProtocolError(f"a change of {count} numbers in {len(whole)} bytes; their widths alone take {head}")
    widths = np.empty(2 * head, np.uint8)
    widths[::2], widths[1::2] = whole[:head] & 15, whole[:head] >> 4
    if (count and int(widths.max()) > _WIDTH) or widths[count:].any():
        raise ProtocolError("a change of numbers with a width that no number has")
    widths = widths[:count]
    due = int(widths.sum(dtype=np.int64))
    if len(whole) - head != due:
        raise ProtocolError(
            f"a change of {count} numbers with {len(whole) - head} bytes behind their widths, not {due}"
        )
    parts = np.zeros((count, _WIDTH), np.uint8)
    parts[widths[:, None] > _PLACES] = whole[head:]
    return parts.reshape(-1).view(_LITTLE).astype(np.uint64, copy=False)
