"""Whether two values are the same to the bit: types, dtypes, shapes, orders of keys, and arrays of objects too."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same(ours: Any, theirs: Any, path: str = "value") -> None:
    """Fail where the two differ, and say where."""
    assert type(ours) is type(theirs), f"{path}: {type(ours)} is not {type(theirs)}"
    if isinstance(theirs, np.ndarray):
        _assert_same_array(ours, theirs, path)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), f"{path}: keys {list(ours)} are not {list(theirs)}"
        for key, item in theirs.items():
            assert_same(ours[key], item, f"{path}[{key!r}]")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), f"{path}: {len(ours)} items are not {len(theirs)}"
        for index, item in enumerate(theirs):
            assert_same(ours[index], item, f"{path}[{index}]")
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), f"{path}: {ours!r} is not {theirs!r}"


def _assert_same_array(ours: Any, theirs: Any, path: str) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f"{path}: another dtype or shape"
    if theirs.dtype == np.object_:
        assert_same(ours.reshape(-1).tolist(), theirs.reshape(-1).tolist(), path)
    else:
        assert ours.tobytes() == theirs.tobytes(), f"{path}: {ours} is not {theirs}"
