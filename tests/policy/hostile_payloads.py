"""Pickles that would leave a mark if anything in them ran, and pickles that would take all memory or time."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EXTENSION = 0xF0  # os.system, once a test has registered it


class Reduced:
    """Pickles as whatever is asked for."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


class MetaObs:
    """By name what is admitted; its fields are not."""


class MetaAction:
    """Likewise."""


def record(kind: type, **fields: Any) -> Any:
    made = kind()
    vars(made).update(fields)
    return made


def touch(mark: Path) -> Reduced:
    """Runs a command when it is loaded."""
    return Reduced(os.system, (f"touch {mark}",))


def code(mark: Path) -> bytes:
    return text(f"open({str(mark)!r}, 'w').close()")


def command(mark: Path) -> bytes:
    return text(f"touch {mark}")


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def blob(value: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def group(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + group(*arguments) + pickle.REDUCE


def whole(*parts: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + b"".join(parts) + pickle.STOP


def objects(*items: Any) -> Any:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


# Name -> the pickle for a mark; `pickle.loads` leaves it.
RUNNING: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda mark: pickle.dumps(touch(mark)),
    "os.system, protocol 0": lambda mark: pickle.dumps(touch(mark), 0),
    "os.system, protocol 2": lambda mark: pickle.dumps(touch(mark), 2),
    "by hand, protocol 0": lambda mark: f"cos\nsystem\n(Vtouch {mark}\ntR.".encode(),
    "opcode INST": lambda mark: f"(Vtouch {mark}\nios\nsystem\n.".encode(),
    "opcode OBJ": lambda mark: f"(cos\nsystem\nVtouch {mark}\no.".encode(),
    "extension registry": lambda mark: whole(pickle.EXT1 + bytes([EXTENSION]), group(command(mark)), pickle.REDUCE),
    "subprocess": lambda mark: pickle.dumps(Reduced(subprocess.call, (["touch", str(mark)],))),
    "eval": lambda mark: whole(call("builtins", "eval", code(mark))),
    "exec": lambda mark: whole(call("builtins", "exec", code(mark))),
    "runpy": lambda mark: whole(call("runpy", "_run_code", code(mark), pickle.EMPTY_DICT)),
    "eval by way of numpy": lambda mark: whole(call("numpy.ma.core", "builtins.eval", code(mark))),
    "exec by way of numpy": lambda mark: whole(
        call("numpy.testing._private.utils", "runstring", code(mark), pickle.EMPTY_DICT)
    ),
    "a dotted name": lambda mark: whole(call("shutil", "os.system", command(mark))),
    "getattr": lambda mark: whole(
        call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system")),
        group(command(mark)),
        pickle.REDUCE,
    ),
    "__setstate__ of a partial": lambda mark: whole(
        call("functools", "partial", named("builtins", "int")),
        group(named("os", "system"), group(command(mark)), pickle.EMPTY_DICT, pickle.EMPTY_DICT),
        pickle.BUILD,
        pickle.EMPTY_TUPLE,
        pickle.REDUCE,
    ),
    "a reduced item": lambda mark: pickle.dumps([1, (2, {"a": [touch(mark)]})]),
    "a reduced key": lambda mark: whole(
        pickle.EMPTY_DICT, call("os", "system", command(mark)), text("x"), pickle.SETITEM
    ),
    "a pickle within": lambda mark: whole(call("_pickle", "loads", blob(pickle.dumps(touch(mark))))),
    "a field of MetaObs": lambda mark: pickle.dumps(record(MetaObs, state=touch(mark))),
    "a field of MetaAction": lambda mark: pickle.dumps([record(MetaAction, action=touch(mark))]),
    "an array of objects": lambda mark: pickle.dumps(objects(touch(mark))),
    "nested arrays of objects": lambda mark: pickle.dumps([objects({"action": objects(touch(mark))})]),
    "a field's array of objects": lambda mark: pickle.dumps(record(MetaObs, state=objects(touch(mark)))),
    "a scalar of objects": lambda mark: whole(
        call(
            "numpy.core.multiarray",
            "scalar",
            *(call("numpy", "dtype", text("O8")), call("os", "system", command(mark))),
        )
    ),
    "before an error": lambda mark: whole(call("os", "system", command(mark)), pickle.POP, b"N\xff"),
    "before an honest value": lambda mark: whole(call("os", "system", command(mark)), pickle.POP, pickle.EMPTY_LIST),
}


class _ByPersistentId(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return "an id" if value == "here" else None


def _persistent() -> bytes:
    file = io.BytesIO()
    _ByPersistentId(file, 4).dump(["here"])
    return file.getvalue()


def array_of(shape: bytes, dtype: str = "f8", data: bytes = b"", order: str = "|") -> bytes:
    """An array by its state, as hand-made as is needed."""
    return whole(
        call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), group(number(0)), blob(b"b")),
        group(number(1), shape, dtype_of(dtype, order), pickle.NEWFALSE, blob(data)),
        pickle.BUILD,
    )


def dtype_of(name: str, order: str = "|") -> bytes:
    nothing = pickle.NONE * 3 + number(-1) + number(-1) + number(0)
    return (
        call("numpy", "dtype", text(name), pickle.NEWFALSE, pickle.NEWTRUE)
        + group(number(3), text(order), nothing)
        + b"b"
    )


def _nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return whole(opening * depth, closing * (depth - 1))


def _doubled(depth: int, width: int) -> bytes:
    """A list of `width` times the same list of `width` times the same list …"""
    parts = [pickle.EMPTY_LIST + pickle.MEMOIZE]
    for index in range(depth):
        recalled = (pickle.BINGET + bytes([index])) * width
        parts += [pickle.EMPTY_LIST, pickle.MEMOIZE, pickle.MARK, recalled, pickle.APPENDS]
    return whole(*parts, pickle.TUPLE2 * depth)


def _recalled_arrays(copies: int) -> bytes:
    data = blob(bytes(1 << 20)) + pickle.MEMOIZE
    call_one = (
        named("numpy.core.numeric", "_frombuffer")
        + group(pickle.BINGET + b"\x00", dtype_of("u1"), group(number(1 << 20)), text("C"))
        + pickle.REDUCE
    )
    return whole(data, pickle.MARK, call_one * copies, pickle.LIST, pickle.TUPLE2)


# Name -> a pickle that is refused, though it would run nothing: no honest peer sends it, or it asks for too much.
REFUSED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no pickle": lambda: b"GET / HTTP/1.1\r\n\r\n",
    "protocol 6": lambda: b"\x80\x06N.",
    "an end without a value": lambda: b"\x80\x04.",
    "values left over": lambda: b"\x80\x04NN.",
    "bytes left over": lambda: b"\x80\x04N.N.",
    "a mark at the end": lambda: b"\x80\x04N(.",
    "a persistent id": _persistent,
    "a buffer out of band": lambda: pickle.dumps(pickle.PickleBuffer(b"x" * 9), 5, buffer_callback=lambda _: None),
    "text of Python 2": lambda: b"S'abc'\n.",
    "a bare name": lambda: whole(named("numpy", "ndarray")),
    "a bare name within": lambda: whole(pickle.EMPTY_LIST, named("numpy", "ndarray"), pickle.APPEND),
    "an unknown class": lambda: whole(named("os", "stat_result"), pickle.EMPTY_TUPLE, pickle.NEWOBJ),
    "a class made by copyreg": lambda: whole(
        call("copyreg", "_reconstructor", named("subprocess", "Popen"), named("builtins", "object"), pickle.NONE)
    ),
    "numpy's class made by copyreg": lambda: whole(
        call("copyreg", "_reconstructor", named("numpy", "ndarray"), named("builtins", "object"), pickle.NONE)
    ),
    "a class with arguments": lambda: whole(named("x", "MetaObs"), group(number(1)), pickle.NEWOBJ),
    "a class without an end": lambda: whole(named("x", "MetaObs"), pickle.EMPTY_TUPLE, pickle.NEWOBJ),
    "a class that is called": lambda: whole(call("x", "MetaObs")),
    "the state of a list": lambda: whole(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.BUILD),
    "a list that contains itself": lambda: pickle.dumps(_selfish()),
    "a dict that contains itself": lambda: pickle.dumps(_selfish_dict()),
    "a value changed after its use": lambda: whole(
        named("x", "MetaObs") + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        pickle.EMPTY_DICT + text("raw_lang") + pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.SETITEM + pickle.BUILD,
        pickle.BINGET + b"\x00" + number(1) + pickle.APPEND + pickle.TUPLE2,
    ),
    "a complex number": lambda: pickle.dumps(1j),
    "an array of text": lambda: pickle.dumps(np.array(["abc"])),
    "an array of dates": lambda: pickle.dumps(np.zeros(2, "datetime64[s]")),
    "an array of records": lambda: pickle.dumps(np.zeros(2, [("a", "f4")])),
    "an array of complex numbers": lambda: pickle.dumps(np.zeros(2, complex)),
    "an array of lists": lambda: pickle.dumps([objects([1], [2])]),
    "an array of arrays": lambda: pickle.dumps([objects(np.zeros(2), np.zeros(3))]),
    "a subclass of array": lambda: pickle.dumps(np.ma.masked_array([1, 2], [True, False])),
    "a dtype of a gigabyte": lambda: array_of(group(number(0)), "V1073741824"),
    "a dtype of nothing": lambda: array_of(group(number(1 << 40)), "S0"),
    "an enormous array": lambda: array_of(group(number(1 << 62))),
    "an array of sizes that overflow": lambda: array_of(group(number(1 << 32), number(1 << 32)), "u1"),
    "an array of negative sizes": lambda: array_of(group(number(-1), number(-8)), "u1", bytes(8)),
    "an array of enormous sizes and none": lambda: array_of(group(number(1 << 40), number(0))),
    "an array of too many dimensions": lambda: array_of(group(number(1) * 60), "u1", b"x"),
    "an array with too few bytes": lambda: array_of(group(number(3)), "f8", bytes(16)),
    "an array that is called": lambda: whole(call("numpy", "ndarray", group(number(1 << 40)))),
    "an array reconstructed large": lambda: whole(
        call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), group(number(1 << 40)), blob(b"b"))
    ),
    "one array's bytes again and again": lambda: _recalled_arrays(200),
    "bytes of an announced size": lambda: whole(call("builtins", "bytes", number(1 << 40))),
    "a bytearray of an announced size": lambda: whole(call("builtins", "bytearray", number(1 << 40))),
    "BINBYTES8 without end": lambda: b"\x80\x04" + pickle.BINBYTES8 + struct.pack("<Q", 1 << 62),
    "BYTEARRAY8 without end": lambda: b"\x80\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40),
    "BINUNICODE8 without end": lambda: b"\x80\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 1 << 62),
    "LONG4 without end": lambda: b"\x80\x04" + pickle.LONG4 + struct.pack("<i", (1 << 31) - 1),
    "LONG4 below nothing": lambda: b"\x80\x04" + pickle.LONG4 + struct.pack("<i", -1) + b".",
    "a frame without end": lambda: b"\x80\x04" + pickle.FRAME + struct.pack("<Q", 1 << 60) + b"N.",
    "a whole number of a million digits": lambda: b"I" + b"1" * 1_000_000 + b"\n.",
    "a long of a million digits": lambda: b"L" + b"1" * 1_000_000 + b"L\n.",
    "a text that grows fourfold": lambda: whole(text("\N{GRINNING FACE}" + "a" * (2 << 20))),
    "a line that grows fourfold": lambda: b"V\\U0001f600" + b"a" * (2 << 20) + b"\n.",
    "lists of lists of lists": lambda: _nested(pickle.EMPTY_LIST, pickle.APPEND, 9_000),
    "tuples of tuples of tuples": lambda: whole(pickle.NONE, pickle.TUPLE1 * 9_000),
    "a key of tuples of tuples": lambda: whole(
        pickle.EMPTY_DICT, pickle.NONE, pickle.TUPLE1 * 9_000, pickle.NONE, pickle.SETITEM
    ),
    "keys that share a hash": lambda: pickle.dumps({i * ((1 << 61) - 1): None for i in range(3_000)}),
    "twos of twos of twos": lambda: _doubled(200, 2),
    "hundreds of hundreds of hundreds": lambda: _doubled(10, 300),
    "too many instructions": lambda: whole(
        pickle.NONE, (pickle.MEMOIZE + pickle.BINGET + b"\x00" + pickle.TUPLE2) * 9_000
    ),
    "a value that was never stored": lambda: whole(pickle.LONG_BINGET + struct.pack("<I", 0xFFFFFFFF)),
    "a name that is no text": lambda: whole(number(1), number(2), pickle.STACK_GLOBAL),
}


def _selfish() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def _selfish_dict() -> dict[str, Any]:
    items: dict[str, Any] = {}
    items["self"] = [items]
    return items
