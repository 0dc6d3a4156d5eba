"""Blosc frames (docs/protocol.md, "Coded arrays"): items shuffled by bit or byte, then LZ4 or Zstandard. Pure.

On images with a camera's noise a bit shuffle in front takes LZ4 to the size that Zstandard alone reaches in four times
the time; on the differences of rendered images a byte shuffle by channel halves what Zstandard makes of them.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError, ProtocolError

HEADER = struct.Struct("<4B3I")  # versions, flags, item size; bytes decoded, of a block, and of the whole frame
MAX_BYTES = (1 << 31) - 64  # the library's own limit, less what its header takes
_LEVEL = 1  # a higher one costs more time than it saves on the links that this is for
_SHUFFLES = {"byte": 1, "bit": 2}


def encode_blosc(items: NDArray[Any], compressor: Literal["lz4", "zstd"], shuffle: Literal["byte", "bit"]) -> bytes:
    """One frame with the bytes of `items`, (N,) and at most `MAX_BYTES`; their item size is what is shuffled by."""
    whole = items.view(f"V{items.dtype.itemsize}")
    with _one_thread() as blosc:
        frame: bytes = blosc.compress(whole, compressor.encode(), _LEVEL, shuffle=_SHUFFLES[shuffle])
    return frame


def decode_blosc(frame: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
    """Write what the frame holds to `into`, (N,) uint8.

    Raises:
        ProtocolError: the frame is damaged, or holds more or less than that.
        ConfigError: the library is not installed here.
    """
    with _one_thread() as blosc:
        if len(frame) < HEADER.size:
            raise ProtocolError(f"a Blosc frame of {len(frame)} bytes; its header takes {HEADER.size}")
        *_, decoded, _block, whole = HEADER.unpack_from(frame)
        if (decoded, whole) != (len(into), len(frame)):
            raise ProtocolError(
                f"a Blosc frame of {len(frame)} bytes for {len(into)}, which says it has {whole} for {decoded}"
            )
        try:
            blosc.decompress(frame, into)
        except (RuntimeError, ValueError) as error:
            raise ProtocolError(f"a Blosc frame that cannot be decoded ({error})") from error


@contextlib.contextmanager
def _one_thread() -> Iterator[Any]:
    """The library, which makes no threads meanwhile: a simulator and its client have other uses for them."""
    try:
        from numcodecs import blosc
    except ModuleNotFoundError as error:
        raise ConfigError(
            "arrays coded as 'bitlz4', 'bitzstd' or 'delta' need 'numcodecs', which is not installed here: "
            "pip install 'remote-env[images]'"
        ) from error
    before = blosc.use_threads
    blosc.use_threads = False
    try:
        yield blosc
    finally:
        blosc.use_threads = before
