"""How the contents of Python's and NumPy's own objects are kept: containers, arrays, generators, functions' cells."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

ITEM_BYTES = 16  # of an entry in a container

Content = Any
Child = tuple[Any, str]


class Keeper(NamedTuple):
    """How the contents of one kind of objects are kept.

    Attributes:
        save: its contents, to be kept; None when it has none.
        restore: puts the contents back into the object.
        children: objects in it that may have contents, each with its name.
        size: of an object's contents [bytes], before they are copied.
    """

    save: Callable[[Any], Content]
    restore: Callable[[Any, Content], None]
    children: Callable[[Any], list[Child]]
    size: Callable[[Any], int]


def _restore_mapping(value: Any, content: Mapping[Any, Any]) -> None:
    value.clear()
    value.update(content)


def _restore_items(value: Any, content: Any) -> None:
    value.clear()
    value.extend(content)


def _restore_slice(value: Any, content: Any) -> None:
    value[:] = content


def _items(value: Any) -> list[Child]:
    return [(item, f"[{index}]") for index, item in enumerate(value)]


def _mapped(value: Any) -> list[Child]:
    return [(item, f"[{key!r:.40}]") for key, item in value.items()]


def _nothing(_value: Any) -> list[Child]:
    return []


def _save_array(value: Any) -> Any:
    return value.copy() if value.flags.writeable else None


def _restore_array(value: Any, content: Any) -> None:
    value[...] = content


def _array_items(value: Any) -> list[Child]:
    return _items(value.ravel().tolist()) if value.dtype.hasobject else []


def _array_size(value: Any) -> int:
    return value.nbytes if value.flags.writeable else 0


def _set_bit_state(value: Any, content: Any) -> None:
    value.state = content


def _set_python_state(value: Any, content: Any) -> None:
    value.setstate(content)


def _set_legacy_state(value: Any, content: Any) -> None:
    value.set_state(content)


def _length(value: Any) -> int:
    return ITEM_BYTES * len(value)


def _number_state(_value: Any) -> int:
    return 128


def _no_content(_value: Any) -> None:
    return None


def _no_restore(_value: Any, _content: Any) -> None:
    """Of what has no contents of its own."""


def _save_cell(value: Any) -> Any:
    try:
        return (value.cell_contents,)
    except ValueError:  # empty yet
        return None


def _restore_cell(value: Any, content: Any) -> None:
    value.cell_contents = content[0]


def _cell_child(value: Any) -> list[Child]:
    return [(part, "") for part in _save_cell(value) or ()]


def _closure(value: Any) -> list[Child]:
    names = value.__code__.co_freevars
    return [(cell, f".{name}") for name, cell in zip(names, value.__closure__ or (), strict=True)]


def _save_space(value: Any) -> Any:
    return (vars(value).get("_np_random"),)


def _restore_space(value: Any, content: Any) -> None:
    value._np_random = content[0]


def _space_parts(value: Any) -> list[Child]:
    """Its generator, and the spaces in it; their bounds do not change."""
    parts = vars(value)
    inner = parts.get("spaces", ())
    inner = inner.values() if isinstance(inner, Mapping) else inner
    more = [part for part in parts.values() if isinstance(part, gymnasium.Space)]
    return [(parts.get("_np_random"), ".np_random"), *((part, ".spaces") for part in (*inner, *more))]


_DICT = Keeper(dict, _restore_mapping, _mapped, _length)
_IMMUTABLE = Keeper(_no_content, _no_restore, _items, _length)
KEEPERS: dict[type, Keeper] = {
    dict: _DICT,
    list: Keeper(list, _restore_slice, _items, _length),
    set: Keeper(set, _restore_mapping, lambda value: _items(list(value)), _length),
    deque: Keeper(list, _restore_items, _items, _length),
    bytearray: Keeper(bytes, _restore_slice, _nothing, len),
    tuple: _IMMUTABLE,
    frozenset: Keeper(_no_content, _no_restore, lambda value: _items(list(value)), _length),
    np.ndarray: Keeper(_save_array, _restore_array, _array_items, _array_size),
    np.random.BitGenerator: Keeper(lambda value: value.state, _set_bit_state, _nothing, _number_state),
    np.random.Generator: Keeper(
        _no_content, _no_restore, lambda value: [(value.bit_generator, ".bit_generator")], _number_state
    ),
    np.random.RandomState: Keeper(lambda value: value.get_state(), _set_legacy_state, _nothing, lambda _value: 2500),
    random.Random: Keeper(lambda value: value.getstate(), _set_python_state, _nothing, lambda _value: 20_000),
    gymnasium.Space: Keeper(_save_space, _restore_space, _space_parts, _number_state),
    types.FunctionType: Keeper(_no_content, _no_restore, _closure, _number_state),
    types.MethodType: Keeper(
        _no_content,
        _no_restore,
        lambda value: [(value.__self__, ".__self__"), (value.__func__, ".__func__")],
        _number_state,
    ),
    types.CellType: Keeper(_save_cell, _restore_cell, _cell_child, _number_state),
    functools.partial: Keeper(
        _no_content,
        _no_restore,
        lambda value: [(value.func, ".func"), (value.args, ".args"), (value.keywords, ".keywords")],
        _number_state,
    ),
}
