"""Values to bytes and back: msgpack bodies with arrays (docs/protocol.md, "Values"). Pure.

`encode` and `decode` are exact opposites. What is normalised on the way: subclasses of int, float, complex,
str, bytes, list and dict (an OrderedDict, an IntEnum, np.str_) become their base; a namedtuple becomes a
tuple (Gymnasium's GraphInstance stays one); bytearray and memoryview become bytes; array memory becomes
C-contiguous, native and writable; an np.memmap becomes an array.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
from msgpack import ExtType, Packer, unpackb
from msgpack.exceptions import UnpackException
from numpy.typing import NDArray

from remote_env.errors import InputError, MessageTooBig, ProtocolError
from remote_env.protocol.body_scan import is_suspicious, scan
from remote_env.protocol.refusal import explain

Buffer = bytes | bytearray | memoryview

INLINE_BELOW_BYTES = 4096  # smaller arrays are inside the body
MAX_DIMENSIONS = 32  # numpy 1.26's own limit
MAX_INTEGER_BYTES = 1024  # Python itself refuses to write much longer ones in decimal, as messages and logs do
MAX_SAME_HASHES = 64  # keys of one dict that share a hash: each is compared with all before it

# Extension types. Their numbers and those of the dtypes are part of the protocol: never reuse one.
EXT_MARK = 1
EXT_BIG_INT = 2
EXT_COMPLEX = 3
EXT_SCALAR = 4
EXT_ARRAY = 5
EXT_BIG_ARRAY = 6
MARK_TUPLE = b"\x00"
MARK_GRAPH = b"\x01"

_INTEGERS = ("<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8")
DTYPES = tuple(map(np.dtype, ("?", *_INTEGERS, "<f2", "<f4", "<f8", "<c8", "<c16")))
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_SCALAR_PREFIXES = {dtype.type: bytes([code]) for code, dtype in enumerate(DTYPES)}
_ARRAY_HEADS = tuple(struct.Struct(f"<BB{count}I") for count in range(MAX_DIMENSIONS + 1))
_COMPLEX = struct.Struct("<dd")
_PLAIN_BASES: tuple[type[Any], ...] = (str, bytes, float, list, dict)  # their subclasses are normalised
_ext_type = partial(tuple.__new__, ExtType)  # the constructor without its checks, at half the price


@dataclass(frozen=True)
class Limits:
    """What a message may hold; everything is checked before memory is taken for it.

    Attributes:
        max_body_bytes: length of a body.
        max_payload_bytes: sum of the out-of-line arrays of a message.
        max_array_bytes: one array.
        max_items: values in one body, keys and elements counted too.
        max_depth: lists, tuples and dicts inside each other.
    """

    max_body_bytes: int = 64 << 20
    max_payload_bytes: int = 1 << 30
    max_array_bytes: int = 1 << 30
    max_items: int = 1_000_000
    max_depth: int = 64


DEFAULT_LIMITS = Limits()

# What packing raises, C and pure Python taken together; KeyError: a dtype that is not in the table.
_CANNOT_CROSS = (
    TypeError,
    ValueError,
    KeyError,
    OverflowError,
    RecursionError,
    BufferError,
    struct.error,
    ProtocolError,
)


def encode(value: Any, *, where: str) -> tuple[bytes, list[memoryview]]:
    """Return the body that carries `value`, and the memory of its large arrays.

    Args:
        value: None, bool, int, float, complex, str, bytes, list, tuple, dict, numpy scalar or array,
            GraphInstance; nested up to 64 levels.
        where: what the value is, for error messages ("info", "observation", "env_kwargs").

    Returns:
        The msgpack body, and one 1-D byte view per array of at least 4096 bytes, in order of appearance: the
        array's own memory where that is C-contiguous (it must not change until it is sent), else a copy.

    Raises:
        InputError: something inside cannot cross; the message holds its key path, its type and what to do.
    """
    try:
        encoder = _encoders.pop()
    except IndexError:
        encoder = _Encoder()
    try:
        body: bytes = encoder.pack(value)
        _check_structure(body, DEFAULT_LIMITS)
    except _CANNOT_CROSS as error:
        depth = DEFAULT_LIMITS.max_depth
        raise explain(value, where, error, max_depth=depth, try_leaf=_Encoder().pack) from error
    buffers, encoder.buffers = encoder.buffers, []
    if buffers or len(body) > DEFAULT_LIMITS.max_body_bytes:
        _check_sizes(len(body), buffers, where)
    if len(body) < _POOLED_BODY_BYTES:
        _encoders.append(encoder)
    return body, buffers


def decode(body: Buffer, payload_size: int, limits: Limits = DEFAULT_LIMITS) -> tuple[Any, list[memoryview]]:
    """Return the value that `body` carries, and the memory that its large arrays are to be received into.

    Args:
        body: one whole body.
        payload_size: how many bytes of payload come with it.
        limits: what the body and its arrays may be.

    Returns:
        The value, in which arrays of 4096 bytes and more are still uninitialised; and one writable 1-D byte
        view per such array, in payload order, which the caller fills. Their sizes sum up to `payload_size`.

    Raises:
        MessageTooBig: more bytes than `limits` allow.
        ProtocolError: the body is not one that `encode` makes, or does not fit the payload.
    """
    if len(body) > limits.max_body_bytes:
        raise MessageTooBig(f"a body of {len(body)} bytes; at most {limits.max_body_bytes} are allowed")
    if not 0 <= payload_size <= limits.max_payload_bytes:
        raise MessageTooBig(f"a payload of {payload_size} bytes; at most {limits.max_payload_bytes} are allowed")
    data = bytes(body)
    _check_structure(data, limits)
    try:
        decoder = _decoders.pop()
    except IndexError:
        decoder = _Decoder()
    decoder.payload_left = payload_size
    decoder.max_array_bytes = limits.max_array_bytes
    try:
        value = decoder.unpack(data)
    except (ValueError, TypeError, UnpackException, OverflowError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"a body that cannot be decoded ({type(error).__name__}: {error})") from error
    if decoder.marks or decoder.payload_left:
        raise ProtocolError(
            f"a body with {decoder.marks} misplaced marks; {decoder.payload_left} bytes of payload are left"
        )
    views, decoder.views = decoder.views, []
    _decoders.append(decoder)
    return value, views


class _Encoder:
    """A packer that collects large arrays; not used again after an error."""

    __slots__ = ("buffers", "pack")

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self.pack = Packer(default=self._default, strict_types=True).pack

    def _default(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            return [_TUPLE, *value]
        if kind is np.ndarray:
            return self._array(value)
        prefix = _SCALAR_PREFIXES.get(kind)
        if prefix is not None:
            return _ext_type((EXT_SCALAR, b"".join((prefix, value))))
        return self._rare(value)

    def _rare(self, value: Any) -> Any:
        if isinstance(value, np.memmap):
            return self._array(value.view(np.ndarray))
        if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
            code = _dtype_code(value.dtype)
            return _ext_type((EXT_SCALAR, bytes([code]) + value.astype(DTYPES[code]).tobytes()))
        if isinstance(value, int):
            return _plain_int(int(value))
        if isinstance(value, complex):
            return _ext_type((EXT_COMPLEX, _COMPLEX.pack(value.real, value.imag)))
        if isinstance(value, tuple):
            return [_GRAPH if is_graph_instance(value) else _TUPLE, *value]
        for base in _PLAIN_BASES:
            if isinstance(value, base):
                return base(value)
        raise TypeError(f"{type(value)} cannot cross")

    def _array(self, array: NDArray[Any]) -> Any:
        code = _DTYPE_CODES.get(array.dtype)
        if code is None:
            code = _dtype_code(array.dtype)
            array = array.astype(DTYPES[code])
        if array.ndim > MAX_DIMENSIONS:
            raise ValueError("too many dimensions")
        head = _ARRAY_HEADS[array.ndim].pack(code, array.ndim, *array.shape)
        if array.nbytes < INLINE_BELOW_BYTES:
            return _ext_type((EXT_ARRAY, head + array.tobytes()))
        # Not memoryview.cast: it refuses complex numbers.
        self.buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return _ext_type((EXT_BIG_ARRAY, head))


class _Decoder:
    """An unpacker that allocates large arrays; not used again after an error."""

    __slots__ = ("marks", "max_array_bytes", "payload_left", "unpack", "views")

    def __init__(self) -> None:
        self.views: list[memoryview] = []
        self.marks = 0  # read but not yet found at the head of a list
        self.payload_left = 0
        self.max_array_bytes = 0
        self.unpack = partial(
            unpackb, ext_hook=self._ext, list_hook=self._list, object_pairs_hook=_dict, strict_map_key=False
        )

    def _list(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Mark:
            return items
        self.marks -= 1
        mark = items.pop(0)
        return tuple(items) if mark is _TUPLE_MARK else _graph_instance(items)

    def _ext(self, code: int, data: bytes) -> Any:
        if code == EXT_SCALAR:
            return _scalar(data)
        if code == EXT_ARRAY:
            dtype, shape, size, start = self._array_head(data)
            if len(data) - start != size:
                _refuse(f"an array {dtype} {shape} with {len(data) - start} bytes; it needs {size}")
            return np.ndarray(shape, dtype, data, start).copy()
        if code == EXT_BIG_ARRAY:
            return self._big_array(data)
        if code == EXT_MARK:
            self.marks += 1
            return _MARKS[data] if data in _MARKS else _refuse(f"an unknown mark {data[:8]!r}")
        if code == EXT_BIG_INT:
            return _big_int(data)
        if code == EXT_COMPLEX and len(data) == _COMPLEX.size:
            return complex(*_COMPLEX.unpack(data))
        return _refuse(f"an unknown extension type {code} of {len(data)} bytes")

    def _array_head(self, data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        if len(data) < 2 or data[0] >= len(DTYPES) or data[1] > MAX_DIMENSIONS:
            _refuse(f"an array with the unknown head {data[:2]!r}")
        head = _ARRAY_HEADS[data[1]]
        if len(data) < head.size:
            _refuse(f"an array head of {len(data)} bytes; {data[1]} dimensions need {head.size}")
        dtype, shape = DTYPES[data[0]], head.unpack_from(data)[2:]
        size = dtype.itemsize
        for dimension in shape:
            size *= dimension
        if size > self.max_array_bytes:
            raise MessageTooBig(f"an array {dtype} {shape} of {size} bytes; allowed are {self.max_array_bytes}")
        return dtype, shape, size, head.size

    def _big_array(self, data: bytes) -> NDArray[Any]:
        dtype, shape, size, start = self._array_head(data)
        if len(data) != start or not INLINE_BELOW_BYTES <= size <= self.payload_left:
            _refuse(f"an array {dtype} {shape} of {size} bytes; {self.payload_left} bytes of payload are left")
        self.payload_left -= size
        array = np.empty(shape, dtype)
        self.views.append(array.reshape(-1).view(np.uint8).data)
        return array


class _Mark:
    """Stands at the head of a list that is something else."""


_TUPLE_MARK, _GRAPH_MARK = _Mark(), _Mark()
_MARKS = {MARK_TUPLE: _TUPLE_MARK, MARK_GRAPH: _GRAPH_MARK}
_TUPLE, _GRAPH = ExtType(EXT_MARK, MARK_TUPLE), ExtType(EXT_MARK, MARK_GRAPH)

# Free packers and unpackers: making one costs more than using it. `append` and `pop` are atomic, so that
# threads and re-entrant calls each get their own.
_encoders: list[_Encoder] = []
_decoders: list[_Decoder] = []
_POOLED_BODY_BYTES = 1 << 20  # a packer keeps its largest body's memory


def is_graph_instance(value: Any) -> bool:
    """Whether `value` is Gymnasium's GraphInstance, found without importing Gymnasium."""
    kind = type(value)
    return kind.__name__ == "GraphInstance" and kind.__module__ == "gymnasium.spaces.graph"


def _graph_instance(items: list[Any]) -> Any:
    from gymnasium.spaces import GraphInstance  # not at the top: a fraction of a second

    if len(items) != 3:
        _refuse(f"a graph of {len(items)} parts; nodes, edges and edge links are 3")
    return GraphInstance(*items)


def _plain_int(value: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    size = value.bit_length() // 8 + 1
    if size > MAX_INTEGER_BYTES:
        raise ValueError(f"an integer of {size} bytes; at most {MAX_INTEGER_BYTES} cross")
    return _ext_type((EXT_BIG_INT, value.to_bytes(size, "big", signed=True)))


def _big_int(data: bytes) -> int:
    if not 1 <= len(data) <= MAX_INTEGER_BYTES:
        _refuse(f"an integer of {len(data)} bytes; 1 to {MAX_INTEGER_BYTES} are allowed")
    return int.from_bytes(data, "big", signed=True)


def _dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    items = pairs if type(pairs) is list else list(pairs)  # pure-Python msgpack gives an iterator
    if len(items) > MAX_SAME_HASHES:
        _check_hashes(items)
    made = dict(items)
    if len(made) != len(items):
        raise ProtocolError("a dict with a key twice")
    return made


def _check_hashes(items: list[tuple[Any, Any]]) -> None:
    """Refuse keys that were chosen to collide: a dict of a million such takes hours to make."""
    same = len(items) - len({hash(key) for key, _ in items})
    if same > MAX_SAME_HASHES:
        _refuse(f"a dict of {len(items)} pairs in which {same} keys share their hashes with others")


def _scalar(data: bytes) -> Any:
    if not data or data[0] >= len(DTYPES) or len(data) != 1 + DTYPES[data[0]].itemsize:
        _refuse(f"a malformed numpy scalar of {len(data)} bytes")
    return np.frombuffer(data, DTYPES[data[0]], 1, 1)[0]


def _refuse(what: str) -> NoReturn:
    raise ProtocolError(what)


def _dtype_code(dtype: np.dtype[Any]) -> int:
    """The code of a dtype that is one of ours in other clothes (another byte order, C's long long)."""
    return _DTYPE_CODES[np.dtype(dtype.newbyteorder("<").str)]


def _check_structure(body: bytes, limits: Limits) -> None:
    if is_suspicious(body, limits.max_items, limits.max_depth):
        scan(body, limits.max_items, limits.max_depth)


def _check_sizes(body_size: int, buffers: list[memoryview], where: str) -> None:
    limits, total, largest = DEFAULT_LIMITS, sum(map(len, buffers)), max(map(len, buffers), default=0)
    allowed = limits.max_body_bytes, limits.max_payload_bytes, limits.max_array_bytes
    if body_size > allowed[0] or total > allowed[1] or largest > allowed[2]:
        raise InputError(
            f"{where} is too big for one message: a body of {body_size} bytes and {total} bytes of arrays, "
            f"the largest {largest}; allowed are {', '.join(map(str, allowed))}: send less at once"
        )
