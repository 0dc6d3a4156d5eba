"""Gymnasium spaces to plain values and back (docs/protocol.md, "Values: spaces"). Pure.

A plain value is what the codec carries: dicts, lists, numbers, strings and arrays. The space that comes back
equals the one that went, has its dtype, and, seeded alike, gives the same samples; the state of its random
generator is left behind. Works with every Gymnasium from 0.29.1 on; what an older one lacks is `Unsupported`.
"""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from remote_env.errors import ProtocolError, Unsupported

Plain = dict[str, Any]

MAX_BOX_BYTES = 1 << 30  # of all bounds of one space together; a 480×640×3 uint8 Box takes 3.7 MB
MAX_DEPTH = 24  # spaces inside each other; each takes two levels of the codec's 64

_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_BOX_DTYPES = _INTEGERS | {"bool", "float16", "float32", "float64"}
# What a subclass may define and still mean what its base means: the constructor, and what every class has.
_HARMLESS = vars(type("Empty", (), {"__annotations__": {}})).keys() | {
    "__init__",
    "__repr__",
    "__str__",
    "__slots__",
    "__parameters__",
    "__orig_bases__",
    "__static_attributes__",
    "__firstlineno__",
    "__annotate_func__",
    "__annotations_cache__",
    "__type_params__",
    "__qualname__",
}


def space_to_plain(space: Space[Any]) -> Plain:
    """Return the plain value that describes `space`.

    Args:
        space: any of Gymnasium's spaces, nested; or of a subclass that changes no more than the constructor.

    Raises:
        Unsupported: a space inside is of another kind; the message names it and its key path.
    """
    return _write(space, "space", 1)


def space_from_plain(plain: Any) -> Space[Any]:
    """Return the space that `plain` describes: the exact opposite of `space_to_plain`.

    Raises:
        ProtocolError: `plain` describes no space, or one whose bounds would take more than 1 GiB.
        Unsupported: this end's Gymnasium lacks a space or an option that the other end's has.
    """
    return _Reader().read(plain, 1)


def space_size(space: Any) -> int:
    """About how many bytes one of its values takes; 0 for what has no size of its own, such as texts."""
    if isinstance(space, spaces.Dict):
        return sum(map(space_size, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return sum(map(space_size, space.spaces))
    return 0 if space.shape is None or space.dtype is None else int(np.prod(space.shape)) * space.dtype.itemsize


def _write(space: Any, path: str, depth: int) -> Plain:
    if depth > MAX_DEPTH:
        raise Unsupported(f"{path} is nested deeper than {MAX_DEPTH} spaces; make it flatter")
    name = _known_name(space, path)
    return {"type": name, **_WRITERS[name](space, path, depth + 1)}


def _known_name(space: Any, path: str) -> str:
    """The name of the Gymnasium space that `space` is, or means exactly the same as."""
    for kind in type(space).__mro__:
        name: str = kind.__name__
        if name in _WRITERS and getattr(spaces, name, None) is kind:
            return name
        changed = sorted(vars(kind).keys() - _HARMLESS)
        if changed:
            break
    else:
        changed = []
    raise Unsupported(
        f"{path} is a {type(space).__module__}.{type(space).__qualname__}, which the other end cannot rebuild"
        f"{f' (it defines {changed})' if changed and isinstance(space, Space) else ''}; "
        f"allowed are Gymnasium's own {sorted(_WRITERS)}: use one of these for the remote task"
    )


def _write_box(space: Any, path: str, _depth: int) -> Plain:
    if space.dtype.name not in _BOX_DTYPES:
        raise Unsupported(f"{path} is a Box of dtype {space.dtype}; allowed are {sorted(_BOX_DTYPES)}")
    plain = {
        "dtype": space.dtype.name,
        "shape": [int(size) for size in space.shape],
        "low": _compact(space.low),
        "high": _compact(space.high),
    }
    # An integer Box made with infinite bounds samples differently from one with the dtype's limits.
    for name, expected in (("bounded_below", space.low > -np.inf), ("bounded_above", space.high < np.inf)):
        actual = np.broadcast_to(getattr(space, name), space.shape)
        if not np.array_equal(actual, expected):
            plain[name] = _compact(actual)
    return plain


def _compact(array: NDArray[Any]) -> Any:
    """One numpy scalar when all of `array` is bit-equal, else the array."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    return array.flat[0] if array.size and (bits == bits[0]).all() else array


def _write_discrete(space: Any, _path: str, _depth: int) -> Plain:
    return {"n": int(space.n), "start": int(space.start), "dtype": np.dtype(space.dtype).name}


def _write_multi_discrete(space: Any, _path: str, _depth: int) -> Plain:
    return {"nvec": space.nvec, "start": _compact(space.start), "dtype": np.dtype(space.dtype).name}


def _write_multi_binary(space: Any, _path: str, _depth: int) -> Plain:
    return {"n": [int(size) for size in space.n] if isinstance(space.n, tuple) else int(space.n)}


def _write_text(space: Any, path: str, _depth: int) -> Plain:
    # The order of the characters decides what a seed samples.
    characters = list(space.character_list)
    if any(len(character) != 1 for character in characters):
        raise Unsupported(f"{path} is a Text space whose charset holds more than single characters: {characters}")
    return {"max_length": space.max_length, "min_length": space.min_length, "charset": "".join(characters)}


def _write_dict(space: Any, path: str, depth: int) -> Plain:
    return {"spaces": {key: _write(part, f"{path}[{key!r}]", depth) for key, part in space.spaces.items()}}


def _write_several(space: Any, path: str, depth: int) -> Plain:
    return {"spaces": [_write(part, f"{path}[{index}]", depth) for index, part in enumerate(space.spaces)]}


def _write_sequence(space: Any, path: str, depth: int) -> Plain:
    return {"space": _write(space.feature_space, f"{path}.feature_space", depth), "stack": bool(space.stack)}


def _write_graph(space: Any, path: str, depth: int) -> Plain:
    edges = space.edge_space
    return {
        "nodes": _write(space.node_space, f"{path}.node_space", depth),
        "edges": None if edges is None else _write(edges, f"{path}.edge_space", depth),
    }


_WRITERS: dict[str, Callable[[Any, str, int], Plain]] = {
    "Box": _write_box,
    "Discrete": _write_discrete,
    "MultiDiscrete": _write_multi_discrete,
    "MultiBinary": _write_multi_binary,
    "Text": _write_text,
    "Dict": _write_dict,
    "Tuple": _write_several,
    "OneOf": _write_several,
    "Sequence": _write_sequence,
    "Graph": _write_graph,
}


class _Reader:
    """Builds one space, and counts the memory that its bounds take."""

    def __init__(self) -> None:
        self._left_bytes = MAX_BOX_BYTES

    def read(self, plain: Any, depth: int) -> Space[Any]:
        if depth > MAX_DEPTH:
            raise ProtocolError(f"a space nested deeper than {MAX_DEPTH} spaces")
        name = plain.get("type") if isinstance(plain, Mapping) else None
        build = self._builders.get(name) if isinstance(name, str) else None
        if build is None:
            raise ProtocolError(f"a space of unknown type {_shown(name)}; known are {sorted(_WRITERS)}")
        if not hasattr(spaces, str(name)):
            raise Unsupported(f"this end's Gymnasium has no {name} space; install a newer one there")
        try:
            return build(self, plain, depth + 1)
        except (
            # what Gymnasium's constructors and numpy raise on nonsense
            AssertionError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            MemoryError,
        ) as error:
            raise ProtocolError(f"not a {name} space ({error!r:.200}): {_shown(plain)}") from error

    def _box(self, plain: Plain, _depth: int) -> Space[Any]:
        dtype, shape = _dtype(plain["dtype"], _BOX_DTYPES), _shape(plain["shape"])
        self._take(shape, 2 * (dtype.itemsize + 1))  # low, high and whether they bound
        low, high = (_spread(plain[name], shape, dtype) for name in ("low", "high"))
        kind: Any = dtype
        space = spaces.Box(low, high, shape=shape, dtype=kind)
        for name in ("bounded_below", "bounded_above"):
            if name in plain:
                setattr(space, name, _spread(plain[name], shape, np.dtype(bool)).astype(bool))
        return space

    def _discrete(self, plain: Plain, _depth: int) -> Space[Any]:
        dtype, n, start = _dtype(plain["dtype"], _INTEGERS), _whole(plain["n"]), _whole(plain["start"])
        # Gymnasium adds n and start in this dtype without a look at overflows.
        if not np.iinfo(dtype).min <= start <= start + n - 1 <= np.iinfo(dtype).max or n > np.iinfo(dtype).max:
            raise ValueError(f"{n} values from {start} on do not fit {dtype}")
        if dtype == np.int64:
            return spaces.Discrete(n, start=start)
        if "dtype" not in spaces.Discrete.__init__.__code__.co_varnames:
            raise Unsupported(f"this end's Gymnasium has no Discrete space of dtype {dtype}; install a newer one there")
        return spaces.Discrete(n, start=start, dtype=dtype.type)

    def _multi_discrete(self, plain: Plain, _depth: int) -> Space[Any]:
        dtype, nvec = _dtype(plain["dtype"], _INTEGERS), plain["nvec"]
        if not isinstance(nvec, np.ndarray) or nvec.dtype != dtype:
            raise TypeError("nvec is no array of the space's dtype")
        kind: Any = dtype.type
        return spaces.MultiDiscrete(nvec, dtype=kind, start=_spread(plain["start"], nvec.shape, dtype))

    def _multi_binary(self, plain: Plain, _depth: int) -> Space[Any]:
        n = plain["n"]
        shape = _shape(n if isinstance(n, list) else [n])
        self._take(shape, 1)
        return spaces.MultiBinary(list(shape) if isinstance(n, list) else shape[0])

    def _text(self, plain: Plain, _depth: int) -> Space[Any]:
        longest, shortest, charset = (
            _whole(plain["max_length"]),
            _whole(plain["min_length"]),
            plain["charset"],
        )
        if not isinstance(charset, str):
            raise TypeError("charset is no string")
        return spaces.Text(longest, min_length=shortest, charset=charset)

    def _dict(self, plain: Plain, depth: int) -> Space[Any]:
        # An OrderedDict keeps its order in every Gymnasium; a dict would be sorted.
        return spaces.Dict(OrderedDict((key, self.read(part, depth)) for key, part in plain["spaces"].items()))

    def _tuple(self, plain: Plain, depth: int) -> Space[Any]:
        return spaces.Tuple([self.read(part, depth) for part in plain["spaces"]])

    def _one_of(self, plain: Plain, depth: int) -> Space[Any]:
        return spaces.OneOf([self.read(part, depth) for part in plain["spaces"]])

    def _sequence(self, plain: Plain, depth: int) -> Space[Any]:
        return spaces.Sequence(self.read(plain["space"], depth), stack=bool(plain["stack"]))

    def _graph(self, plain: Plain, depth: int) -> Space[Any]:
        nodes: Any = self.read(plain["nodes"], depth)
        edges: Any = None if plain["edges"] is None else self.read(plain["edges"], depth)
        return spaces.Graph(nodes, edges)

    def _take(self, shape: tuple[int, ...], item_bytes: int) -> None:
        size = item_bytes
        for length in shape:
            size *= length
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise ProtocolError(f"a space whose bounds take more than {MAX_BOX_BYTES} bytes, at {_shown(shape)}")

    _builders: Mapping[str, Callable[[_Reader, Plain, int], Space[Any]]] = {
        "Box": _box,
        "Discrete": _discrete,
        "MultiDiscrete": _multi_discrete,
        "MultiBinary": _multi_binary,
        "Text": _text,
        "Dict": _dict,
        "Tuple": _tuple,
        "OneOf": _one_of,
        "Sequence": _sequence,
        "Graph": _graph,
    }


def _dtype(name: Any, allowed: frozenset[str]) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(f"dtype {_shown(name)}; allowed are {sorted(allowed)}")
    return np.dtype(name)


def _whole(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise TypeError(f"{_shown(value)} is no integer of 64 bit")
    return value


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > 32:
        raise TypeError(f"{_shown(sizes)} is no shape")
    shape = tuple(_whole(size) for size in sizes)
    if any(not 0 <= size < 1 << 32 for size in shape):
        raise ValueError(f"{_shown(sizes)} is no shape")
    return shape


def _spread(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The opposite of `_compact`."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype != dtype:
        raise TypeError(f"{_shown(value)} is no {dtype}")
    if isinstance(value, np.ndarray) and value.shape != shape:
        raise ValueError(f"bounds of shape {value.shape} for {shape}")
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)  # Gymnasium asks its bounds for infinities, which booleans refuse
    return np.full(shape, value, dtype)


def _shown(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, (str, tuple, list, type(None))) else str(type(value))
