"""Proposals of mappings: what is certain, what is a guess, and the file that says which."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

import mujoco
import pytest

from remote_env.errors import ConfigError, ReplayError
from remote_env.replay import Replayer
from remote_env.replay.alike import closest, did_you_mean, similarity
from remote_env.replay.mapping import Mapping
from remote_env.replay.proposal_text import proposal_yaml
from remote_env.replay.propose import match_names, propose
from remote_env.state import EntityLayout, SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene

ROBOT = EntityLayout("Robot", ("shoulder_lift_joint", "lift_joint", "finger_joint"), ("base_link", "arm_link", "hand"))
CUBE = EntityLayout("cube", (), ("Cube",))
CAPTURED = SceneLayout((ROBOT, CUBE), "isaaclab 3.0.0")


def model(prefix: str = "", joints: tuple[str, ...] = ROBOT.joint_names, *, extra: str = "", root: str = "base_link"):
    text = f"""
    <mujoco><worldbody><body name="{prefix}{root}"><geom size="0.1"/>
      <body name="{prefix}arm_link"><joint name="{prefix}{joints[0]}"/><geom size="0.1"/>
        <body><joint name="{prefix}{joints[1]}"/><geom size="0.1"/>
          <body name="{prefix}hand"><joint name="{prefix}{joints[2]}"/><geom size="0.1"/></body></body></body></body>
      <body name="{prefix}Cube"><freejoint/><geom size="0.1"/></body></worldbody>{extra}</mujoco>"""
    return mujoco.MjModel.from_xml_string(text)


def aloha() -> mujoco.MjModel:
    folder = Path(str(importlib.resources.files("gym_aloha") / "assets"))
    return mujoco.MjModel.from_xml_path(str(folder / "bimanual_viperx_transfer_cube.xml"))


def test_the_same_model_is_all_exact():
    given = aloha()
    proposal = propose(MujocoScene(given).layout, given)
    assert proposal.is_complete
    assert not proposal.guesses
    matches = [match for entity in proposal.entities for match in (*entity.joints, *entity.links)]
    assert {match.kind for match in matches} == {"exact"}
    assert len(matches) > 30


@pytest.mark.parametrize("prefix", ["", "_World_envs_env_0_Robot_", "left/", "ROBOT0:"])
def test_prefixes_and_case_are_certain(prefix, tmp_path):
    given = model(prefix)
    proposal = propose(CAPTURED, given)
    assert proposal.is_complete
    assert not proposal.guesses
    # lift_joint ends shoulder_lift_joint, too; each finds its own by the prefix that all the others have.
    assert proposal.mapping.entities["Robot"].joints["lift_joint"][0].name == f"{prefix}lift_joint"
    path = tmp_path / "mapping.yaml"
    path.write_text(proposal_yaml(proposal))
    assert Mapping.load(path) == proposal.mapping
    with Replayer(given, mapping=path) as replayer:
        assert replayer.check_names(CAPTURED) == ()


def test_names_in_another_case():
    assert [match.kind for match in match_names(["Elbow", "wrist"], ["wrist", "ELBOW"])] == ["case", "exact"]


def test_what_could_be_two_is_neither():
    matches = match_names(["joint1"], ["left/joint1", "right/joint1"])
    assert [match.kind for match in matches] == ["guess"]


def test_guesses_are_shown_with_scores_and_never_taken(tmp_path):
    given = model("", ("shoulder_lift", "lift", "fingers"))
    proposal = propose(CAPTURED, given)
    assert not proposal.is_complete
    assert {what for what, _ in proposal.guesses} == {"joint of Robot"}
    assert all(0.6 <= match.score < 1 for _, match in proposal.guesses)
    assert not proposal.mapping.entities["Robot"].joints
    text = proposal_yaml(proposal, title="From here to there.")
    assert "\n  #     shoulder_lift_joint: shoulder_lift   # 0.83 alike\n" in text
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with Replayer(given, mapping=path) as replayer, pytest.raises(ReplayError, match="Robot/joint lift_joint"):
        replayer.check_names(CAPTURED)
    path.write_text(re.sub("^  # ", "  ", text, flags=re.MULTILINE))  # a person agrees
    with Replayer(given, mapping=path) as replayer:
        assert replayer.check_names(CAPTURED) == ()


def test_an_entity_of_another_name_is_known_by_its_parts():
    proposal = propose(CAPTURED, model(root="pedestal"))
    robot = proposal.entities[0]
    assert (robot.entity.local, robot.entity.kind) == ("pedestal", "parts")
    assert ("base_link", "pedestal") in {(match.captured, match.local) for match in robot.links}
    assert proposal.is_complete


def test_what_is_left_on_both_sides_is_a_guess():
    layout = SceneLayout((EntityLayout("franka", ("a", "b", "c")), EntityLayout("object")))
    text = proposal_yaml(propose(layout, model()))
    assert "# franka:   # the only one left" in text
    assert "# object:   # the only one left" in text
    assert "# Not settled yet, in the capture: franka, object" in text
    assert Mapping.from_plain(_parsed(text)) == Mapping()


def _parsed(text: str):
    import yaml

    return yaml.safe_load(text)


def test_nothing_alike_is_said_in_words():
    layout = SceneLayout((EntityLayout("x"), EntityLayout("y")))
    text = proposal_yaml(propose(layout, mujoco.MjModel.from_xml_string("<mujoco/>")))
    assert "# x: nothing is like it: name its root body in the model, or ignore it" in text


def test_a_joint_that_an_equality_ties_is_ignored_with_its_reason():
    tie = "<equality><joint joint1='finger_joint' joint2='lift_joint'/></equality>"
    layout = SceneLayout((EntityLayout("Robot", ROBOT.joint_names[:2], ROBOT.link_names), CUBE))
    proposal = propose(layout, model(extra=tie))
    assert proposal.is_complete
    reasons = proposal.mapping.ignore_model_joints
    assert reasons == {"base_link/finger_joint": "follows lift_joint by an equality of the model"}
    assert Mapping.from_plain(_parsed(proposal_yaml(proposal))) == proposal.mapping


def test_one_robot_that_is_two_in_the_model():
    text = "".join(
        f'<body name="{side}_base"><geom size="1"/><body name="{side}_hand"><joint name="{side}_joint"/>'
        '<geom size="1"/></body></body>'
        for side in ("left", "right")
    )
    given = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{text}</worldbody></mujoco>")
    robot = EntityLayout("left_base", ("left_joint", "right_joint"), ("left_base", "left_hand", "right_base"))
    proposal = propose(SceneLayout((robot,)), given)
    assert proposal.is_complete
    assert {match.local for match in proposal.entities[0].joints} == {"left_joint", "right_joint"}


@pytest.mark.parametrize("name", ["yes", "a: b", "#x", "", "1", "null", "it's", 'a"b', "å/b c"])
def test_any_name_is_written_so_that_it_is_read_again(name):
    import dataclasses

    proposal = propose(SceneLayout((EntityLayout("x"),)), mujoco.MjModel.from_xml_string("<mujoco/>"))
    odd = dataclasses.replace(proposal, mapping=Mapping(ignore_entities={name or "-": "a reason: 'why'"}))
    assert Mapping.from_plain(_parsed(proposal_yaml(odd))) == odd.mapping


def test_how_alike_names_are():
    assert similarity("Joint-1", "joint_1") == 1.0
    assert similarity("joint1", "joint2") == 0.0  # never the same, however alike
    assert similarity("pan", "shoulder_pan_joint") == 0.7
    assert closest("gripper", ["gripper_left", "elbow"])[0] == "gripper_left"
    assert closest("gripper", ["elbow"]) is None
    assert did_you_mean("liftt", ["lift", "pan"]) == "; did you mean 'lift'? (known: lift, pan)"
    assert "there are 40 names" in did_you_mean("x", [f"joint{index}" for index in range(40)])


def test_an_entity_both_proposed_and_written_wrongly_is_refused(tmp_path):
    path = tmp_path / "mapping.yaml"
    path.write_text(proposal_yaml(propose(CAPTURED, model())).replace("model:", "modell:"))
    with pytest.raises(ConfigError, match=r"modell; did you mean 'model'"):
        Mapping.load(path)
