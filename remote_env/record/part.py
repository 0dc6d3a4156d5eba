"""The `.part` file of a running episode: whole records, appended one by one, that a crash leaves whole.

Layout, all integers little-endian: `MAGIC`, then records of `length u32 | crc32 u32 | payload`, where the
CRC is of the payload and the payload is `json length u32 | JSON (UTF-8) | array bytes end to end`. The JSON
is
`{"fields": {…}, "arrays": [[name, dtype, shape], …]}`. Each record is one `write` straight to the kernel: a
killed process loses nothing that `append` returned from; a machine that loses power may lose the last
seconds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import CaptureError, InputError

MAGIC = b"remote-env part 1\n"
_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_KINDS = "biufc"  # dtypes that are plain bytes: never objects
MAX_RECORD_BYTES = 2**31 - 1


class Record(NamedTuple):
    """One record: plain fields, and arrays by name."""

    fields: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class PartWriter:
    """Appends records to a new file.

    Args:
        path: must not exist yet.

    Raises:
        FileExistsError: something has that name; it was left alone.
        CaptureError: the disk does not take the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._size = 0
        _lock(self._fd)
        try:
            self._write(MAGIC)
        except CaptureError:
            self.close()
            path.unlink()
            raise

    def append(self, fields: Mapping[str, Any], arrays: Frozen) -> None:
        """Write one record through to the kernel.

        Args:
            fields: what JSON can hold.
            arrays: from `freeze`.

        Raises:
            InputError: the record is larger than `MAX_RECORD_BYTES`; nothing was written.
            CaptureError: the disk is full; the file ends with the record before, and the same call may be
                tried again.
        """
        self._write(encode(fields, arrays))

    def flush(self) -> None:
        """Nothing to wait for: the kernel has every record that `append` returned from."""

    def release(self) -> None:
        """Let `repair_part` take the file although it is still open."""
        _unlock(self._fd)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            self._size += len(data)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise CaptureError(
                f"{self.path} cannot grow by the {len(data)} bytes of this record ({error.strerror}); what "
                "was recorded before is whole: make room and record again, or finish()"
            ) from error
        except BaseException:  # Ctrl-C in between: a torn record would hide every later one
            os.ftruncate(self._fd, self._size)
            raise


def is_being_recorded(path: Path) -> bool:
    """Whether some process has this `.part` open to write to it; False also where the file system cannot tell."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return not _lock(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Take the file for this descriptor; False where another one has it. The kernel lets go when it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unlock(fd: int) -> None:
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)


class Frozen(NamedTuple):
    """Copies of a record's arrays, as they go into the file.

    Attributes:
        table: name, dtype and shape of each.
        data: the bytes of each, little-endian, in C order.
    """

    table: list[tuple[str, str, tuple[int, ...]]]
    data: list[bytes]

    @property
    def size_bytes(self) -> int:
        """Of all together."""
        return sum(map(len, self.data))


def freeze(arrays: Mapping[str, NDArray[Any]]) -> Frozen:
    """Copies of arrays, for a record; InputError where one is not of plain numbers."""
    table, data = [], []
    for name, array in arrays.items():
        dtype, dtype_name = _little(array.dtype)
        if not dtype_name:
            raise InputError(f"{name} has dtype {array.dtype}; captures hold numbers and booleans")
        table.append((name, dtype_name, array.shape))
        data.append((array if dtype is array.dtype else array.astype(dtype)).tobytes())
    return Frozen(table, data)


@functools.cache
def _little(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], str]:
    """A dtype in little-endian order (itself where it is that already), and its name; "" where captures take it not.

    Remembered, because numpy works out the name anew at each question.
    """
    little = dtype.newbyteorder("<")
    return (dtype if little == dtype else little), little.str if dtype.kind in _KINDS else ""


def encode(fields: Mapping[str, Any], arrays: Frozen) -> bytes:
    """One record as bytes, its head included."""
    text = json.dumps({"fields": fields, "arrays": arrays.table}, separators=(",", ":")).encode()
    payload = [_LENGTH.pack(len(text)), text, *arrays.data]
    size = sum(map(len, payload))
    if size > MAX_RECORD_BYTES:
        raise InputError(f"one step is {size} bytes; a capture takes up to {MAX_RECORD_BYTES} a step")
    crc = functools.reduce(lambda crc, piece: zlib.crc32(piece, crc), payload, 0)
    return b"".join([_HEAD.pack(size, crc), *payload])


def read_part(path: Path) -> tuple[list[Record], int]:
    """Every whole record from the start, and how many bytes after the last one had to be dropped.

    The arrays view a read-only map of the file, so that a long episode of images needs no memory of its own.

    Raises:
        CaptureError: the file is missing or is not a part file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise CaptureError(f"{path} cannot be read ({error.strerror})") from error
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        raise CaptureError(f"{path} is not a recording in progress: it does not start with {MAGIC!r}")
    end, records = len(MAGIC), []
    for record, after in _records(view):
        records.append(record)
        end = after
    return records, len(view) - end


def _records(view: memoryview) -> Iterator[tuple[Record, int]]:
    start = len(MAGIC)
    while start + _HEAD.size <= len(view):
        length, crc = _HEAD.unpack_from(view, start)
        end = start + _HEAD.size + length
        if end > len(view):
            return
        payload = view[start + _HEAD.size : end]
        if zlib.crc32(payload) != crc:
            return
        try:
            record = _decode(payload)
        except (LookupError, TypeError, ValueError, RecursionError, struct.error):
            return  # the checksum is right, but no `encode` wrote this
        yield record, end
        start = end


def _decode(payload: memoryview) -> Record:
    """A payload whose CRC was right, so written by `encode` if by any of us; ValueError and the like where not."""
    (text_size,) = _LENGTH.unpack_from(payload)
    offset = _LENGTH.size + text_size
    head = json.loads(bytes(payload[_LENGTH.size : offset]))
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        if np.dtype(dtype).kind not in _KINDS or min(shape, default=0) < 0:
            raise ValueError(f"{name} is {dtype} {shape}")
        array = np.frombuffer(payload, dtype, count=math.prod(shape), offset=offset).reshape(shape)
        arrays[name] = array
        offset += array.nbytes
    return Record(head["fields"], arrays)
