"""numpy's arrays, scalars and dtypes out of restricted pickles, under the names of numpy 1 and numpy 2.

Nothing of numpy's own unpickling runs: an array is made of its dtype, shape and bytes once these agree with each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_CODES = re.compile(r"b1|[iu][1248]|f[248]")
_MAX_DIMENSIONS = 8
_MAX_EMPTY = 1 << 20  # an array without a byte may still say how many rows it has
MAX_KEY = 1 << 60  # beyond it two whole numbers may share a hash, and a dict of them gets slow


@dataclass(frozen=True)
class Named:
    """What a name in a pickle stands for while it is read.

    Attributes:
        name: as the pickle gave it, to show.
        call: what calling it does; None of a type that is only named.
        takes_names: whether `call` is made for arguments that are names themselves.
        module: that the pickle gave.
        record: of an instance's class: the caller's entry.
    """

    name: str
    call: Callable[..., Any] | None = None
    takes_names: bool = False
    module: str = ""
    record: Any = None

    def pending(self) -> Pending:
        """An instance of the record, whose fields are still to come."""
        return Pending(lambda state: self.record.build(self.module, _fields(self.name, state)))


@dataclass(frozen=True, eq=False)
class Pending:
    """A value that its state is still to make.

    Attributes:
        build: gives the value for the state.
        stored_at: where in the memo it lies, to be replaced by the value.
    """

    build: Callable[[Any], Any]
    stored_at: list[int] = field(default_factory=list)


def _fields(name: str, state: Any) -> dict[str, Any]:
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise ValueError(f"the state of a {name[:200]} is a {type(state).__name__}, not fields by name")
    return state


class ArrayBuilder:
    """Makes what numpy's names in one pickle ask for.

    Args:
        size_bytes: the pickle's own length. It holds each array's bytes once, at times by way of a text and a
            bytearray: what needs more than three times as much recalls the same bytes again and again.
        object_arrays: whether arrays of objects may be made.
        check: refuses what may not lie in an array of objects.
    """

    def __init__(self, size_bytes: int, *, object_arrays: bool, check: Callable[..., None]) -> None:
        self._left, self._object_arrays, self._check = 3 * size_bytes, object_arrays, check

    def names(self) -> dict[tuple[str, str], Named]:
        """(module, name) -> what it stands for: numpy's, and those that picklers need for any class."""
        calls: list[tuple[Iterable[str], str, Callable[..., Any] | None, bool]] = [
            (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", self._reconstruct, True),
            (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", self._scalar, False),
            (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", self._from_buffer, False),
            (("numpy",), "dtype", _dtype, False),
            (("numpy",), "ndarray", None, False),
            (("copyreg", "copy_reg"), "_reconstructor", _reconstructor, True),
            (("builtins", "__builtin__"), "object", None, False),
            (("builtins", "__builtin__"), "bytes", _bytes, False),
            (("builtins", "__builtin__"), "bytearray", self._bytearray, False),
            (("builtins", "__builtin__"), "set", _set, False),
            (("builtins", "__builtin__"), "frozenset", _frozenset, False),
            (("_codecs",), "encode", self._encode, False),
        ]
        return {
            (module, name): Named(f"{module}.{name}", call, takes_names)
            for modules, name, call, takes_names in calls
            for module in modules
        }

    def _spend(self, size_bytes: int) -> None:
        self._left -= size_bytes
        if self._left < 0:
            raise ValueError("its arrays together take several times the bytes that it holds")

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> Pending:
        if type(kind) is not Named or kind.name != "numpy.ndarray" or shape != (0,) or code not in (b"b", "b"):
            raise ValueError("an array that numpy would not have written so")
        return Pending(self._array_of_state)

    def _array_of_state(self, state: Any) -> np.ndarray[Any, Any]:
        _version, shape, dtype, fortran, data = state
        if not isinstance(dtype, np.dtype) or type(fortran) is not bool:
            raise ValueError("an array's state that numpy would not have written so")
        if dtype.hasobject:
            return self._array_of_objects(shape, data, order="F" if fortran else "C")
        return self._array(data, dtype, shape, order="F" if fortran else "C")

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> Any:
        if not isinstance(dtype, np.dtype) or dtype.hasobject or order not in ("C", "F", "K"):
            raise ValueError("an array that numpy would not have written so")
        if order != "K":
            return self._array(data, dtype, shape, order=order)
        if type(axis_order) is not tuple or sorted(axis_order) != list(range(len(_shape(shape)))):
            raise ValueError("an array whose axes are in no order")
        return self._array(data, dtype, shape, order="C").transpose(axis_order)

    def _array(self, data: Any, dtype: np.dtype[Any], shape: Any, *, order: Any) -> np.ndarray[Any, Any]:
        if type(data) not in (bytes, bytearray) or math.prod(_shape(shape)) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {shape!r:.100} and dtype {dtype} whose data do not have that size")
        self._spend(len(data))
        return np.frombuffer(data, dtype).copy().reshape(shape, order=order)

    def _array_of_objects(self, shape: Any, items: Any, *, order: Any) -> np.ndarray[Any, Any]:
        if not self._object_arrays:
            raise ValueError("an array of objects, which is not admitted here")
        if type(items) is not list or math.prod(_shape(shape)) != len(items):
            raise ValueError(f"an array of objects of shape {shape!r:.100} with a different number of them")
        for item in items:
            if isinstance(item, _NO_ITEMS):
                raise ValueError(f"an array of objects that holds a {type(item).__name__}")
        self._check(items, within_objects=True)
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array.reshape(shape, order=order)

    def _scalar(self, dtype: Any, data: Any = None) -> Any:
        if not isinstance(dtype, np.dtype) or dtype.hasobject or type(data) is not bytes:
            raise ValueError("a scalar that numpy would not have written so")
        return self._array(data, dtype, (1,), order="C")[0]

    def _bytearray(self, data: Any = b"") -> bytearray:
        if type(data) is not bytes:
            raise ValueError("a bytearray that is not made of bytes")
        self._spend(len(data))
        return bytearray(data)

    def _encode(self, text: Any, encoding: Any) -> bytes:
        # How protocols 0 to 2 write bytes.
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise ValueError("bytes that are not written as text in Latin-1")
        self._spend(len(text))
        return text.encode("latin-1")


_NO_ITEMS = (
    *(type(None), bool, int, float, str, bytes, bytearray, list, tuple, set, frozenset),
    *(np.generic, np.ndarray, np.dtype, Named, Pending),
)


def check_key(key: Any) -> Any:
    """The key of a dict, or item of a set, that it is; raises ValueError for kinds that may be slow to hash."""
    if type(key) in (str, bytes, bool) or (type(key) is int and abs(key) < MAX_KEY):
        return key
    raise ValueError(f"a key of a dict or set that is a {type(key).__name__}")


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS or not all(type(size) is int for size in shape):
        raise ValueError(f"an array's shape that is {shape!r:.100}")
    most = _MAX_EMPTY if 0 in shape else 1 << 31
    if any(size < 0 for size in shape) or math.prod(max(size, 1) for size in shape) > most:
        raise ValueError(f"an array of shape {shape!r:.100}")
    return shape


def _dtype(code: Any, align: Any = False, copy: Any = False) -> Pending:  # noqa: ARG001  numpy's signature
    if type(code) is not str or not (_CODES.fullmatch(code) or code in ("O8", "O4", "O")):
        raise ValueError(
            f"an array of dtype {code!r:.100}; whole numbers, floats of at most 8 bytes and booleans are admitted"
        )

    def build(state: Any) -> np.dtype[Any]:
        if type(state) is not tuple or len(state) < 5 or state[2:5] != (None, None, None) or state[1] not in _ORDERS:
            raise ValueError("a dtype with fields, or one that numpy would not have written so")
        return np.dtype("O") if code.startswith("O") else np.dtype(state[1] + code)

    return Pending(build)


_ORDERS = ("<", ">", "|", "=")


def _reconstructor(kind: Any, base: Any, state: Any) -> Pending:
    # How protocols 0 and 1 make an instance.
    if type(kind) is not Named or kind.record is None or type(base) is not Named or base.call is not None:
        raise ValueError("an instance of something that is no admitted record")
    if not base.name.endswith(".object") or state is not None or not hasattr(kind.record, "build"):
        raise ValueError("an instance that is made of more than its fields")
    return kind.pending()


def _bytes(*arguments: Any) -> bytes:
    # Protocols 0 to 2 write empty bytes so.
    if arguments:
        raise ValueError("bytes made of something")
    return b""


def _set(items: Any = ()) -> set[Any]:
    return set(_keys(items))


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_keys(items))


def _keys(items: Any) -> list[Any]:
    # How protocols below 4 write sets: of a list.
    if type(items) not in (list, tuple):
        raise ValueError("a set that is not made of a list")
    return [check_key(item) for item in items]
