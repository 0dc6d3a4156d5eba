"""normalize.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remote_env.errors import ConfigError
from remote_env.policy import Feature, PolicyMetadata
from remote_env.policy.normalize import Normalizer, load_normalizer

ZSCORE = {"kind": "zscore", "state": {"mean": [1, 2], "std": [0.5, 4]}, "action": {"mean": [3], "std": [2]}}
MINMAX = {"kind": "minmax", "state": {"min": [0, -1], "max": [10, 1]}, "action": {"min": [-3], "max": [5]}}
METADATA = PolicyMetadata("act", {"state": Feature("state", (2,))}, ("x",))


def write(folder: Path, content: Any) -> Path:
    (folder / "normalize.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_zscore_and_minmax_by_dataset(tmp_path: Path) -> None:
    write(tmp_path, {"first": ZSCORE, "second": MINMAX})
    first = load_normalizer(tmp_path)
    assert (first.label, first.dataset_ids) == ("zscore:first", ("first", "second"))
    assert first.normalize_state(np.array([[2, 10]], np.float32)).tolist() == [[2, 2]]
    assert first.denormalize_action(np.array([[[2.5]]], np.float32)).tolist() == [[[8]]]
    second = load_normalizer(tmp_path, "second")
    assert second.label == "minmax:second"
    assert second.normalize_state(np.array([[0, 1], [10, 0]], np.float32)).tolist() == [[-1, 1], [1, 0]]
    assert second.denormalize_action(np.array([-1, 1, 0], np.float32)[:, None]).tolist() == [[-3], [5], [1]]


def test_everything_is_float32_and_bit_equal_to_the_plain_formula(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=2).astype(np.float32), rng.random(2).astype(np.float32)
    entry = {"kind": "zscore", "state": {"mean": mean.tolist(), "std": std.tolist()}}
    normalizer = load_normalizer(write(tmp_path, {"a": entry}))
    states = rng.normal(size=(50, 2)).astype(np.float32)
    assert normalizer.normalize_state(states).tobytes() == ((states - mean) / std).tobytes()
    assert normalizer.normalize_state(states.astype(np.float64)).dtype == np.float32
    assert normalizer.denormalize_action(states).dtype == np.float32


def test_without_numbers_nothing_changes() -> None:
    values = np.array([[1.5, 2.5]], np.float32)
    assert Normalizer().label == "none"
    assert Normalizer().normalize_state(values) is values
    assert Normalizer().normalize_action(values) is values
    Normalizer().check(METADATA)


def test_actions_are_normalised_for_training(tmp_path: Path) -> None:
    normalizer = load_normalizer(write(tmp_path, {"a": ZSCORE}))
    assert normalizer.normalize_action(np.array([7.0])).tolist() == [2]


def test_a_missing_file_names_every_place(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "step_1000"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no normalize\.json for the checkpoint") as raised:
        load_normalizer(folder)
    for place in (folder, tmp_path / "run"):
        assert f"\n  {place / 'normalize.json'}" in str(raised.value)
    assert '"normalizer": "none"' in str(raised.value)
    write(tmp_path / "run", {"shared": ZSCORE})
    assert load_normalizer(folder).dataset_id == "shared"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ({}, "no object of dataset ids"),
        ([1], "no object of dataset ids"),
        ({"a": {"kind": "quantile"}}, "kind is 'quantile'; allowed are zscore, minmax"),
        ({"a": 5}, "kind is None"),
        ({"a": {**ZSCORE, "state": {"mean": [1]}}}, "'state': zscore needs the lists mean and std"),
        ({"a": {**ZSCORE, "state": {"mean": [1], "std": [1, 2]}}}, "'mean' has 1 numbers, 'std' 2"),
        ({"a": {**ZSCORE, "state": {"mean": [1], "std": [0]}}}, r"'std' is not above 0 at 0 \(of 1\).*floor"),
        ({"a": {**MINMAX, "action": {"min": [1, 2], "max": [3, 2]}}}, "'max' is not above 'min' at 1"),
        ({"a": {**ZSCORE, "state": {"mean": ["x"], "std": [1]}}}, "'mean' is no list of numbers"),
        ({"a": {**ZSCORE, "state": {"mean": [1e300], "std": [1]}}}, "finite"),
        ('{"a": {"kind": "zscore", "state": {"mean": [NaN], "std": [1]}}}', "finite"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_normalizer(write(tmp_path, content))


def test_an_unknown_dataset_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no dataset 'third'; it has first, second"):
        load_normalizer(write(tmp_path, {"first": ZSCORE, "second": MINMAX}), "third")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (PolicyMetadata("act", {"state": Feature("state", (3,))}, ("x",)), "'state' has 2 numbers, the policy's has 3"),
        (
            PolicyMetadata("act", {"state": Feature("state", (2,))}, ("x", "y")),
            "'action' has 1 numbers, the policy's has 2",
        ),
        (PolicyMetadata("act", {n: Feature("state", (2,)) for n in "ab"}, ("x",)), "could be any of a, b"),
    ],
)
def test_wrong_lengths_are_named(tmp_path: Path, metadata: PolicyMetadata, message: str) -> None:
    normalizer = load_normalizer(write(tmp_path, {"a": ZSCORE}))
    normalizer.check(METADATA)
    with pytest.raises(ConfigError, match=message):
        normalizer.check(metadata)


def test_several_states_have_entries_of_their_own(tmp_path: Path) -> None:
    numbers = {"mean": [0.0], "std": [2.0]}
    normalizer = load_normalizer(write(tmp_path, {"a": {"kind": "zscore", "arm": numbers, "action": numbers}}))
    normalizer.check(PolicyMetadata("act", {"arm": Feature("state", (1,))}, ("x",)))
    assert normalizer.normalize_state(np.array([4.0]), "arm").tolist() == [2]
    with pytest.raises(ConfigError, match="no entry 'hand'; it has arm, action"):
        normalizer.check(PolicyMetadata("act", {"hand": Feature("state", (1,))}, ("x",)))
