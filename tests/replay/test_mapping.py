"""Mappings: a simulated arm and box under other names, frames and signs, shown in a model of its own."""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np
import pytest

from remote_env.errors import ConfigError, InputError, ReplayError
from remote_env.poses import compose, invert
from remote_env.replay import Replayer
from remote_env.replay.mapping import Mapping, as_mapping
from remote_env.state import SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene

# As simulated: the arm's base is fixed, and carries a finger that another follows.
FAR = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="robot" pos="0.3 0 0.6" euler="0 0 20">
      <geom size="0.05"/>
      <body name="upper">
        <joint name="lift" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04"/>
        <body name="hand" pos="0.3 0 0">
          <joint name="reach" type="slide" axis="1 0 0"/><geom type="box" size="0.05 0.05 0.05"/>
          <body name="finger" pos="0.1 0.02 0">
            <joint name="grip" type="slide" axis="0 1 0"/><geom size="0.01"/>
          </body>
          <body name="thumb" pos="0.1 -0.02 0">
            <joint name="grip2" type="slide" axis="0 -1 0"/><geom size="0.01"/>
          </body>
        </body>
      </body>
    </body>
    <body name="cube" pos="-0.4 0 0.5"><freejoint/><geom type="box" size="0.1 0.1 0.1" pos="0.02 0 0"/></body>
  </worldbody>
</mujoco>
"""
# The same by another hand: the base's frame is turned and lower, lift has the other sign and a zero of its own, the
# hand's frame lies elsewhere, the thumb follows by an equality, and a lamp moves.
NEAR = """
<mujoco>
  <worldbody>
    <body name="arm" pos="0.3 0 0.5" euler="0 0 110">
      <geom size="0.05" pos="0 0 0.1"/>
      <body name="upper_arm" pos="0 0 0.1" euler="0 0 -90">
        <body name="turned" euler="0 45 0">
          <joint name="raise" axis="0 -1 0"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04"/>
          <body name="tool" pos="0.4 0 0" euler="0 0 180">
            <joint name="out" type="slide" axis="-1 0 0"/><geom size="0.05"/>
            <body name="left" pos="0 -0.02 0"><joint name="left" type="slide" axis="0 -1 0"/><geom size="0.01"/></body>
            <body name="right" pos="0 0.02 0"><joint name="right" type="slide" axis="0 1 0"/><geom size="0.01"/></body>
          </body>
        </body>
      </body>
    </body>
    <body name="box"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>
    <body name="lamp"><joint name="sway" axis="1 0 0"/><geom size="0.1"/></body>
  </worldbody>
  <equality><joint joint1="right" joint2="left" polycoef="0 1 0 0 0"/></equality>
</mujoco>
"""
QUARTER = [0.7071067811865476, 0, 0, 0.7071067811865476]
PLAIN: dict[str, Any] = {
    "version": 1,
    "entities": {
        "robot": {
            "model": "arm",
            "base": {"position": [0, 0, -0.1], "quaternion": QUARTER},
            "joints": {
                "lift": {"name": "raise", "sign": -1, "offset": float(np.radians(45))},
                "reach": {"name": "out"},
                "grip": "left",
            },
            "links": {
                "upper": "turned",
                "hand": {"name": "tool", "position": [0.1, 0, 0], "quaternion": [0, 0, 0, 1]},
                "finger": {"name": "left", "quaternion": [0, 0, 0, 1]},
                "thumb": {"name": "right", "quaternion": [0, 0, 0, 1]},
            },
            "ignore_joints": {"grip2": "the model's equality has it follow"},
        },
        "cube": {"model": "box", "base": {"position": [0.02, 0, 0]}},
    },
    "ignore": {
        "model_entities": {"lamp": "decoration"},
        "model_joints": {"arm/right": "follows left"},
    },
}


def changed(*path: str, to: Any = None) -> dict[str, Any]:
    """PLAIN with one value set, or taken out."""
    plain = copy.deepcopy(PLAIN)
    table = plain
    for key in path[:-1]:
        table = table.setdefault(key, {})
    if to is None:
        del table[path[-1]]
    else:
        table[path[-1]] = to
    return plain


@pytest.fixture(scope="module")
def far() -> tuple[SceneLayout, np.ndarray]:
    """The layout and some hundred states of the far scene, the cube tumbling."""
    model = mujoco.MjModel.from_xml_string(FAR)
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qvel[4:] = [0.3, 0, 0.5, 3.0, 2.0, 1.0]
    values = []
    for step in range(100):
        mujoco.mj_step(model, data, 5)
        data.qpos[:4] = [np.sin(step / 10), 0.1 * np.sin(step / 5), 0.01 * np.cos(step), 0.01 * np.cos(step)]
        values.append(scene.read(data).values)
    return scene.layout, np.array(values)


@pytest.fixture(scope="module")
def near() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(NEAR)


def shown(far, near, plain: Any) -> Any:
    with Replayer(near, mapping=plain) as replayer:
        return replayer.set_states(*far), replayer.fidelity, replayer


def test_signs_scales_offsets_bases_and_links_all_at_once(far, near):
    result, fidelity, replayer = shown(far, near, PLAIN)
    assert fidelity.max_position_error_m < 1e-12
    assert fidelity.max_rotation_error_rad < 1e-7
    assert fidelity.max_joint_error_rad < 1e-12
    assert fidelity.links == 8  # arm and box, and five links and one
    names = replayer.mapped_states(far[0]).captured_names
    assert names["arm"] == "robot"
    assert names["arm/raise"] == "robot/lift"
    assert result.local.shape == (100, replayer.scene.layout.size)


@pytest.mark.parametrize(
    ("path", "value", "worst"),
    [
        (("entities", "robot", "joints", "lift", "sign"), 1, "arm/"),
        (("entities", "robot", "joints", "reach", "scale"), 2.0, "arm/"),
        (("entities", "robot", "joints", "lift", "offset"), 0.3, "arm/"),
        (("entities", "robot", "base"), {}, "arm"),
        (("entities", "robot", "links", "hand"), "tool", "arm/tool"),
    ],
)
def test_each_of_them_shows_when_it_is_wrong(far, near, path, value, worst):
    _, fidelity, _ = shown(far, near, changed(*path, to=value))
    assert fidelity.max_position_error_m > 0.01
    assert fidelity.worst_position.startswith(worst)


def test_an_equality_moves_the_joint_that_nothing_sets(far, near):
    with Replayer(near, mapping=PLAIN) as replayer:
        replayer.set_states(*far)
        assert replayer.data.joint("right").qpos == replayer.data.joint("left").qpos != 0
        assert replayer.data.joint("sway").qpos == 0


def test_velocities_are_those_of_the_model_s_origin_in_its_own_axes(far, near):
    origin = [1.0, 2.0, 0.5, *QUARTER]
    plain = {**PLAIN, "origin": {"position": origin[:3], "quaternion": origin[3:]}}
    mapped = Mapping.from_plain(plain).compile(far[0], MujocoScene(near).layout, scene=MujocoScene(near))
    values = mapped.apply(far[1])
    box = mapped.layout.offsets["box"]
    times, poses, velocities = values[:, 0], values[:, box : box + 7], values[:, box + 7 : box + 13]
    # A tumbling cube: the path's own slope, from both sides, is the velocity.
    slope = (poses[2:20, :3] - poses[:18, :3]) / (times[2:20] - times[:18])[:, None]
    np.testing.assert_allclose(slope, velocities[1:19, :3], atol=2e-3)
    offset = far[0].offsets["cube"]
    expected = compose(origin, compose(far[1][:, offset : offset + 7], [0.02, 0, 0, 1, 0, 0, 0]))
    np.testing.assert_allclose(poses, expected, atol=1e-12)


def test_the_world_may_have_another_origin(far):
    """The same scene built elsewhere by hand: moved by (1, 2, 0.5), turned a quarter to the left."""
    moved = mujoco.MjModel.from_xml_string(
        FAR.replace('pos="0.3 0 0.6" euler="0 0 20"', 'pos="1 2.3 1.1" euler="0 0 110"')
    )
    origin = [1.0, 2.0, 0.5, *QUARTER]
    plain = {"version": 1, "origin": {"position": list(origin[:3]), "quaternion": list(origin[3:])}}
    _, fidelity, _ = shown(far, moved, plain)
    assert fidelity.max_position_error_m < 1e-12
    _, fidelity, _ = shown(far, moved, None)
    assert fidelity.max_position_error_m > 1.0  # an unmoved mapping is seen


def test_one_row_and_many_give_the_same(far, near):
    mapped = Mapping.from_plain(PLAIN).compile(far[0], MujocoScene(near).layout, scene=MujocoScene(near))
    many = mapped.apply(far[1])
    assert many.shape == (100, mapped.layout.size)
    np.testing.assert_array_equal(mapped.apply(far[1][7]), many[7])
    with pytest.raises(InputError, match="states of this capture have"):
        mapped.apply(far[1][:, :-1])


def test_without_a_mapping_the_very_values_pass(far):
    scene = MujocoScene(mujoco.MjModel.from_xml_string(FAR))
    mapped = Mapping().compile(far[0], scene.layout, scene=scene)
    assert mapped.apply(far[1]) is far[1]
    assert mapped.layout is far[0]


def test_a_fixed_base_elsewhere_is_seen_or_moved(far):
    model = mujoco.MjModel.from_xml_string(FAR.replace('pos="0.3 0 0.6"', 'pos="0.3 0.5 0.6"'))
    before = model.body("robot").pos.copy()
    _, fidelity, _ = shown(far, model, None)
    assert fidelity.max_position_error_m == pytest.approx(0.5)
    _, fidelity, _ = shown(far, model, {"version": 1, "entities": {"robot": {"move_base": True}}})
    assert fidelity.max_position_error_m < 1e-12
    assert (model.body("robot").pos == before).all()  # the caller's model stays as it is


def test_what_states_place_anyway_cannot_be_moved(far):
    model = mujoco.MjModel.from_xml_string(FAR)
    with pytest.raises(ReplayError, match="'cube' cannot be moved: states place it anyway"):
        shown(far, model, {"version": 1, "entities": {"cube": {"move_base": True}}})
    jointed = FAR.replace('<geom size="0.05"/>', '<joint name="spin" axis="0 0 1"/><geom size="0.05"/>')
    plain = {"version": 1, "entities": {"robot": {"move_base": True}}, "ignore": {"model_joints": {"robot/spin": "-"}}}
    with pytest.raises(ReplayError, match="joints of its own"):
        shown(far, mujoco.MjModel.from_xml_string(jointed), plain)


def test_a_joint_in_another_unit(far):
    layout, values = far
    place = layout.offsets["robot"] + 13 + layout.entity("robot").joint_names.index("reach")
    millimetres = values.copy()
    millimetres[:, [place, place + 4]] *= 1000.0
    model = mujoco.MjModel.from_xml_string(FAR)
    plain = {"version": 1, "entities": {"robot": {"joints": {"reach": {"name": "reach", "scale": 0.001}}}}}
    result, fidelity, _ = shown((layout, millimetres), model, plain)
    assert fidelity.max_position_error_m < 1e-12
    np.testing.assert_allclose(result.local[:, place + 4], values[:, place + 4], atol=1e-12)
    assert shown((layout, millimetres), model, None)[1].max_position_error_m > 1.0


def test_one_captured_joint_may_set_several(far, near):
    plain = changed("ignore", "model_joints")
    plain["entities"]["robot"]["joints"]["grip"] = ["left", {"name": "right", "sign": 1}]
    _, fidelity, _ = shown(far, near, plain)
    assert fidelity.max_position_error_m < 1e-12


TWO_ARMS = """
<mujoco><worldbody>
  <body name="left_base" pos="0 0.5 0"><geom size="0.1"/>
    <body name="left_link"><joint name="left_joint" axis="0 0 1"/><geom size="0.1" pos="0.2 0 0"/></body></body>
  <body name="right_base" pos="0 -0.5 0"><geom size="0.1"/>
    <body name="right_link"><joint name="right_joint" axis="0 0 1"/><geom size="0.1" pos="0.2 0 0"/></body></body>
</worldbody></mujoco>
"""
ONE_ROBOT = TWO_ARMS.replace("<worldbody>", '<worldbody><body name="robot"><geom size="0.05"/>').replace(
    "</worldbody>", "</body></worldbody>"
)


@pytest.mark.parametrize("bases", [True, False])
def test_one_robot_may_be_several_bodies_of_the_model(bases):
    model = mujoco.MjModel.from_xml_string(ONE_ROBOT)
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qpos[:] = [0.4, -0.7]
    state = scene.read(data)
    sides = ("left", "right")
    robot: dict[str, Any] = {"model": None, "joints": {f"{side}_joint": f"{side}_joint" for side in sides}}
    robot["links"] = {f"{side}_link": f"{side}_link" for side in sides}
    robot["ignore_links"] = {"robot": "the model has no torso"}
    if bases:
        robot["links"] |= {f"{side}_base": f"{side}_base" for side in sides}
    else:
        robot["ignore_links"] |= {f"{side}_base": "not told" for side in sides}
    plain = {"version": 1, "entities": {"robot": robot}}
    with Replayer(mujoco.MjModel.from_xml_string(TWO_ARMS), mapping=plain) as replayer:
        replayer.set_state(state)
        assert replayer.fidelity.max_position_error_m < 1e-12
        assert replayer.data.joint("right_joint").qpos == -0.7
    moved = mujoco.MjModel.from_xml_string(TWO_ARMS.replace('pos="0 0.5 0"', 'pos="0 0.6 0"'))
    with Replayer(moved, mapping=plain) as replayer:
        replayer.set_state(state)
        assert replayer.fidelity.max_position_error_m == pytest.approx(0.1)  # seen by the links, whatever the base says


# ---- the file


def test_a_file_and_back(tmp_path):
    import yaml

    mapping = Mapping.from_plain(PLAIN)
    assert Mapping.from_plain(mapping.to_plain()) == mapping
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    assert Mapping.load(path) == as_mapping(str(path)) == as_mapping(PLAIN) == mapping
    assert as_mapping(None) == Mapping() == Mapping.from_plain({"version": 1})
    assert Mapping.from_plain(Mapping(add_missing=True).to_plain()).add_missing


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ([], "a mapping must be a table"),
        ({}, "version is None; this remote_env reads version 1"),
        ({"version": 2}, "version is 2"),
        ({"version": 1, "entitys": {}}, "unknown key entitys; did you mean 'entities'?"),
        (changed("entities", "robot", "jonts", to={}), r"unknown key entities\.robot\.jonts; did you mean 'joints'"),
        (changed("entities", "robot", "joints", "lift", "sing", to=1), r"joints\.lift\.sing; did you mean 'sign'"),
        (changed("entities", "robot", "joints", "lift", "sign", to=2), "sign is 2.0; allowed are 1 and -1"),
        (changed("entities", "robot", "joints", "reach", "scale", to=-1), "scale is -1.0; it must be above 0"),
        (changed("entities", "robot", "joints", "reach", "scale", to="1 cm"), "must be a finite number, not '1 cm'"),
        (changed("entities", "robot", "joints", "reach", "offset", to=float("nan")), "finite number, not nan"),
        (changed("entities", "robot", "joints", "grip", to=[]), "joints.grip names nothing"),
        (changed("entities", "robot", "joints", "lift", "name"), "lift.name must be a name, not None"),
        (changed("entities", "robot", "base", "quaternion", to=[0, 0, 0, 0]), "has norm 0; it must be 1"),
        (changed("entities", "robot", "base", "position", to=[0, 0]), r"position must be 3 numbers, not \[0, 0\]"),
        (changed("entities", "robot", "move_base", to="maybe"), "true or false, not 'maybe'"),
        (changed("entities", "robot", "ignore_joints", "grip2", to=" "), "needs a reason"),
        ({"version": 1, "entities": {1: {}}}, "the name 1 is no text; put it in quotes"),
    ],
)
def test_what_is_no_mapping_says_where(plain, said):
    with pytest.raises(ConfigError, match=said):
        Mapping.from_plain(plain)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nentities:\n  robot: arm\n  robot: leg\n", "line 3: 'robot' stands twice"),
        ("version: [1\n", "this is no YAML"),
        ("", "must be a table of names, not None"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, text, said):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"mapping.yaml: .*{said}"):
        Mapping.load(path)
    with pytest.raises(ConfigError, match=r"none.yaml: there is no mapping to read .*remote-env map"):
        Mapping.load(tmp_path / "none.yaml")


# ---- names


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        (changed("entities", "robt", to="arm"), "entities.robt: the capture has no such entity; did you mean 'robot'"),
        (changed("entities", "robot", "model", to="arn"), "the model has no entity 'arn'; did you mean 'arm'"),
        (changed("entities", "robot", "joints", "lyft", to="raise"), "no such joint; did you mean 'lift'"),
        (changed("entities", "robot", "joints", "grip", to="lefd"), "no joint 'lefd'; did you mean 'left'"),
        (changed("entities", "robot", "links", "hand", to="tul"), "the model has no body 'tul'"),
        (changed("entities", "robot", "links", "hant", to="tool"), "no such link; did you mean 'hand'"),
        (changed("entities", "robot", "joints", "grip", to="out"), "'out' is set by another captured joint"),
        (changed("entities", "robot", "links", "thumb", to="left"), "'left' has another captured link"),
        (changed("entities", "cube", "model", to="arm"), "'robot' and 'cube' are both mapped to 'arm'"),
        (changed("entities", "robot", "ignore_joints", "lift", to="why"), "lift is both mapped and ignored"),
        (changed("ignore", "entities", to={"tabel": "-"}), "ignore.entities.tabel: the capture has no such"),
        (changed("ignore", "model_entities", "lam", to="-"), "the model has no such entity; did you mean 'lamp'"),
        (changed("ignore", "model_entities", "box", to="-"), "ignore.model_entities.box: it is mapped, too"),
        (changed("ignore", "model_joints", "arm/out", to="-"), "ignore.model_joints.arm/out: it is mapped, too"),
        (changed("ignore", "model_joints", "arm/wrong", to="-"), "the model has no such joint"),
    ],
)
def test_what_a_mapping_says_and_cannot_be_is_named(far, near, plain, said):
    with pytest.raises(ReplayError, match=said):
        shown(far, near, plain)


def test_whatever_is_left_over_is_listed_on_both_sides(far, near):
    plain = changed("entities", "robot", "ignore_joints")
    del plain["ignore"], plain["entities"]["cube"], plain["entities"]["robot"]["joints"]["lift"]
    with pytest.raises(ReplayError) as caught:
        shown(far, near, plain)
    message = str(caught.value)
    assert "only in the capture: robot/joint lift, robot/joint grip2, cube;" in message
    assert "only in the model: arm/joint raise, arm/joint right, box, lamp;" in message
    assert "remote-env map CAPTURE MODEL" in message


def test_a_link_may_say_where_another_body_is(far):
    """What is expected of a model's body is the captured pose times the offset."""
    model = mujoco.MjModel.from_xml_string(FAR)
    offset = np.array([0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5])
    link = {"name": "hand", "position": list(offset[:3]), "quaternion": list(offset[3:])}
    result, _, replayer = shown(far, model, {"version": 1, "entities": {"robot": {"links": {"hand": link}}}})
    layout = replayer.mapped_states(far[0]).layout
    entity = layout.entity("robot")
    place = layout.offsets["robot"] + 13 + 2 * 4 + 7 * entity.link_names.index("hand")
    expected, captured = result.expected[:, place : place + 7], far[1][:, place : place + 7]
    np.testing.assert_allclose(compose(invert(captured), expected), np.tile(offset, (100, 1)), atol=1e-12)


def _laugh(levels):
    """Ten times the line before, again and again: ten to the power of `levels` of one line."""
    lines = [f"&b0 [{', '.join('x' * 10)}]"] + [f"&b{i + 1} [{', '.join([f'*b{i}'] * 10)}]" for i in range(levels)]
    return f"version: 1\nentities: [{', '.join(lines)}]\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (_laugh(11), "entities must be a table of names, not [["),
        ("version: 1\nentities: &a\n  robot: *a\n", "unknown key entities.robot.robot"),
        ("&a [*a]", "a mapping must be a table of names, not [["),
        (f"version: 1\norigin: {{position: [0, 0, 1{'0' * 400}]}}", "origin.position must be a finite number"),
        ("version: 1\norigin: {position: [0, 0, 1.0e+300]}", "origin.position must be a finite number"),
        (f"version: 1{'0' * 5000}", "this is no YAML: Exceeds the limit"),
        ("version: 1\nentities: " + "{a: " * 1000 + "}" * 1000, "this is no YAML: maximum recursion depth"),
        ("#" * 2_000_000, "a mapping has up to 1048576 characters"),
    ],
    ids=["laughs", "circle", "list in itself", "huge int", "huge float", "long int", "deep", "long"],
)
def test_a_hostile_file_is_refused_in_few_words(tmp_path, text, told):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Mapping.load(path)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 1000
