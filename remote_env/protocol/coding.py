"""Coding of arrays for slow links: raw, Zstandard, Blosc, JPEG (docs/protocol.md, "Coded arrays"). Pure.

`encode_array` and `decode_array` are opposites: near ones for "jpeg", exact ones for all others. Which coder is
used is agreed upon by `choose_coder`; JPEG is never chosen for anybody who did not ask for it, since it has been seen
to change what a policy does.
"""

from __future__ import annotations

import importlib
import importlib.util
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError, MessageTooBig, ProtocolError
from remote_env.protocol.blosc_frames import MAX_BYTES, decode_blosc, encode_blosc
from remote_env.protocol.codec import DTYPES, MAX_DIMENSIONS

CODERS = ("raw", "zstd", "bitlz4", "bitzstd", "jpeg")
LOSSY = frozenset(("jpeg",))
PACKAGES = {"zstd": "zstandard", "bitlz4": "numcodecs", "bitzstd": "numcodecs", "jpeg": "simplejpeg"}
_DTYPES = {dtype.name: dtype for dtype in DTYPES}
ZSTD_LEVEL = 1  # a higher one costs more time than it saves on the links that this is for
JPEG_QUALITY = 90
MIN_CODED_BYTES = 1024  # smaller arrays are sent as they are
MAX_SCANS = 64  # of a JPEG: each goes over the whole image again, and takes but a few bytes
CODED_KEYS = frozenset(("coder", "dtype", "shape", "data"))


def available_coders() -> tuple[str, ...]:
    """The coders whose packages are installed here."""
    return tuple(coder for coder in CODERS if coder not in PACKAGES or importlib.util.find_spec(PACKAGES[coder]))


def choose_coder(asked: str, theirs: Sequence[str], *, is_near: bool) -> str:
    """The coder to send with.

    Args:
        asked: one of `CODERS`; "auto" is lossless: "raw" to a peer on this machine, where copying is cheaper
            than coding, else "zstd" if both ends have it.
        theirs: what the peer can decode.
        is_near: whether the peer is on this machine.

    Raises:
        ConfigError: no such coder, or one end lacks it.
    """
    if asked == "auto":
        both = "zstd" in theirs and "zstd" in available_coders()
        return "zstd" if both and not is_near else "raw"
    if asked not in CODERS:
        raise ConfigError(f"unknown image coding {asked!r}; there are auto, {', '.join(CODERS)}")
    for end, has in (("this end", available_coders()), ("the server", theirs)):
        if asked not in has:
            raise ConfigError(
                f"{end} cannot code images as {asked!r}: it lacks {PACKAGES.get(asked, asked)!r}; there "
                "pip install 'remote-env[images]', or take another coding: raw needs nothing"
            )
    return asked


def encode_array(array: NDArray[Any], coder: str, *, quality: int = JPEG_QUALITY) -> Any:
    """What stands for `array` in a message: a dict that `decode_array` reads, or the array itself.

    Args:
        array: of a dtype that messages carry; for "jpeg" (..., H, W, 3) uint8 with the channels last.
        coder: of `CODERS`.
        quality: of a JPEG, 1 to 100.

    Returns:
        The array itself where coding it would not make it smaller.

    Raises:
        InputError: "jpeg" was asked for something that is no such image.
        ConfigError: the coder's package is not installed here.
    """
    if coder == "jpeg":
        return _coded("jpeg", array, _encode_jpegs(array, quality))
    if coder == "raw" or array.nbytes < MIN_CODED_BYTES or array.dtype.name not in _DTYPES:
        return array
    items = np.ascontiguousarray(array).astype(_DTYPES[array.dtype.name], copy=False).reshape(-1)
    if coder == "zstd":
        data = _encode_zstd(items)
    elif array.nbytes > MAX_BYTES:
        return array
    else:
        data = encode_blosc(items, "lz4" if coder == "bitlz4" else "zstd", "bit")
    return _coded(coder, array, [data]) if len(data) < array.nbytes else array


def is_coded(value: Any) -> bool:
    """Whether `value` is what `encode_array` makes of an array that it coded."""
    return type(value) is dict and value.keys() == CODED_KEYS


def decode_array(value: Mapping[str, Any], *, max_bytes: int) -> NDArray[Any]:
    """The array that a coded value stands for, writable and the caller's own.

    Args:
        value: as `encode_array` made it, sent by whomever.
        max_bytes: how large the array may be.

    Raises:
        MessageTooBig: it would be larger; nothing was allocated.
        ProtocolError: it is not what it says, be it larger, smaller or damaged.
        ConfigError: the coder's package is not installed here.
    """
    dtype, shape, size = read_head(value, max_bytes=max_bytes)
    parts = read_parts(value["data"])
    coder = value["coder"]
    if not isinstance(coder, str) or coder not in PACKAGES:
        raise ProtocolError(f"an array coded as {_shown(coder)}; there are {', '.join(PACKAGES)}")
    if coder == "zstd":
        return _decode_zstd(parts, dtype, shape, size)
    return _decode_jpegs(parts, dtype, shape) if coder == "jpeg" else decode_bits(parts, dtype, shape, size)


def read_head(value: Mapping[str, Any], *, max_bytes: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """The dtype, shape and bytes of the array that a coded value stands for.

    Raises:
        MessageTooBig: it takes more than `max_bytes`.
        ProtocolError: it is no array that is coded, or has no bytes.
    """
    dtype, shape = _read_dtype_and_shape(value)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size > max_bytes:
        raise MessageTooBig(f"a coded array {dtype} {shape} of {size} bytes; allowed are {max_bytes}")
    if not size:
        raise ProtocolError(f"a coded array {dtype} {shape} of nothing")
    return dtype, shape, size


def decode_bits(
    parts: list[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...], size_bytes: int
) -> NDArray[Any]:
    """The array in one Blosc frame.

    Raises:
        ProtocolError: it is not what was announced.
        ConfigError: the library is not installed here.
    """
    if len(parts) != 1:
        raise ProtocolError(f"a Blosc array in {len(parts)} parts; it is one")
    array = np.empty(size_bytes, np.uint8)
    decode_blosc(parts[0], array)
    return array.view(dtype).reshape(shape)


def _coded(coder: str, array: NDArray[Any], data: Sequence[bytes]) -> dict[str, Any]:
    parts = [np.frombuffer(part, np.uint8) for part in data]
    return {"coder": coder, "dtype": array.dtype.name, "shape": list(array.shape), "data": parts}


def _package(coder: str) -> Any:
    try:
        return importlib.import_module(PACKAGES[coder])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"arrays coded as {coder!r} need {PACKAGES[coder]!r}, which is not installed here: "
            "pip install 'remote-env[images]'"
        ) from error


def _read_dtype_and_shape(value: Mapping[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    name, shape = value["dtype"], value["shape"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ProtocolError(f"a coded array of the dtype {_shown(name)}")
    whole = isinstance(shape, list) and all(type(length) is int and 0 <= length < 1 << 32 for length in shape)
    if not whole or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"a coded array of the shape {_shown(shape)}")
    return _DTYPES[name], tuple(shape)


def _shown(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, (str, list)) else f"a {type(value).__name__}"


def read_parts(data: Any) -> list[NDArray[Any]]:
    """The byte vectors of a coded array; ProtocolError where they are none."""
    whole = isinstance(data, list) and all(
        isinstance(part, np.ndarray) and part.dtype == np.uint8 and part.ndim == 1 for part in data
    )
    if not whole:
        raise ProtocolError("a coded array whose data is not a list of byte arrays")
    parts: list[NDArray[Any]] = data
    return parts


def _encode_zstd(items: NDArray[Any]) -> bytes:
    zstandard = _package("zstd")
    try:
        compressor = _compressors.pop()
    except IndexError:
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    data: bytes = compressor.compress(items.view(np.uint8).data)
    _compressors.append(compressor)
    return data


# Free ones: each serves one thread at a time, and has tables to fill. `append` and `pop` are atomic.
_compressors: list[Any] = []


def _decode_zstd(parts: list[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> NDArray[Any]:
    zstandard = _package("zstd")
    if len(parts) != 1:
        raise ProtocolError(f"an array coded as zstd in {len(parts)} parts; it is one")
    try:
        announced = zstandard.get_frame_parameters(parts[0].data).content_size
        if announced != size:
            raise ProtocolError(f"a zstd frame of {announced} bytes for an array {dtype} {shape} of {size}")
        # In one piece, and into no more than was announced.
        data = zstandard.ZstdDecompressor().decompress(parts[0].data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"a zstd frame that cannot be decoded ({error})") from error
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _encode_jpegs(array: NDArray[Any], quality: int) -> list[bytes]:
    if array.dtype != np.uint8 or array.ndim < 3 or array.shape[-1] != 3 or not array.size:
        raise InputError(
            f"JPEG codes uint8 images (..., H, W, 3) with the channels last, and this is {array.dtype} {array.shape}; "
            "send it raw or as zstd"
        )
    simplejpeg = _package("jpeg")
    images = np.ascontiguousarray(array).reshape(-1, *array.shape[-3:])
    try:
        return [simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB") for image in images]
    except ValueError as error:
        raise InputError(f"this image cannot be coded as JPEG: {error}") from error


def _check_jpeg(data: bytes) -> None:
    if not data.endswith(b"\xff\xd9"):
        raise ProtocolError("a JPEG without its end, or with bytes behind it")
    # Within coded data no marker can occur by chance: there a byte ff is followed by 00.
    if (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ProtocolError(f"a JPEG of {scans} scans; at most {MAX_SCANS} are decoded")


def _decode_jpegs(parts: list[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    simplejpeg = _package("jpeg")
    if dtype != np.uint8 or len(shape) < 3 or shape[-1] != 3:
        raise ProtocolError(f"JPEGs for an array {dtype} {shape}; they are uint8 (..., H, W, 3)")
    count = 1
    for length in shape[:-3]:
        count *= length
    if count != len(parts):
        raise ProtocolError(f"{len(parts)} JPEGs for an array of the shape {shape}")
    try:
        for part in parts:  # all of them, before memory is taken for any
            _check_jpeg(part.tobytes())
            height, width, *_ = simplejpeg.decode_jpeg_header(part.data)
            if (height, width) != shape[-3:-1]:
                raise ProtocolError(f"a JPEG of {height} × {width} for an image of {shape[-3]} × {shape[-2]}")
        array = np.empty((count, *shape[-3:]), np.uint8)
        for part, image in zip(parts, array, strict=True):
            image[...] = simplejpeg.decode_jpeg(part.data, colorspace="RGB")
    except (ValueError, KeyError) as error:  # KeyError: a subsampling that simplejpeg does not know
        raise ProtocolError(f"a JPEG that cannot be decoded ({error!r})") from error
    return array.reshape(shape)
