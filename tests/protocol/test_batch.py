"""What a batch says in a RESULT: rewards and flags in their place, arrays of objects out of infos and back, indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact_values import assert_same
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import ProtocolError
from remote_env.protocol import codec
from remote_env.protocol.batch import BatchTransition, check_env_ids, check_rows, join_objects, split_objects
from remote_env.state import EntityLayout, SceneLayout


def objects(*items: Any) -> Any:
    array = np.empty(len(items), object)
    for index, item in enumerate(items):
        array[index] = item
    return array


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("count", [1, 3, 511, 512, 5000])
def test_a_transition_comes_back_as_it_was(dtype: Any, count: int) -> None:
    random = np.random.default_rng(count)
    given_values = (random.normal(size=count).astype(dtype), random.random(count) < 0.5, random.random(count) < 0.5)
    batch = BatchTransition(count)
    packed = batch.pack(*given_values)
    assert packed is not None
    body, payload = bytearray(b"xx") + packed[0], packed[1]
    values, views, end = batch.read(body, 2, len(body))
    for view, part in zip(views, payload, strict=True):
        view[:] = part
    assert_same(values, given_values)
    assert end == len(body)
    for short in range(2, len(body), max(1, count // 3)):
        with pytest.raises(ProtocolError):
            batch.read(body, 2, short)


@pytest.mark.parametrize(
    "values",
    [
        ([1.0, 2.0], np.zeros(2, bool), np.zeros(2, bool)),
        (np.zeros(2, np.int64), np.zeros(2, bool), np.zeros(2, bool)),
        (np.zeros(3), np.zeros(2, bool), np.zeros(2, bool)),
        (np.zeros(2), np.zeros(2), np.zeros(2, bool)),
        (np.zeros(2), np.zeros(2, bool), False),
        (np.zeros((2, 1)), np.zeros(2, bool), np.zeros(2, bool)),
    ],
)
def test_what_has_no_place_is_told(values: Any) -> None:
    assert BatchTransition(2).pack(*values) is None


def test_a_transition_of_another_dtype_is_refused() -> None:
    packed = BatchTransition(2).pack(np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    assert packed is not None
    packed[0][0] = 2
    with pytest.raises(ProtocolError, match="dtype"):
        BatchTransition(2).read(packed[0], 0, len(packed[0]))


def leaves() -> Any:
    plain = st.none() | st.integers(-5, 5) | st.text(max_size=3) | st.just(np.arange(3.0))
    return st.recursive(
        plain,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=2), inner, max_size=3)
            | st.lists(inner, min_size=1, max_size=3).map(lambda items: objects(*items))
        ),
        max_leaves=12,
    )


@given(st.dictionaries(st.text(max_size=2), leaves(), max_size=4))
def test_infos_cross_with_their_arrays_of_objects(info: dict[str, Any]) -> None:
    plain, found = split_objects(info)
    body, arrays = codec.encode({"info": plain, "objects": found}, where="info")
    value, views = codec.decode(body, sum(map(len, arrays)))
    for view, part in zip(views, arrays, strict=True):
        view[:] = part
    assert_same(join_objects(value["info"], value["objects"]), info)


def test_arrays_of_objects_in_two_dimensions() -> None:
    info = {"a": objects(1, None, "x", [2.0]).reshape(2, 2)}
    assert_same(join_objects(*split_objects(info)), info)


@pytest.mark.parametrize(
    "found",
    [
        7,
        [7],
        [((), [1])],
        [((), [1], [1])],
        [(("a",), [2], [1])],
        [(("b", "c"), [1], [1])],
        [(("a", "x"), [1], [1])],
        [((["a"],), [1], [1])],
        [(("a",), [1], 7)],
        [(("a",), "no", [1])],
        [(None, [1], [1])],
    ],
)
def test_objects_that_do_not_fit_are_refused(found: Any) -> None:
    with pytest.raises(ProtocolError, match="do not fit"):
        join_objects({"a": None}, found)


def test_indices_of_every_form() -> None:
    for env_ids in (None, [0, 1, 2], (0, 1, 2), np.arange(3), np.arange(3, dtype=np.uint8), range(3)):
        assert_same(check_env_ids(env_ids, 3), np.arange(3))
    assert check_env_ids(2, 3).tolist() == [2]
    assert check_env_ids([], 3).tolist() == []


@pytest.mark.parametrize(
    "env_ids", [[3], [-1], [0, 0], [0.0], "a", [[0]], [[0], [0, 1]], {"a": 1}, [None], [True], np.zeros(2)]
)
def test_indices_that_are_none(env_ids: Any) -> None:
    with pytest.raises(ValueError, match="env_ids"):
        check_env_ids(env_ids, 3)


def test_rows_are_checked() -> None:
    layout = SceneLayout((EntityLayout("cube"),), "toy")
    check_rows(layout, np.zeros((2, layout.size)), 2)
    for values in (np.zeros((1, layout.size)), np.zeros((2, 3)), np.zeros((2, layout.size), np.float32), None, [[0.0]]):
        with pytest.raises(ValueError, match=r"float64 \(2, 14\)"):
            check_rows(layout, values, 2)
