"""MetaObs and MetaAction: what they accept, and batches of them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from remote_env import policy
from remote_env.errors import InputError
from remote_env.policy import MetaAction, MetaObs
from remote_env.policy.meta import split_observation, stack_observations

IMAGE = np.zeros((2, 3, 4, 5), np.uint8)


def test_a_single_observation() -> None:
    observation = MetaObs(state=[1.0, 2.0], image=IMAGE, raw_lang="lift", timestep=np.array([3]))
    assert isinstance(observation.state, np.ndarray)
    assert not observation.is_batched
    assert observation.timestep == 3
    assert isinstance(observation.timestep, int)


def test_a_batch_as_the_real_client_sends_it() -> None:
    observation = MetaObs(
        state=np.zeros((2, 14)),
        image=np.zeros((2, 1, 3, 4, 5), np.uint8),
        raw_lang=["a", "b"],
        timestep=np.array([[7]] * 2),
    )
    assert observation.batch_size == 2
    assert observation.timestep.shape == (2, 1)
    one = MetaObs(state=np.zeros((1, 14)), raw_lang=np.array(["a"]), timestep=np.array([[0]]))
    assert one.batch_size == 1
    assert one.raw_lang == ["a"]
    assert type(one.raw_lang[0]) is str


def test_one_text_and_one_timestep_hold_for_the_whole_batch() -> None:
    observation = MetaObs(state=np.zeros((3, 2)), raw_lang="go", timestep=4)
    assert observation.raw_lang == ["go"] * 3
    assert observation.timestep.tolist() == [[4]] * 3


def test_texts_alone_make_a_batch() -> None:
    assert MetaObs(raw_lang=["a", "b"]).batch_size == 2
    assert MetaObs(raw_lang="a").batch_size is None
    assert MetaObs().batch_size is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": "text"}, "state is an array of numbers"),
        ({"state": np.array([None, 1])}, "dtype object"),
        ({"state": [[1.0], [1.0, 2.0]]}, "state is"),
        ({"state": 1.0}, r"MetaObs.state is \(D,\), or \(B, D,\) of a batch; got shape \(\)"),
        ({"state_ee": np.zeros((2, 2, 2))}, "state_ee"),
        ({"image": np.zeros((1, 3, 4, 5), np.float32)}, "image is uint8"),
        ({"image": np.zeros((1, 4, 5, 3), np.uint8)[:, :, :, :]}, None),
        ({"image": np.zeros((1, 40, 50, 3), np.uint8)}, r"transpose\(0, 3, 1, 2\)"),
        ({"image": np.zeros((3, 40, 50), np.uint8)}, r"\(K, C, H, W\)"),
        ({"depth": np.zeros((4, 5))}, r"\(K, H, W\)"),
        ({"pc": np.zeros((9, 4))}, r"\(n, 3\)"),
        ({"state": np.zeros(3), "image": IMAGE[None]}, "different numbers of observations"),
        ({"state": np.zeros((2, 3)), "raw_lang": ["a"] * 3}, "3 texts for 2"),
        ({"state": np.zeros(3), "raw_lang": ["a", "b"]}, "2 texts for one"),
        ({"raw_lang": 5}, "raw_lang is a text"),
        ({"state": np.zeros(3), "timestep": -1}, "counts from 0"),
        ({"state": np.zeros(3), "timestep": 0.5}, "counts from 0"),
        ({"state": np.zeros((2, 3)), "timestep": [1, 2, 3]}, r"timestep is \(B, 1\)"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str | None) -> None:
    if message is None:
        MetaObs(**fields)  # four channels: as CHW as any other
        return
    with pytest.raises(InputError, match=message):
        MetaObs(**fields)


def test_stacking_and_splitting_are_opposites() -> None:
    singles = [MetaObs(state=np.arange(3.0) + i, image=IMAGE + i, raw_lang=f"t{i}", timestep=i) for i in range(3)]
    batch = stack_observations(singles)
    assert batch.batch_size == 3
    assert batch.depth is None
    for one, back in zip(singles, split_observation(batch), strict=True):
        assert back.to_plain().keys() == one.to_plain().keys()
        for name, value in one.to_plain().items():
            np.testing.assert_array_equal(back.to_plain()[name], value)
    assert split_observation(singles[0]) == [singles[0]]


def test_what_cannot_be_stacked_is_said() -> None:
    with pytest.raises(InputError, match="at least one"):
        stack_observations([])
    with pytest.raises(InputError, match="a batch already"):
        stack_observations([MetaObs(state=np.zeros((1, 3)))])
    with pytest.raises(InputError, match=r"state is not the same.*\(2,\), \(3,\)"):
        stack_observations([MetaObs(state=np.zeros(3)), MetaObs(state=np.zeros(2))])
    with pytest.raises(InputError, match="missing"):
        stack_observations([MetaObs(state=np.zeros(3)), MetaObs()])


def test_plain_and_back() -> None:
    observation = MetaObs(state=np.arange(3.0), timestep=2)
    plain = observation.to_plain()
    assert set(plain) == {"state", "raw_lang", "timestep"}
    np.testing.assert_array_equal(MetaObs.from_plain(plain).state, observation.state)
    with pytest.raises(InputError, match=r"no field 'states'; it has state, state_ee"):
        MetaObs.from_plain({"states": 1})
    action = MetaAction("ee", "delta", np.zeros(7), gripper_continuous=False)
    assert MetaAction.from_plain(action.to_plain()).to_plain() == action.to_plain()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(observation)).state, observation.state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ctrl_space": "tcp"}, "ctrl_space is one of joint, ee"),
        ({"ctrl_type": "absolute"}, "ctrl_type is one of abs, delta, relative"),
        ({"action": None}, "action is an array of numbers"),
        ({"action": np.zeros((2, 7))}, r"\(D,\)"),
        ({"gripper_continuous": "yes"}, "True or False"),
    ],
)
def test_wrong_actions_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MetaAction(**{"action": np.zeros(7), **fields})


def test_every_public_name_is_there() -> None:
    for name in policy.__all__:
        assert getattr(policy, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Polecy'"):
        policy.Polecy  # noqa: B018
