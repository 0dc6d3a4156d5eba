"""Pickles of other systems' protocols read as data: nothing that they name is imported, and only a table's entries run.

Not `pickle.Unpickler` with a filter on names: that one still calls whatever lies on its stack, sets the state of
whatever was made, and takes memory as it is told. This machine knows the opcodes that picklers of Python 3 write
(protocols 0 to 5) and these values: None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset,
numpy's arrays, scalars and dtypes of numbers (`restricted_arrays`), and what the caller's own table makes. Memory stays
within a few times the pickle's own length and what `PickleLimits` allows for its objects.

Refused, each with its reason: every other name, persistent ids, the extension registry, out-of-band buffers, opcodes of
Python 2, structures that contain themselves, keys that are neither text nor a plain number, values that are changed
after they were used, and whatever is longer, deeper or more numerous than the limits.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from remote_env.errors import MessageTooBig, ProtocolError
from remote_env.policy.dialects.restricted_arrays import ArrayBuilder, Named, Pending, check_key

LONG_TEXT_BYTES = 1 << 20
# What grows in memory when a line of protocol 0 is read: code points beyond Latin-1.
_WIDE = re.compile(rb"\\u(?!00)|\\U")


@dataclass(frozen=True)
class PickleLimits:
    """What one pickle may ask for.

    Attributes:
        max_bytes: its own length [bytes].
        max_opcodes: how many instructions it has; each makes at most one object.
        max_nodes: how many values are met when everything in it is visited, a shared one each time that it is met.
        max_depth: how deep containers may nest.
    """

    max_bytes: int = 256 << 20
    max_opcodes: int = 200_000
    max_nodes: int = 400_000
    max_depth: int = 24


DEFAULT_LIMITS = PickleLimits()


@dataclass(frozen=True)
class Record:
    """A class whose instances are made from their fields alone, never by the class that the peer has.

    Attributes:
        build: called with the module that the peer names the class by, and the fields (str -> value, all of them read
            and of admitted kinds); gives the value. What it raises refuses the pickle.
    """

    build: Callable[[str, Mapping[str, Any]], Any]


Allowed = Mapping[tuple["str | None", str], "Callable[..., Any] | Record"]


def restricted_loads(
    data: bytes | bytearray | memoryview,
    *,
    allowed: Allowed,
    limits: PickleLimits = DEFAULT_LIMITS,
    object_arrays: bool = False,
) -> Any:
    """The value that a pickle describes; see the module for what it may describe.

    Args:
        data: the whole pickle, of any protocol.
        allowed: (module, name) -> what stands for it: a `Record`, or a function that is called with the arguments that
            the pickle gives, which are of admitted kinds; what it raises refuses the pickle. A module of None is any.
        limits: what it may ask for.
        object_arrays: whether numpy arrays of objects may occur; then of dicts and of what `allowed` makes only.

    Raises:
        MessageTooBig: it is longer than `limits.max_bytes`.
        ProtocolError: it is no pickle, or not of what is admitted; says what was met. Nothing that it names ran.
    """
    view = memoryview(data).cast("B")
    if len(view) > limits.max_bytes:
        raise MessageTooBig(f"a pickle of {len(view)} bytes; at most {limits.max_bytes} are taken")
    machine = _Machine(view, allowed, limits, object_arrays=object_arrays)
    try:
        return machine.run()
    except ProtocolError:
        raise
    except ValueError as error:
        raise refusal(str(error)) from error
    except Exception as error:  # whatever a hostile value makes a builder raise, it is the pickle's fault
        raise refusal(f"{type(error).__name__}: {error}") from error


def refusal(why: str) -> ProtocolError:
    """The error that a pickle is refused with."""
    return ProtocolError(f"refused a pickle: {why[:600]}; only plain data that this dialect needs is taken")


class _Mark:
    """Where a group of values begins on the stack."""


_MARK = _Mark()
_U1, _U2, _U4, _U8, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<I", "<Q", "<i", ">d"))
_CONTAINERS = (list, tuple, dict, set, frozenset)


class _Machine:
    """One run over one pickle: a stack, a memo, and the budget of what may still be made."""

    def __init__(self, data: memoryview, allowed: Allowed, limits: PickleLimits, *, object_arrays: bool) -> None:
        self._data, self._at = data, 0
        self._allowed, self._limits = allowed, limits
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._nodes_left = limits.max_nodes
        self._sealed: dict[int, Any] = {}  # containers that something was made of, kept so that their ids stay theirs
        arrays = ArrayBuilder(len(data), object_arrays=object_arrays, check=self._check)
        self._names: dict[tuple[str, str], Named] = arrays.names()

    def run(self) -> Any:
        data, size, stop = self._data, len(self._data), pickle.STOP[0]
        for _ in range(self._limits.max_opcodes):
            if self._at >= size:
                raise refusal(f"it ends at byte {size} without its end")
            code = data[self._at]
            self._at += 1
            if code == stop:
                return self._finish()
            if (handler := _HANDLERS.get(code)) is None:
                raise refusal(f"opcode {bytes([code])!r} at byte {self._at - 1} is none of those that are read here")
            handler(self)
        raise refusal(f"it has more than {self._limits.max_opcodes} instructions")

    def _finish(self) -> Any:
        value = self._pop()
        if self._stack or self._at != len(self._data):
            raise refusal("something is left over at its end")
        self._check(value)
        return value

    # Reading.

    def _take(self, size: int) -> memoryview:
        start, end = self._at, self._at + size
        if end > len(self._data):
            raise refusal(f"it ends at byte {len(self._data)}, within {size} bytes announced at byte {start}")
        self._at = end
        return self._data[start:end]

    def _number(self, layout: struct.Struct) -> int:
        start = self._at
        self._at = start + layout.size
        if self._at > len(self._data):
            raise refusal(f"it ends at byte {len(self._data)}, within a number")
        number: int = layout.unpack_from(self._data, start)[0]
        return number

    def _counted(self, layout: struct.Struct) -> memoryview:
        return self._take(self._number(layout))

    def _line(self) -> bytes:
        # A line may hold an array's bytes as text (protocol 0), so that its length is the pickle's only bound.
        step = 4096
        parts: list[bytes] = []
        while True:
            piece = bytes(self._data[self._at : self._at + step])
            if (end := piece.find(b"\n")) >= 0:
                self._at += end + 1
                return b"".join([*parts, piece[:end]])
            if len(piece) < step:
                raise refusal("it ends within a line")
            parts.append(piece)
            self._at += step

    def _short_line(self) -> bytes:
        line = self._line()
        if len(line) > 300:
            raise refusal(f"a name or number of {len(line)} characters")
        return line

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise refusal("it takes a value where there is none")
        return self._stack.pop()

    def _pop_group(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                group = stack[index + 1 :]
                del stack[index:]
                return group
        raise refusal("it closes a group that was never opened")

    def _top(self, kind: type) -> Any:
        value = self._stack[-1] if self._stack else _MARK
        if type(value) is not kind:
            raise refusal(f"it fills a {type(value).__name__} as if that were a {kind.__name__}")
        if id(value) in self._sealed:
            raise refusal("it changes a value that was used already")
        return value

    def remember(self, index: int) -> None:
        if not 0 <= index < 1 << 32:  # no pickler's; and of larger ones many share a hash
            raise refusal("it stores a value under a number that no pickler gives")
        value = self._pop()
        if type(value) is Pending:
            value.stored_at.append(index)
        self._memo[index] = value
        self._push(value)

    def remember_next(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise refusal(f"it recalls a value, number {index}, that it never stored")
        self._push(self._memo[index])

    # Values.

    def push_text(self, raw: memoryview) -> None:
        if len(raw) > LONG_TEXT_BYTES and np.frombuffer(raw, np.uint8).max() > 0xC3:
            raise refusal(f"a text of {len(raw)} bytes, which may grow fourfold in memory")
        self._push(str(raw, "utf-8"))

    def push_text_line(self) -> None:
        line = self._line()
        if len(line) > LONG_TEXT_BYTES and _WIDE.search(line):
            raise refusal(f"a text of {len(line)} bytes, which may grow fourfold in memory")
        self._push(str(line, "raw-unicode-escape"))

    def push_integer_line(self) -> None:
        text = self._short_line()
        self._push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))

    def push_float_line(self) -> None:
        self._push(float(self._short_line()))

    def push_long(self, raw: memoryview) -> None:
        if len(raw) > 255:
            raise refusal(f"a whole number of {len(raw)} bytes")
        self._push(int.from_bytes(raw, "little", signed=True))

    def push_long_line(self) -> None:
        self._push(int(self._short_line().removesuffix(b"L")))

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def extend(self) -> None:
        group = self._pop_group()
        self._top(list).extend(group)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[check_key(key)] = value

    def set_items(self) -> None:
        pairs = self._pairs(self._pop_group())
        self._top(dict).update(pairs)

    def add_items(self) -> None:
        group = [check_key(value) for value in self._pop_group()]
        self._top(set).update(group)

    def _pairs(self, group: list[Any]) -> dict[Any, Any]:
        if len(group) % 2:
            raise refusal("a key without a value")
        return {check_key(key): value for key, value in zip(group[::2], group[1::2], strict=True)}

    def push_dict(self) -> None:
        self._push(self._pairs(self._pop_group()))

    def push_frozenset(self) -> None:
        self._push(frozenset(check_key(value) for value in self._pop_group()))

    def push_tuple_of(self, size: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(size)])))

    # Names and what is made by them.

    def push_global(self) -> None:
        module, name = self._short_line(), self._short_line()
        self._push(self._find(str(module, "utf-8"), str(name, "utf-8")))

    def push_stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise refusal("a name that is no text")
        self._push(self._find(module, name))

    def _find(self, module: str, name: str) -> Named:
        if (known := self._names.get((module, name))) is not None:
            return known
        entry = self._allowed.get((module, name)) or self._allowed.get((None, name))
        if entry is None:
            raise refusal(f"it names {module[:200]!r} {name[:200]!r}, which is not admitted")
        return Named(f"{module}.{name}", None if isinstance(entry, Record) else entry, module=module, record=entry)

    def reduce(self) -> None:
        arguments, named = self._pop(), self._pop()
        if type(arguments) is not tuple or type(named) is not Named:
            raise refusal("it calls something that is no admitted name")
        if named.call is None:
            raise refusal(f"it calls {named.name[:200]}, which only names a type here")
        if not named.takes_names:
            self._check(arguments)
        self._push(named.call(*arguments))

    def new_object(self) -> None:
        self._new_object(self._pop(), {})

    def new_object_with_keywords(self) -> None:
        keywords = self._pop()
        self._new_object(self._pop(), keywords)

    def _new_object(self, arguments: Any, keywords: Any) -> None:
        named = self._pop()
        if type(named) is not Named or not isinstance(named.record, Record) or arguments != () or keywords != {}:
            raise refusal("it makes an instance of something that is no admitted record, or with arguments")
        self._push(named.pending())

    def build(self) -> None:
        state = self._pop()
        pending = self._pop()
        if type(pending) is not Pending:
            raise refusal(f"it sets the state of a {type(pending).__name__}")
        self._check(state)
        value = pending.build(state)
        for index in pending.stored_at:
            if self._memo[index] is pending:
                self._memo[index] = value
        self._push(value)

    # Checking what was made.

    def _check(self, value: Any, *, within_objects: bool = False) -> None:
        """Refuse a value with something unfinished, too deep or too large in it; seal its containers."""
        layer = [value]
        self._count(1)
        for _ in range(self._limits.max_depth + 1):
            layer = [inner for outer in layer for inner in self._open(outer, within_objects=within_objects)]
            if not layer:
                return
        raise refusal(f"it nests deeper than {self._limits.max_depth} levels, or contains itself")

    def _open(self, value: Any, *, within_objects: bool) -> Iterable[Any]:
        kind = type(value)
        if kind in _CONTAINERS:
            self._count(len(value))
            self._sealed[id(value)] = value
            inner: Iterable[Any] = value.values() if kind is dict else value
            return inner
        if kind in (Named, Pending, _Mark):
            raise refusal("it holds a bare name, or something that it never finished")
        if within_objects and kind is np.ndarray and value.dtype.hasobject:
            raise refusal("an array of objects within an array of objects")
        return ()

    def _count(self, nodes: int) -> None:
        self._nodes_left -= nodes
        if self._nodes_left < 0:
            raise refusal(f"it holds more than {self._limits.max_nodes} values")


def _opcodes() -> dict[int, Callable[[_Machine], None]]:
    """Opcode -> what it does."""
    push, number = _Machine._push, _Machine._number
    counted, push_text, push_long = _Machine._counted, _Machine.push_text, _Machine.push_long
    table: dict[bytes, Callable[[_Machine], None]] = {
        pickle.PROTO: _read_protocol,
        pickle.FRAME: _read_frame,
        pickle.MARK: lambda machine: push(machine, _MARK),
        pickle.NONE: lambda machine: push(machine, None),
        pickle.NEWTRUE: lambda machine: push(machine, True),
        pickle.NEWFALSE: lambda machine: push(machine, False),
        pickle.INT: _Machine.push_integer_line,
        pickle.LONG: _Machine.push_long_line,
        pickle.FLOAT: _Machine.push_float_line,
        pickle.UNICODE: _Machine.push_text_line,
        pickle.BININT: lambda machine: push(machine, number(machine, _I4)),
        pickle.BININT1: lambda machine: push(machine, number(machine, _U1)),
        pickle.BININT2: lambda machine: push(machine, number(machine, _U2)),
        pickle.LONG1: lambda machine: push_long(machine, counted(machine, _U1)),
        pickle.LONG4: lambda machine: push_long(machine, counted(machine, _U4)),
        pickle.BINFLOAT: lambda machine: push(machine, number(machine, _F8)),
        pickle.SHORT_BINUNICODE: lambda machine: push_text(machine, counted(machine, _U1)),
        pickle.BINUNICODE: lambda machine: push_text(machine, counted(machine, _U4)),
        pickle.BINUNICODE8: lambda machine: push_text(machine, counted(machine, _U8)),
        pickle.SHORT_BINBYTES: lambda machine: push(machine, bytes(counted(machine, _U1))),
        pickle.BINBYTES: lambda machine: push(machine, bytes(counted(machine, _U4))),
        pickle.BINBYTES8: lambda machine: push(machine, bytes(counted(machine, _U8))),
        pickle.BYTEARRAY8: lambda machine: push(machine, bytearray(counted(machine, _U8))),
        pickle.EMPTY_LIST: lambda machine: push(machine, []),
        pickle.LIST: lambda machine: push(machine, machine._pop_group()),
        pickle.APPEND: _Machine.append,
        pickle.APPENDS: _Machine.extend,
        pickle.EMPTY_TUPLE: lambda machine: push(machine, ()),
        pickle.TUPLE: lambda machine: push(machine, tuple(machine._pop_group())),
        pickle.TUPLE1: lambda machine: machine.push_tuple_of(1),
        pickle.TUPLE2: lambda machine: machine.push_tuple_of(2),
        pickle.TUPLE3: lambda machine: machine.push_tuple_of(3),
        pickle.EMPTY_DICT: lambda machine: push(machine, {}),
        pickle.DICT: _Machine.push_dict,
        pickle.SETITEM: _Machine.set_item,
        pickle.SETITEMS: _Machine.set_items,
        pickle.EMPTY_SET: lambda machine: push(machine, set()),
        pickle.ADDITEMS: _Machine.add_items,
        pickle.FROZENSET: _Machine.push_frozenset,
        pickle.GET: lambda machine: machine.recall(int(machine._short_line())),
        pickle.BINGET: lambda machine: machine.recall(number(machine, _U1)),
        pickle.LONG_BINGET: lambda machine: machine.recall(number(machine, _U4)),
        pickle.PUT: lambda machine: machine.remember(int(machine._short_line())),
        pickle.BINPUT: lambda machine: machine.remember(number(machine, _U1)),
        pickle.LONG_BINPUT: lambda machine: machine.remember(number(machine, _U4)),
        pickle.MEMOIZE: _Machine.remember_next,
        pickle.GLOBAL: _Machine.push_global,
        pickle.STACK_GLOBAL: _Machine.push_stack_global,
        pickle.REDUCE: _Machine.reduce,
        pickle.NEWOBJ: _Machine.new_object,
        pickle.NEWOBJ_EX: _Machine.new_object_with_keywords,
        pickle.BUILD: _Machine.build,
    }
    return {code[0]: handler for code, handler in table.items()}


def _read_protocol(machine: _Machine) -> None:
    if (protocol := machine._number(_U1)) > 5:
        raise refusal(f"protocol {protocol}; 0 to 5 are read")


def _read_frame(machine: _Machine) -> None:
    if (size := machine._number(_U8)) > len(machine._data) - machine._at:
        raise refusal(f"a frame of {size} bytes, which is more than there is")


_HANDLERS = _opcodes()
