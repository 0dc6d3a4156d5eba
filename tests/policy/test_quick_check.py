"""The quick check says what check_batch says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from policies_for_tests import describe, observe

from remote_env.errors import InputError
from remote_env.policy.observation import check_batch
from remote_env.policy.quick_check import QuickCheck, is_finite


@given(
    arrays.arrays(st.sampled_from([np.float16, np.float32, np.float64]), arrays.array_shapes(min_side=0, max_side=5))
)
def test_finite_is_what_numpy_says(array: Any) -> None:
    assert is_finite(array) == np.isfinite(array).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_numbers_are_finite(dtype: Any) -> None:
    array = np.full((2, 3), np.finfo(dtype).max, dtype)
    assert is_finite(array)
    array[1, 1] = -np.inf
    assert not is_finite(array)


def outcome(check: Any, *arguments: Any) -> Any:
    try:
        return check(*arguments)
    except InputError as error:
        return str(error)


GOOD = observe(1.0, describe("", images=1), 2)
BATCHES: list[dict[str, Any]] = [
    GOOD,
    {},
    {**GOOD, "more": GOOD["state"]},
    {"state": GOOD["state"], "other": GOOD["image0"]},
    {**GOOD, "state": GOOD["state"][:1]},
    {**GOOD, "state": GOOD["state"][:, :3]},
    {**GOOD, "state": GOOD["state"].astype(np.float64)},
    {**GOOD, "state": GOOD["state"].astype(">f4")},
    {**GOOD, "state": GOOD["state"] * np.nan},
    {**GOOD, "state": GOOD["state"][0]},
    {**GOOD, "state": np.float32(3)},
    {**GOOD, "state": np.array(3, np.float32)},
    {**GOOD, "state": GOOD["state"].tolist()},
    {name: value[:0] for name, value in GOOD.items()},
]


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: " ".join(f"{k}{np.shape(v)}" for k, v in batch.items()))
@pytest.mark.parametrize("text", [False, True])
def test_it_says_what_check_batch_says(batch: dict[str, Any], text: bool) -> None:
    metadata = describe("", images=1, text=text)
    if text:
        batch = {**batch, "instruction": ["a", "b"]}
    assert outcome(QuickCheck(metadata), batch) == outcome(check_batch, batch, metadata)
