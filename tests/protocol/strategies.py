"""Hypothesis strategies for values that can cross and for spaces; and the round trip that tests make."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from hypothesis import strategies as st

from remote_env.protocol import codec

NUMBER_DTYPES = [dtype.name for dtype in codec.DTYPES]
INTEGER_DTYPES = [name for name in NUMBER_DTYPES if "int" in name]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | texts
    | st.binary(max_size=8)
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, dtypes: list[str] = NUMBER_DTYPES) -> np.ndarray:
    """Arrays of every allowed dtype: small or above the inline limit, in any memory layout."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(shapes | st.sampled_from([(), (0,), (4096,), (33, 130), (0, 2**31)]))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    raw = generator.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    array = (raw % 2).view(bool)[: int(np.prod(shape))] if dtype.kind == "b" else raw.view(dtype)
    array = array.reshape(shape)
    layout = draw(st.sampled_from(["C", "F", "transposed", "reversed", "strided", "swapped", "readonly"]))
    return _laid_out(array, layout)


def _laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array
    if layout == "transposed":
        return array.T
    if layout == "reversed" and array.ndim:
        return array[::-1]
    if layout == "strided" and array.ndim:
        return array[..., ::2]
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder(">"))
    array.setflags(write=layout != "readonly")
    return array


scalars = arrays().filter(lambda array: array.size > 0).map(lambda array: array.flat[0])
keys = st.recursive(
    texts | st.integers() | st.floats() | st.booleans() | st.none() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=3,
)
graphs = st.builds(GraphInstance, arrays(), st.none() | arrays(), st.none() | arrays(["int64"]))


def _containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    lists = st.lists(inner, max_size=4)
    return lists | lists.map(tuple) | st.dictionaries(keys, inner, max_size=4)


values = st.recursive(leaves | arrays() | scalars | graphs, _containers, max_leaves=8)


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    dtype = np.dtype(draw(st.sampled_from(["bool", *INTEGER_DTYPES, "float16", "float32", "float64"])))
    shape = draw(shapes)
    if dtype.kind == "b":
        return spaces.Box(0, 1, shape, dtype)
    bounds = draw(st.sampled_from(["uniform", "each", "infinite"]))
    low, high = (0, 100) if dtype.kind == "u" else (-100, 100)
    if bounds == "infinite" and dtype.kind != "u":
        return spaces.Box(-np.inf, draw(st.sampled_from([np.inf, 3])), shape, dtype)
    if bounds == "each":
        generator = np.random.default_rng(draw(st.integers(0, 99)))
        lows = generator.integers(low, 50, shape)
        return spaces.Box(np.array(lows, dtype), np.array(lows + generator.integers(0, 50, shape), dtype), shape, dtype)
    return spaces.Box(low, high, shape, dtype)


@st.composite
def multi_discretes(draw: st.DrawFn) -> spaces.MultiDiscrete:
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    nvec, start = generator.integers(1, 9, shape), generator.integers(0, 9, shape)
    return spaces.MultiDiscrete(nvec, dtype=np.dtype(draw(st.sampled_from(INTEGER_DTYPES))).type, start=start)


discretes = st.builds(spaces.Discrete, st.integers(1, 2**40), start=st.integers(-(2**40), 2**40))
multi_binaries = st.builds(spaces.MultiBinary, st.integers(1, 9) | st.lists(st.integers(1, 3), min_size=1, max_size=3))
text_spaces = st.builds(
    lambda shortest, more, charset: spaces.Text(shortest + more, min_length=shortest, charset=charset),
    st.integers(0, 3),
    st.integers(0, 3),
    st.text("abcXYZ ä漢🤖", min_size=1) | st.frozensets(st.sampled_from("abcä漢"), min_size=1),
)
box_or_discrete = boxes() | st.builds(spaces.Discrete, st.integers(1, 9))
graph_spaces = st.builds(spaces.Graph, box_or_discrete, st.none() | box_or_discrete)


def _nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    several = st.lists(inner, min_size=1, max_size=3)
    kinds = [
        several.map(spaces.Tuple),
        st.lists(st.tuples(texts, inner), max_size=3, unique_by=lambda pair: pair[0]).map(spaces.Dict),
        inner.map(spaces.Sequence),
        boxes().map(lambda space: spaces.Sequence(space, stack=True)),
    ]
    if hasattr(spaces, "OneOf"):
        kinds.append(several.map(lambda parts: spaces.OneOf(parts)))
    return st.one_of(kinds)


all_spaces = st.recursive(
    boxes() | discretes | multi_discretes() | multi_binaries | text_spaces | graph_spaces,
    _nested,
    max_leaves=5,
)


def cross(value: Any) -> Any:
    """What arrives at the other end."""
    body, buffers = codec.encode(value, where="value")
    payload = b"".join(buffers)
    arrived, views = codec.decode(body, len(payload))
    fill(views, payload)
    return arrived


def fill(views: list[memoryview], payload: bytes) -> None:
    """What the session does with the payload."""
    for view in views:
        view[:], payload = payload[: len(view)], payload[len(view) :]
    assert not payload


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal in type, and to the bit; an array's memory layout and byte order aside."""
    if isinstance(left, (np.ndarray, np.generic)):
        native = np.asarray(left).astype(left.dtype.newbyteorder("="))
        return (
            isinstance(right, np.ndarray if isinstance(left, np.ndarray) else np.generic)
            and native.dtype == right.dtype
            and left.shape == right.shape
            and native.tobytes() == right.tobytes()
        )
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items())  # noqa: B905  lengths are compared
        return len(left) == len(right) and all(same(a, b) for a, b in pairs)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    return bool(left == right)
