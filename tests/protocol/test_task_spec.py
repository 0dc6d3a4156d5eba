"""Task specifications: plain and back, and a digest that names them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from remote_env.errors import ConfigError, InputError
from remote_env.protocol.task import PolicySpec, TaskSpec, digest_of


def test_round_trip_through_json() -> None:
    spec = TaskSpec(
        "a:b", {"tuple": (1, [2.5]), "array": np.arange(3), "raw": b"\0"}, "m:Backend", b"\x80\xff", "3.12", ("x", "y")
    )
    again = TaskSpec.from_plain(json.loads(json.dumps(spec.to_plain())))
    assert again.kwargs["array"].tolist() == [0, 1, 2]
    assert {**again.kwargs, "array": 0} == {"tuple": (1, [2.5]), "array": 0, "raw": b"\0"}
    for name in ("env", "simulator", "pickled", "pickled_by", "allow_calls"):
        assert getattr(again, name) == getattr(spec, name)


def test_a_policy_goes_along() -> None:
    mapping = {"observation": {"state": {"from": "agent_pos", "order": [1, 0]}}, "action": {"scale": 0.5}}
    policy = PolicySpec("box:5000", "cubes", "cuda:1", 16, "lift it", 5.0, 2.0, mapping)
    again = TaskSpec.from_plain(json.loads(json.dumps(TaskSpec("a", policy=policy).to_plain())))
    assert again.policy == policy
    assert TaskSpec.from_plain(TaskSpec("a").to_plain()).policy is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"source": ""}, "has no name"),
        ({"source": None}, "source is a text"),
        ({"source": "x", "device": 0}, "device is a text"),
        ({"source": "x", "chunk_size": 0}, "from 1 on"),
        ({"source": "x", "chunk_size": True}, "from 1 on"),
        ({"source": "x", "timeout_s": float("inf")}, "timeout_s is a number of seconds"),
        ({"source": "x", "mapping": ["state"]}, "mapping is"),
        ({"source": "x", "mapping": {"state": {}}}, r"got \['state'\]"),
        ({"source": "x", "mapping": {"action": 3}}, "mapping is"),
        ({"source": "x", "mapping": {"action": {"scale": object()}}}, "plain JSON"),
    ],
)
def test_what_is_no_policy(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PolicySpec(**fields)


def test_a_batch_goes_along() -> None:
    assert TaskSpec.from_plain(json.loads(json.dumps(TaskSpec("a", num_envs=7).to_plain()))).num_envs == 7
    assert "num_envs" not in TaskSpec("a").to_plain()  # so that digests of earlier versions stay


@pytest.mark.parametrize("num_envs", [0, -1, True, 2.0, "2"])
def test_what_is_no_batch(num_envs: Any) -> None:
    with pytest.raises(ConfigError, match="a number of environments from 1 on"):
        TaskSpec("a", num_envs=num_envs)
    with pytest.raises(ConfigError, match="a number of environments from 1 on"):
        TaskSpec.from_plain({**TaskSpec("a").to_plain(), "num_envs": num_envs})


def test_large_arguments_arrive() -> None:
    kwargs = {"map": np.random.default_rng(1).random((300, 40)), "mask": np.ones(5000, bool)}
    again = TaskSpec.from_plain(TaskSpec("x", kwargs).to_plain()).kwargs
    for name, array in kwargs.items():
        assert again[name].tobytes() == array.tobytes()


def test_digests() -> None:
    base = TaskSpec("a", {"x": 1, "y": 2})
    assert base.digest == TaskSpec("a", {"y": 2, "x": 1}).digest == digest_of(base.to_plain())
    others = [
        TaskSpec("b", {"x": 1, "y": 2}),
        TaskSpec("a", {"x": 1, "y": 3}),
        TaskSpec("a", {"x": 1}),
        TaskSpec("a", {"x": 1, "y": 2}, "m:B"),
        TaskSpec("a", {"x": 1, "y": 2}, pickled=b"p"),
        TaskSpec("a", {"x": 1, "y": 2}, policy=PolicySpec("p")),
        TaskSpec("a", {"x": 1, "y": 2}, num_envs=1),
        TaskSpec("a", {"x": 1, "y": 2}, num_envs=2),
        TaskSpec("a", {"x": 1, "y": 2}, policy=PolicySpec("p", chunk_size=3)),
    ]
    assert len({spec.digest for spec in [base, *others]}) == 10
    assert TaskSpec("a", {"x": 1, "y": 2}, allow_calls=("z",)).digest == base.digest


def test_what_cannot_cross_is_named() -> None:
    with pytest.raises(InputError, match=r"env_kwargs\['f'\]"):
        TaskSpec("a", {"f": print}).to_plain()


@pytest.mark.parametrize(
    "change",
    [
        {"env": None},
        {"kwargs": ["!", ""]},
        {"kwargs": []},
        {"kwargs": ["gA==", "AAAA"]},
        {"pickled": 5},
        {"simulator": 0},
        {"policy": {"source": "x", "unknown": 1}},
        {"policy": {"source": ""}},
        {"policy": "x"},
    ],
)
def test_what_is_no_specification(change: dict[str, Any]) -> None:
    plain = {**TaskSpec("a").to_plain(), **change}
    if change in ({"env": None}, {"simulator": 0}):
        plain.pop(next(iter(change)))
    with pytest.raises(ConfigError, match="not a task specification"):
        TaskSpec.from_plain(plain)
