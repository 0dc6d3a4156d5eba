"""Pickles that name classes and functions which only the peer has: nothing is imported to write them.

`pickle.Pickler` looks a class up before it writes its name. What is written here says the name; the peer looks it up.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROTOCOL = 4  # what every Python from 3.8 on reads and, until 3.13, writes


@dataclass(frozen=True)
class Name:
    """A class or function that the peer has.

    Attributes:
        module: its module's name there.
        name: its own.
    """

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Instance:
    """An instance, made at the peer without a call of its constructor.

    Attributes:
        kind: its class.
        fields: its attributes.
    """

    kind: Name
    fields: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Call:
    """What a function of the peer's gives for these arguments.

    Attributes:
        function: to call.
        arguments: to call it with.
    """

    function: Name
    arguments: tuple[Any, ...]


def foreign_dumps(value: Any) -> bytes:
    """The pickle of a value that may hold `Name`, `Instance` and `Call` anywhere in it.

    One that occurs twice is made once at the peer.
    """
    file = io.BytesIO()
    _Writer(file, PROTOCOL).dump(value)
    return file.getvalue()


_Pickler: Any = pickle._Pickler  # the one in Python: the one in C offers no place to write a name unseen


class _Writer(_Pickler):  # type: ignore[misc]  # typeshed leaves out what its subclasses call
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        parts = _PARTS.get(type(obj))
        if parts is None:
            super().save(obj, save_persistent_id)
        elif (known := self.memo.get(id(obj))) is not None:
            self.write(self.get(known[0]))
        else:
            parts(self, obj)
            self.memoize(obj)

    def save_name(self, name: Name) -> None:
        self.save(name.module)
        self.save(name.name)
        self.write(pickle.STACK_GLOBAL)

    def save_instance(self, instance: Instance) -> None:
        self.save(instance.kind)
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.save(dict(instance.fields))
        self.write(pickle.BUILD)

    def save_call(self, call: Call) -> None:
        self.save(call.function)
        self.save(call.arguments)
        self.write(pickle.REDUCE)


_PARTS: dict[type, Any] = {Name: _Writer.save_name, Instance: _Writer.save_instance, Call: _Writer.save_call}
