"""Values of many steps as one, in parts and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from remote_env.protocol import codec
from remote_env.protocol.stacking import MIN_SIZE, copied, join, rows, size_of, stack


def same(ours: Any, theirs: Any) -> bool:
    """Whether both are the same values of the same types."""
    return codec.encode(ours, where="ours") == codec.encode(theirs, where="theirs")


VALUES: dict[str, list[Any]] = {
    "vectors": [np.full(3, i, np.float32) for i in range(5)],
    "images": [np.full((8, 8, 3), i, np.uint8) for i in range(5)],
    "ragged": [np.arange(i) for i in range(5)],
    "two dtypes": [np.zeros(2, np.float32), np.zeros(2), np.zeros(2), np.zeros(2, np.float32), np.zeros(2)],
    "floats": [0.5, -0.0, float("inf"), 1.0, 2.0],
    "flags": [True, False, True, True, False],
    "numbers": [1, 2, -3, 4, 5],
    "huge numbers": [2**70, 1, 2, 3, 4],
    "float32": [np.float32(i) for i in range(5)],
    "mixed": [1.0, np.float32(2), 3, None, "x"],
    "texts": ["a", "b", "", "d", "e"],
    "dicts": [{"image": np.full((2, 2), i, np.uint8), "pair": (np.int64(i), [i])} for i in range(5)],
    "other keys": [{"a": 1}, {"b": 2}, {"a": 3}, {}, {"a": 1, "b": 2}],
    "tuples": [(np.zeros(2), float(i)) for i in range(5)],
    "empty tuples": [(), (), (), (), ()],
}
MIXED = ("huge numbers", "mixed", "other keys")


@pytest.mark.parametrize("name", VALUES)
def test_parts_joined_are_what_all_stacked_is(name: str) -> None:
    values = VALUES[name]
    whole = stack(values)
    for cut in range(len(values) + 1):
        parted = rows(join([stack(values[:cut]), stack(values[cut:])]))
        # A part of a mixed column may be alike in itself: then its numbers are numpy's.
        assert parted == values if name in MIXED else same(parted, rows(whole))
    assert len(rows(whole)) == len(values)
    if name in ("vectors", "images", "floats", "flags", "numbers", "float32", "dicts", "tuples"):
        assert same(join([stack([value]) for value in values]), whole)
        assert not isinstance(whole, list)


def test_what_is_alike_is_one_array() -> None:
    assert stack(VALUES["images"]).shape == (5, 8, 8, 3)
    assert (stack(VALUES["float32"]).dtype, stack(VALUES["floats"]).dtype) == (np.float32, np.float64)
    assert stack(VALUES["dicts"])["pair"][0].tolist() == [0, 1, 2, 3, 4]
    assert stack([]) == join([]) == []


def test_a_copy_shares_no_memory() -> None:
    array = np.zeros(3)
    value = {"a": [array, (array, "x")], "b": 1}
    copy = copied(value)
    array[:] = 7
    assert copy["a"][0].tolist() == copy["a"][1][0].tolist() == [0, 0, 0]
    assert type(copy["a"][1]) is tuple


def test_sizes_bound_what_a_body_holds() -> None:
    assert size_of(np.zeros(1000)) >= 8000
    assert size_of({"a": [1, 2, (3, "four")]}) >= 6 * MIN_SIZE
