"""What a client or a task offers, as a policy takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from remote_env.errors import ConfigError, InputError
from remote_env.policy import Feature, MetaObs, PolicyMetadata
from remote_env.policy.observation import ActionMapping, ObservationMapping, check_batch, from_meta

STATE = Feature("state", (3,), names=("a", "b", "c"))
HWC = Feature("image", (4, 6, 3), "uint8", layout="HWC")
CHW = Feature("image", (3, 4, 6), "uint8", layout="CHW")
FLOAT = Feature("image", (3, 4, 6), "float32", layout="CHW")
TEXT = Feature("text", dtype="")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)


def metadata(**features: Feature) -> PolicyMetadata:
    return PolicyMetadata("act", {name.replace("__", "/"): value for name, value in features.items()}, ("x", "y"))


def box(*shape: int, dtype: Any = np.float64) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def mapped(space: spaces.Space[Any], wanted: PolicyMetadata, observation: Any, **options: Any) -> dict[str, Any]:
    mapping = ObservationMapping.between(space, wanted, **options)
    batch = mapping.batch([observation])
    assert check_batch(batch, wanted) == 1
    return {name: value[0] for name, value in batch.items()}


# Batches


def test_a_good_batch_has_its_size() -> None:
    wanted = metadata(state=STATE, top=HWC, task=TEXT)
    batch = {"state": np.zeros((2, 3), np.float32), "top": np.zeros((2, 4, 6, 3), np.uint8), "task": ["a", "b"]}
    assert check_batch(batch, wanted) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, r"lacks 'state'; 'act' takes state \(3,\) float32, top \(4, 6, 3\) uint8 HWC, task text"),
        ({"extra": 1}, "has 'extra', which it does not take"),
        ({"state": [[0, 0, 0]]}, "got list"),
        ({"state": np.zeros(3, np.float32)}, r"x\[None\]"),
        ({"state": np.zeros((2, 4), np.float32)}, r"shape \(B, 3,\) float32; got \(2, 4\)"),
        ({"state": np.zeros((2, 3))}, r"astype\('float32'\)"),
        ({"state": np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)}, r"nan at \(1,\) \(b\) of row 1"),
        ({"state": np.zeros((3, 3), np.float32)}, "2 rows, the features before it 3"),
        ({"top": np.zeros((2, 3, 4, 6), np.uint8)}, "HWC; got"),
        ({"top": np.zeros((2, 4, 6, 3), np.float32)}, "is uint8; got float32"),
        ({"task": "a"}, "one text per observation"),
        ({"task": ["a"]}, "1 rows"),
    ],
)
def test_a_bad_batch_names_the_feature(change: dict[str, Any], message: str) -> None:
    batch = {"state": np.zeros((2, 3), np.float32), "top": np.zeros((2, 4, 6, 3), np.uint8), "task": ["a", "b"]}
    batch = {name: value for name, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        check_batch(batch, metadata(state=STATE, top=HWC, task=TEXT))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="no observation"):
        check_batch({"state": np.zeros((0, 3), np.float32)}, metadata(state=STATE))


# MetaObs


@pytest.mark.parametrize("batched", [False, True])
def test_from_meta(batched: bool) -> None:
    cameras = np.stack([PIXELS, PIXELS[::-1]]).transpose(0, 3, 1, 2)
    fields: dict[str, Any] = {"state": np.arange(3.0), "state_joint": np.arange(2.0), "image": cameras}
    if batched:
        fields = {name: np.stack([value, value]) for name, value in fields.items()}
    wanted = metadata(
        state=STATE,
        state_joint=Feature("state", (2,)),
        front=HWC,
        wrist=FLOAT,
        timestep=Feature("state", (1,)),
        task=TEXT,
    )
    batch = from_meta(MetaObs(**fields, raw_lang="lift", timestep=5), wanted)
    assert check_batch(batch, wanted) == (2 if batched else 1)
    np.testing.assert_array_equal(batch["front"][0], PIXELS)
    np.testing.assert_array_equal(batch["wrist"][0], (PIXELS[::-1].astype(np.float32) / 255).transpose(2, 0, 1))
    assert batch["state"].dtype == np.float32
    assert batch["timestep"][0] == 5
    assert batch["task"][0] == "lift"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"needs MetaObs.state, which is missing; the policy takes state \(3,\) float32, front"),
        ({"state": np.zeros(4)}, r"takes 3 numbers \(a, b, c\); MetaObs.state holds 4"),
        ({"state": np.zeros(3), "image": None}, "takes 1 images, in this order: front; MetaObs.image holds 0"),
        (
            {"state": np.zeros(3), "image": np.zeros((1, 3, 5, 6), np.uint8)},
            r"camera 0 of MetaObs.image gives \(5, 6, 3\)",
        ),
    ],
)
def test_a_meta_obs_that_does_not_fit(fields: dict[str, Any], message: str) -> None:
    fields = {"image": np.zeros((1, 3, 4, 6), np.uint8), **fields}
    with pytest.raises(InputError, match=message):
        from_meta(MetaObs(**fields), metadata(state=STATE, front=HWC))


def test_a_number_too_large_for_float32_is_refused() -> None:
    wanted = metadata(state=STATE)
    with pytest.raises(InputError, match="inf at"):
        check_batch(from_meta(MetaObs(state=np.array([0, 1e300, 0])), wanted), wanted)


# Tasks: states


def test_the_single_state_is_cast_once() -> None:
    values = np.array([0.1, 1 / 3, 1e-9])
    out = mapped(box(3), metadata(state=Feature("state", (3,))), values)["state"]
    np.testing.assert_array_equal(out, values.astype(np.float32))
    same = mapped(box(3), metadata(state=Feature("state", (3,), "float64")), values)["state"]
    assert same.tobytes() == values.tobytes()


def test_states_are_put_in_order_by_name() -> None:
    out = mapped(box(3), metadata(state=STATE), np.array([3.0, 1.0, 2.0]), state_names=("c", "a", "b"))["state"]
    assert out.tolist() == [1, 2, 3]
    picked = mapped(box(5), metadata(state=STATE), np.arange(5.0), state_names=("z", "c", "a", "y", "b"))["state"]
    assert picked.tolist() == [2, 4, 1]


def test_names_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match="observation lacks c"):
        ObservationMapping.between(box(3), metadata(state=STATE), state_names=("a", "b", "d"))
    with pytest.raises(ConfigError, match="'as is'"):
        ObservationMapping.between(box(3), metadata(state=STATE), state_names=("x", "y", "z"))
    given = {"state": {"order": "as is"}}
    assert mapped(box(3), metadata(state=STATE), np.arange(3.0), state_names=tuple("xyz"), given=given)["state"][2] == 2


def test_names_of_another_state_are_not_used() -> None:
    # As ALOHA's: it names its state of 41 numbers, whatever it was told to observe.
    assert mapped(box(3), metadata(state=STATE), np.arange(3.0), state_names=tuple("abcdefg"))["state"].tolist() == [
        0,
        1,
        2,
    ]


def test_by_exact_name_then_last_part_then_alone() -> None:
    space = spaces.Dict({"robot": spaces.Dict({"state": box(3), "other": box(3)}), "spare": box(2)})
    observation = {"robot": {"state": np.arange(3.0), "other": -np.arange(3.0)}, "spare": np.ones(2)}
    wanted = metadata(robot__other=Feature("state", (3,)), state=STATE, rest=Feature("state", (2,)))
    out = mapped(space, wanted, observation)
    assert out["robot/other"][1] == -1
    assert out["state"][1] == 1
    assert out["rest"].tolist() == [1, 1]


def test_numbers_one_by_one_as_robots_give_them() -> None:
    space = spaces.Dict({f"{name}.pos": box() for name in "cab"})
    wanted = metadata(state=Feature("state", (3,), names=("a.pos", "b.pos", "c.pos")))
    out = mapped(space, wanted, {"a.pos": 1.0, "b.pos": 2.0, "c.pos": 3.0})["state"]
    assert out.tolist() == [1, 2, 3]


def test_states_joined_ordered_and_scaled_as_told() -> None:
    space = spaces.Dict({"arm": box(2), "hand": box(1)})
    observation = {"arm": np.array([1.0, 2.0]), "hand": np.array([3.0])}
    given = {"state": {"from": ["hand", "arm"], "order": [2, 0, 1], "scale": [1.0, 10.0, 100.0]}}
    assert mapped(space, metadata(state=STATE), observation, given=given)["state"].tolist() == [2, 30, 100]


def test_units_are_converted() -> None:
    wanted = metadata(state=Feature("state", (2,), names=("j", "x"), units=("rad", "m")))
    out = mapped(box(2), wanted, np.array([180.0, 5.0]), state_names=("j", "x"), state_units=("deg", "mm"))["state"]
    np.testing.assert_allclose(out, [np.pi, 0.005], rtol=1e-7)
    given = {"state": {"units": ["rad", "cm"]}}
    np.testing.assert_allclose(mapped(box(2), wanted, np.ones(2), given=given)["state"], [1, 0.01], rtol=1e-7)
    with pytest.raises(ConfigError, match="unit 'deg' cannot become the policy's 'm'"):
        ObservationMapping.between(box(2), wanted, given={"state": {"units": "deg"}})


# Tasks: images and texts


def test_cameras_by_their_last_part_and_layouts() -> None:
    space = spaces.Dict({"pixels": spaces.Dict({"top": image(4, 6, 3), "wrist": image(3, 4, 6)}), "agent_pos": box(3)})
    observation = {"pixels": {"top": PIXELS, "wrist": PIXELS[::-1].transpose(2, 0, 1)}, "agent_pos": np.zeros(3)}
    wanted = PolicyMetadata(
        "act",
        {"observation.images.wrist": HWC, "observation.images.top": FLOAT, "observation.state": STATE},
        ("x",),
    )
    out = mapped(space, wanted, observation)
    np.testing.assert_array_equal(out["observation.images.wrist"], PIXELS[::-1])
    np.testing.assert_array_equal(out["observation.images.top"], PIXELS.transpose(2, 0, 1).astype(np.float32) / 255)


def test_images_are_resized_only_when_asked() -> None:
    wanted = metadata(camera=HWC)
    with pytest.raises(ConfigError, match="is 8×12 and the policy takes 4×6: 'resize': true scales it"):
        ObservationMapping.between(spaces.Dict({"top": image(8, 12, 3)}), wanted)
    flat = np.full((8, 12, 3), 77, np.uint8)
    given: dict[str, Any] = {"camera": {"resize": True}}
    out = mapped(spaces.Dict({"top": image(8, 12, 3)}), wanted, {"top": flat}, given=given)["camera"]
    np.testing.assert_array_equal(out, 77)
    tall = np.full((8, 6, 3), 200, np.uint8)
    out = mapped(image(8, 6, 3), wanted, tall, given={"camera": {"resize": "pad"}})["camera"]
    assert (
        out[:, :, 0].tolist() == [[0, 200, 200, 200, 0, 0]] * 4
        or out[:, :, 0].tolist() == [[0, 0, 200, 200, 200, 0]] * 4
    )


def test_floats_become_bytes() -> None:
    space = spaces.Box(0, 1, (4, 6, 3), np.float32)
    out = mapped(space, metadata(camera=HWC), PIXELS.astype(np.float32) / 255)["camera"]
    np.testing.assert_array_equal(out, PIXELS)


def test_texts() -> None:
    wanted = metadata(task=TEXT)
    assert mapped(box(3), wanted, np.zeros(3), instruction="lift it")["task"] == "lift it"
    assert mapped(box(3), wanted, np.zeros(3), given={"task": {"text": "hi"}})["task"] == "hi"
    space = spaces.Dict({"goal": spaces.Text(9)})
    assert mapped(space, wanted, {"goal": "go"})["task"] == "go"
    with pytest.raises(ConfigError, match="needs an instruction and none was given"):
        ObservationMapping.between(box(3), wanted)


# Policies whose server does not say what they take

UNKNOWN = PolicyMetadata("openpi://box:8000", {}, (), extra={"unknown": True})
OFFER = spaces.Dict({"pixels": spaces.Dict({"top": image(8, 6, 3)}), "agent_pos": box(3)})
OFFERED = {"pixels": {"top": np.full((8, 6, 3), 9, np.uint8)}, "agent_pos": np.arange(3.0)}


def test_all_that_there_is_goes_to_a_policy_that_says_nothing() -> None:
    batch = ObservationMapping.between(OFFER, UNKNOWN, instruction="lift").batch([OFFERED])
    assert {name: np.shape(value) for name, value in batch.items()} == {
        "pixels/top": (1, 8, 6, 3),
        "agent_pos": (1, 3),
        "prompt": (1,),
    }
    assert batch["agent_pos"].dtype == np.float32
    assert batch["prompt"] == ["lift"]
    other = PolicyMetadata("ilstudio://box:5000", {}, (), extra={"unknown": True})
    assert list(ObservationMapping.between(box(2), other, instruction="x").batch([np.zeros(2)])) == ["state", "task"]


def test_or_what_the_mapping_names() -> None:
    given = {
        "observation/image": {"from": "pixels/top", "resize": "pad", "shape": [4, 4, 3]},
        "observation/state": {"from": "agent_pos", "order": [2, 0]},
        "prompt": {"text": "go"},
    }
    batch = ObservationMapping.between(OFFER, UNKNOWN, given=given).batch([OFFERED])
    assert batch["observation/image"].shape == (1, 4, 4, 3)
    assert batch["observation/state"].tolist() == [[2, 0]]
    assert batch["prompt"] == ["go"]
    with pytest.raises(ConfigError, match="the task offers no 'pixels/left' that a policy can take"):
        ObservationMapping.between(OFFER, UNKNOWN, given={"image": "pixels/left"})


def test_its_actions_are_the_tasks() -> None:
    mapping = ActionMapping.between(box(2), UNKNOWN)
    assert mapping.action(np.array([1, 2], np.float32)).tolist() == [1, 2]
    with pytest.raises(InputError, match=r"\(2,\); got \(7,\)"):
        mapping.action(np.zeros(7, np.float32))


# Refusals


def refusal(space: spaces.Space[Any], wanted: PolicyMetadata, **options: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        ObservationMapping.between(space, wanted, **options)
    return str(raised.value)


def test_a_refusal_shows_both_sides_and_how_to_mend_it() -> None:
    space = spaces.Dict({"left": image(4, 6, 3), "right": image(4, 6, 3), "joints": box(7)})
    assert refusal(space, metadata(state=STATE, camera=HWC)).splitlines() == [
        "the policy 'act' does not fit the task's observations:",
        "  state: joints has 7 numbers, the policy takes 3",
        "  camera: could be left or right",
        "    the policy takes             the task offers",
        "    state (3,) float32           joints (7,) float64",
        "    camera (4, 6, 3) uint8 HWC   left (4, 6, 3) uint8 HWC",
        "                                 right (4, 6, 3) uint8 HWC",
        'say which is which, as in {"state": {"from": "joints", "order": [0, 1, 2]}}',
    ]


def test_one_source_for_two_features_is_ambiguous() -> None:
    text = refusal(spaces.Dict({"top": image(4, 6, 3)}), metadata(a=HWC, b=HWC))
    assert "a: top could also be the source of b" in text
    assert "b: top could also be the source of a" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nothing": "top"}, "nothing: the policy has no such feature"),
        ({"state": "middle"}, "offers no 'middle'"),
        ({"state": "top"}, "top is no state"),
        ({"state": {"form": "top"}}, "unknown keys"),
        ({"state": 3}, "got 3"),
        ({"state": {"order": [0, 1]}}, "2 entries; 3 numbers are wanted"),
        ({"state": {"order": [0, 1, 9]}}, "holds 9; allowed is an index from 0 to 3"),
        ({"state": {"order": "reverse"}}, "'as is'; got 'reverse'"),
        ({"state": {"from": "joints", "order": [0, 1, 2], "scale": "much"}}, "'scale' is a number or 3"),
        ({"camera": {"from": "top", "resize": "zoom"}}, "'resize' is true, false"),
        ({"camera": {"from": ["top", "top"]}}, "only states"),
    ],
)
def test_faults_of_a_mapping(given: dict[str, Any], message: str) -> None:
    space = spaces.Dict({"top": image(4, 6, 3), "joints": box(4)})
    given = {"state": {"order": [0, 1, 2]}, **given}
    assert message in refusal(space, metadata(state=STATE, camera=HWC), given=given)


def test_an_observation_that_breaks_its_space_is_an_input_error() -> None:
    mapping = ObservationMapping.between(spaces.Dict({"joints": box(3)}), metadata(state=STATE))
    with pytest.raises(InputError, match="no 'joints'"):
        mapping.batch([{}])
    with pytest.raises(InputError, match="has 2 numbers; the task's space declares 3"):
        mapping.batch([{"joints": np.zeros(2)}])


def test_the_mapping_describes_itself() -> None:
    space = spaces.Dict({"top": image(8, 12, 3), "joints": box(4)})
    given = {"state": {"order": [0, 1, 3]}, "camera": {"resize": True}, "task": {"text": "go"}}
    mapping = ObservationMapping.between(space, metadata(state=STATE, camera=CHW, task=TEXT), given=given)
    assert mapping.describe().splitlines() == [
        "state (3,) float32  <-  joints (4,) float64, 3 numbers in the policy's order",
        "camera (3, 4, 6) uint8 CHW  <-  top (8, 12, 3) uint8 HWC, resized to 4×6, as CHW",
        "task text  <-  'go'",
    ]


# Actions


def test_actions_as_they_are_bit_by_bit() -> None:
    wanted = metadata(state=STATE)
    row = np.array([1.3, -7.1], np.float32)
    action = ActionMapping.between(spaces.Box(-1, 1, (2,), np.float32), wanted).action(row)
    assert action.tobytes() == row.tobytes()
    assert action is not row
    assert ActionMapping.between(spaces.Box(-1, 1, (1, 2), np.float64), wanted).action(row).shape == (1, 2)


def test_actions_in_order_and_units() -> None:
    wanted = PolicyMetadata("act", {}, ("x", "y", "grip"), ("rad", "rad", ""))
    space = spaces.Box(-1, 1, (2,), np.float32)
    row = np.array([1, np.pi, 5], np.float32)
    assert ActionMapping.between(space, wanted, action_names=("grip", "x")).action(row).tolist() == [5, 1]
    given = {"order": ["y", 2], "units": ["deg", ""], "scale": [1, 2]}
    np.testing.assert_allclose(ActionMapping.between(space, wanted, given).action(row), [180, 10], rtol=1e-6)
    assert "scaled" in ActionMapping.between(space, wanted, given).describe()


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (box(3), {}, "gives 2 numbers, the task takes 3"),
        (spaces.Discrete(4), {}, "only a Box of floats"),
        (box(2), {"names": ["x", "z"]}, "does not give z"),
        (box(2), {"names": ["x"]}, "1 names were given"),
        (box(2), {"order": [0, 5]}, "holds 5"),
        (box(2), {"sort": 1}, "unknown keys"),
    ],
)
def test_actions_that_do_not_fit(space: spaces.Space[Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        ActionMapping.between(space, metadata(state=STATE), given)
    assert "the task takes" in str(raised.value) or "unknown keys" in str(raised.value)


def test_a_row_of_another_size_is_refused() -> None:
    mapping = ActionMapping.between(box(2), metadata(state=STATE))
    with pytest.raises(InputError, match=r"\(2,\); got \(3,\)"):
        mapping.action(np.zeros(3, np.float32))
