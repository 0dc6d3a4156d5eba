"""Batches cut by rows and joined again are what they were, and infos what Gymnasium makes of all environments'."""

from __future__ import annotations

from typing import Any

import numpy as np
from exact_values import assert_same
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_env.vector.rows import copy_rows, cut_rows, join_infos, join_rows

SPACE = spaces.Dict(
    {
        "picture": spaces.Box(0, 255, (2, 3), np.uint8),
        "pair": spaces.Tuple((spaces.Discrete(4), spaces.Dict({"x": spaces.Box(-1, 1, (), np.float64)}))),
        "words": spaces.Text(5),
    }
)
VALUES = st.sampled_from([1, 2.5, True, np.float32(3), "text", None, {"deep": 7, "more": {"at": 1.0}}, [1, "two"]])
INFOS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=3)


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 3))
def test_cut_and_joined_it_is_the_same(count: int, at: int, seed: int) -> None:
    space = batch_space(SPACE, count)
    space.seed(seed)
    batch, at = space.sample(), min(at, count)
    parts = [cut_rows(SPACE, batch, slice(0, at)), cut_rows(SPACE, batch, slice(at, count))]
    joined = join_rows(SPACE, parts)
    assert_same(joined, batch)
    assert_same(copy_rows(SPACE, batch), batch)
    assert not np.shares_memory(copy_rows(SPACE, batch)["picture"], batch["picture"])


def test_a_list_of_actions_can_be_cut_and_copied() -> None:
    assert cut_rows(spaces.Discrete(3), [0, 1, 2], slice(1, 3)) == [1, 2]
    assert copy_rows(spaces.Discrete(3), [0, 1, 2]) == [0, 1, 2]


def gathered(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """As Gymnasium's vector environments gather them."""
    whole: VectorEnv[Any, Any, Any] = VectorEnv()
    whole.num_envs, whole.closed = len(infos), True
    found: dict[str, Any] = {}
    for index, info in enumerate(infos):
        found = whole._add_info(found, info, index)
    return found


@settings(max_examples=60)
@given(st.lists(INFOS, min_size=2, max_size=6), st.data())
def test_infos_are_those_of_one_batch(infos: list[dict[str, Any]], data: st.DataObject) -> None:
    kinds: dict[str, type] = {}
    for info in infos:  # Gymnasium itself takes what one key holds to be of one kind
        for key in list(info):
            if kinds.setdefault(key, type(info[key])) is not type(info[key]):
                del info[key]
    at = data.draw(st.integers(1, len(infos) - 1))
    parts = [gathered(infos[:at]), gathered(infos[at:])]
    assert_same(join_infos(parts, [at, len(infos) - at]), gathered(infos))


def test_infos_that_are_not_alike() -> None:
    first = {"a": np.array([1, 2]), "b": np.array([[1.0], [2.0]]), "log": "x", "n": 3}
    second = {"a": np.array([0.5]), "b": np.array([[1.0, 2.0]]), "log": "y"}
    joined = join_infos([first, second], [2, 1])
    assert_same(joined["a"], np.array([1, 2, 0]))  # as Gymnasium's own: the first one's type
    assert [each.tolist() for each in joined["b"]] == [[1.0], [2.0], [1.0, 2.0]]
    assert (joined["log"], joined["n"]) == (("x", "y"), (3, None))
    assert join_infos([{}, {}], [2, 1]) == {}
