"""Tensors of torch inside pickles, read into numpy and written for torch, without torch.

A tensor's pickle is `_rebuild_tensor_v2(storage, offset, size, stride, …)`, a storage's `_load_from_bytes(file)`, where
the file is what `torch.save` wrote for it: pickles again, then the raw numbers. That inner file is never unpickled
here: torch writes the same bytes around the type's name, the place and the numbers, and just those are taken.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from remote_env.policy.dialects.foreign_pickle import Call, Name
from remote_env.policy.policy import Array, Chunk

# torch's class of storage -> numpy's dtype. "BFloat16" is read as float32, since numpy has none.
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# torch.serialization._legacy_save: magic number, version, the machine, the storage's type, key, place and length.
_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
_MACHINE = (
    b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88X\n\x00\x00\x00type_sizesq\x03}q\x04("
    b"X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04X\x04\x00\x00\x00longq\x07K%suu."
)
_WRITTEN_MACHINE = _MACHINE % b"\x04"
_FILE = re.compile(
    re.escape(_START + _MACHINE).replace(b"%s", rb"[\x04\x08]")
    + rb"\x80\x02\(X\x07\x00\x00\x00storageq\x00ctorch\n(?P<kind>[A-Za-z0-9]{1,20})\nq\x01"
    + rb"X(?P<key_size>[\x01-\x20])\x00\x00\x00(?P<key>[0-9]{1,32})q\x02"
    + rb"X[\x01-\x10]\x00\x00\x00[a-z]{2,8}(?::[0-9]{1,3})?q\x03"
    + rb"(?:K.|M..|J.{4}|\x8a[\x01-\x08].{1,8}?)Ntq\x04Q\."
    + rb"\x80\x02\]q\x00X(?P=key_size)\x00\x00\x00(?P=key)q\x01a\.(?P<count>.{8})",
    re.DOTALL,
)
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
LOAD = Name("torch.storage", "_load_from_bytes")
ORDERED = Name("collections", "OrderedDict")


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers behind one or several tensors.

    Attributes:
        values: all of them, flat and read-only.
    """

    values: Array


def read_storage(file: Any) -> Storage:
    """What `torch.save` wrote for one storage.

    Raises:
        ValueError: these are not the bytes that torch writes for a storage of numbers.
    """
    if type(file) is not bytes or (head := _FILE.match(file)) is None:
        raise ValueError("a torch storage in a form that torch 1 and 2 do not write")
    kind = str(head["kind"], "ascii")
    if kind not in _DTYPES:
        raise ValueError(f"a torch storage of type {kind}; {', '.join(_DTYPES)} are read")
    dtype, (count,) = np.dtype(_DTYPES[kind]), struct.unpack("<q", head["count"])
    if count * dtype.itemsize != len(file) - head.end():
        raise ValueError(f"a torch storage of {count} numbers in {len(file) - head.end()} bytes")
    values = np.frombuffer(file, dtype, count, head.end())
    return Storage(_widen(values) if kind == "BFloat16Storage" else values)


def _widen(values: Array) -> Array:
    """Float32 of bfloat16, which is its upper half."""
    return (values.astype(np.uint32) << 16).view(np.float32)


class TensorReader:
    """What torch's names stand for in one restricted pickle; tensors become arrays that own their numbers.

    Args:
        budget_bytes: how large all tensors may be together; a pickle that is honest holds each number of each once.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes

    def allowed(self) -> dict[tuple[str | None, str], Callable[..., Any]]:
        """(module, name) -> what is called, for `restricted_loads`."""
        calls: dict[Name, Callable[..., Any]] = {REBUILD: self._tensor, LOAD: read_storage, ORDERED: _no_hooks}
        return {(name.module, name.name): call for name, call in calls.items()}

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
    ) -> Array:
        if not isinstance(storage, Storage) or metadata:
            raise ValueError("a torch tensor without a storage, or with metadata")
        if type(size) is not tuple or type(stride) is not tuple or not 0 <= len(size) == len(stride) <= 8:
            raise ValueError("a torch tensor whose size and stride do not fit each other")
        if not all(type(number) is int and 0 <= number < 1 << 40 for number in (offset, *size, *stride)):
            raise ValueError("a torch tensor whose size, stride or offset is no whole number from 0 up")
        return self._copy(storage.values, offset, size, stride)

    def _copy(self, values: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Array:
        count = 1
        for length in size:
            count *= length
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (count > len(values) or last >= len(values)):
            raise ValueError(f"a torch tensor of size {size!r:.100} that reaches beyond its storage of {len(values)}")
        self._left -= count * values.itemsize
        if self._left < 0:
            raise ValueError("its tensors together are larger than itself")
        if not count:
            return np.zeros(size, values.dtype)
        strides = tuple(step * values.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(values[offset:], size, strides).copy()


def _no_hooks(*arguments: Any) -> dict[str, Any]:
    # A tensor's backward hooks: always none.
    if arguments:
        raise ValueError("an OrderedDict with something in it")
    return {}


def write_rows(rows: Chunk) -> list[Call]:
    """A float32 tensor (D,) for each row of a chunk (K, D), for `foreign_dumps`; they share one storage."""
    rows = np.ascontiguousarray(rows, "<f4")
    storage = Call(LOAD, (_storage_file(rows),))
    count, size = rows.shape
    return [Call(REBUILD, (storage, row * size, (size,), (1,), False, Call(ORDERED, ()))) for row in range(count)]


def _storage_file(values: Chunk) -> bytes:
    count = values.size
    name = b"\x80\x02(X\x07\x00\x00\x00storageq\x00ctorch\nFloatStorage\nq\x01"
    place = b"X\x01\x00\x00\x000q\x02X\x03\x00\x00\x00cpuq\x03"
    keys = b"\x80\x02]q\x00X\x01\x00\x00\x000q\x01a."
    length = b"J" + struct.pack("<i", count) + b"Ntq\x04Q."
    return _START + _WRITTEN_MACHINE + name + place + length + keys + struct.pack("<q", count) + values.tobytes()
