"""What two transitions differ in, to the bit, and by how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from remote_env.prediction.differences import compare

NAN = float("nan")


def differing(predicted: Any, actual: Any) -> list[tuple[str, float]]:
    """Of two observations."""
    return [
        (where, size)
        for where, size, *_ in compare((predicted, 0.0, False, False, {}), (actual, 0.0, False, False, {}))
    ]


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [
        (np.array([1.0, NAN, -0.0]), np.array([1.0, NAN, -0.0])),
        (np.full((40, 40, 3), 7, np.uint8), np.full((40, 40, 3), 7, np.uint8)),
        ({"a": 1, "b": (2, "x")}, {"a": np.int64(1), "b": (2, "x")}),
        (np.array([0.1]), np.array([0.1], np.float32)),  # who asks for float32 is given it
        ({"seen": 1, "not asked for": 2}, {"seen": 1}),
        (NAN, NAN),
        (np.array(["a", None], object), np.array(["a", None], object)),
    ],
)
def test_the_same_is_no_difference(predicted: Any, actual: Any) -> None:
    assert differing(predicted, actual) == []


@pytest.mark.parametrize(
    ("predicted", "actual", "found"),
    [
        (np.array([1.0, 2.0]), np.array([1.5, 2.25]), [("observation", 0.5)]),
        (np.array([0.0]), np.array([-0.0]), [("observation", 0.0)]),
        (np.array([1.0]), np.array([NAN]), [("observation", np.inf)]),
        (np.uint8([255]), np.uint8([0]), [("observation", 255.0)]),
        (np.zeros(2), np.zeros(3), [("observation", np.inf)]),
        ({"a": {"b": 1.0}}, {"a": {"b": 3.0}}, [("observation['a']['b']", 2.0)]),
        ({"a": 1}, {"a": 1, "b": 2}, [("observation['b']", np.inf)]),
        ((1, "x"), (1, "y"), [("observation[1]", np.inf)]),
        ((1,), (1, 2), [("observation", np.inf)]),
        (True, False, [("observation", np.inf)]),
        (None, 1.0, [("observation", np.inf)]),
    ],
)
def test_what_differs_is_named_and_measured(predicted: Any, actual: Any, found: list[tuple[str, float]]) -> None:
    assert differing(predicted, actual) == found


def test_flags_rewards_and_infos_are_compared_whole() -> None:
    predicted = (0, 1.0, False, False, {"a": 1, "timing": {"queue_s": 1.0}})
    actual = (0, 1.25, True, False, {"b": 1, "timing": {"queue_s": 2.0}})
    found = {each.where: each.size for each in compare(predicted, actual)}
    assert found == {"reward": 0.25, "terminated": np.inf, "info['a']": np.inf, "info['b']": np.inf}


def test_a_difference_says_what_came_and_what_was_predicted() -> None:
    told = [str(each) for each in compare((np.zeros(3), 1.0, False, False, {}), (np.ones(3), 2.0, False, False, {}))]
    assert told == ["observation differs by up to 1", "reward is 2.0 where 1.0 was predicted"]
