"""What is told when a capture does not fit a local model, and when it is not shown as it was captured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from quotes import ROOT, produces
from replay_scene import ARM, record, simulate

from remote_env.cli import main
from remote_env.record import read_episode
from remote_env.record.episode import Episode
from remote_env.replay import Replayer, replay, replay_episode
from remote_env.replay.conventions import reordered
from remote_env.replay.mapping import Mapping
from remote_env.replay.models import load_model
from remote_env.state import SceneState

OTHER = ARM.replace('name="arm"', 'name="robot"').replace('name="lift"', 'name="joint1"')
SHIFTED = ARM.replace('pos="0.3 0 0.6"', 'pos="0.35 0 0.6"')
Printed = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the models arm.xml, which was simulated, other.xml, of other names, and shifted.xml."""
    folder = tmp_path_factory.mktemp("models")
    for name, text in (("arm", ARM), ("other", OTHER), ("shifted", SHIFTED)):
        (folder / f"{name}.xml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def capture(folder: Path) -> Path:
    return record(folder, simulate(mujoco.MjModel.from_xml_string(ARM), 3))


@pytest.fixture(scope="module")
def episode(capture: Path) -> Episode:
    return read_episode(capture)


def set_states(episode: Episode, folder: Path, change: Callable[[Any], Any]) -> None:
    with Replayer(folder / "arm.xml") as replayer:
        replayer.set_states(episode.layout, change(np.array(episode.scene_values)))


@pytest.fixture
def printed(capture: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    """The line with these words that `remote-env map` prints of the capture."""

    def run(words: str, *arguments: str) -> str:
        main(["map", str(capture), *arguments])
        output, complaints = capsys.readouterr()
        return next(line for line in (output + complaints).splitlines() if words in line)

    return run


# The model


@produces("ReplayError: there is no model file …; give an MJCF, URDF or .mjb file, …")
def test_a_model_that_is_not_there() -> None:
    load_model("arm.xml")


@produces("ReplayError: MuJoCo does not load …: …")
def test_a_model_that_mujoco_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "arm.xml").write_text("<mujoco><worldbody><geom/></worldbody></mujoco>")
    load_model(tmp_path / "arm.xml")


@produces("ReplayError: …: the mesh … is not there; it was looked for as …. Put the meshes there, …")
def test_a_urdf_without_its_meshes(tmp_path: Path) -> None:
    mesh = '<visual><geometry><mesh filename="package://arm/base.stl"/></geometry></visual>'
    (tmp_path / "arm.urdf").write_text(f'<robot name="arm"><link name="base">{mesh}</link></robot>')
    load_model(tmp_path / "arm.urdf")


@produces("ReplayError: robot_descriptions:… needs a package that is not installed here: …")
def test_a_description_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robot_descriptions", None)
    load_model("robot_descriptions:panda_mj_description")


@produces("Unsupported: no local model is known for …: name one with --model FILE.xml, or --model capture …")
def test_a_task_of_another_simulator_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("replay_tasks").Task("Isaac-Cartpole-Direct", simulator="isaaclab").local_model()


@produces(
    "ReplayError: the model 'capture' is made from the capture's own description of its scene, and this one has none…"
)
def test_a_capture_that_tells_nothing_of_its_scene(episode: Episode) -> None:
    load_model("capture", description=episode.description)


@produces("ReplayError: add_missing adds from the capture's own primitives, and this one tells of none…")
def test_nothing_to_add(folder: Path, episode: Episode) -> None:
    replay_episode(episode, folder / "other.xml", mapping={"version": 1, "add_missing": True})


# Names


@produces("ReplayError: there are no scene states to replay; capture them: …")
def test_a_capture_without_states(episode: Episode, folder: Path) -> None:
    replay_episode(replace(episode, layout=None, scene_values=None), folder / "arm.xml")


@produces("ReplayError: the capture (of …) does not fit the local model: only in the capture: …; only in the model: …")
def test_names_that_do_not_match(episode: Episode, folder: Path) -> None:
    replay_episode(episode, folder / "other.xml")


@produces("ReplayError: the mapping does not fit the capture (of …) and the local model: …")
def test_a_mapping_of_other_names(episode: Episode, folder: Path) -> None:
    replay_episode(episode, folder / "arm.xml", mapping={"version": 1, "entities": {"amr": {"model": "arm"}}})


@produces("not every name is settled: complete …, then check it: remote-env map …")
def test_a_proposal_with_guesses(printed: Printed, folder: Path, tmp_path: Path) -> str:
    return printed("not every", str(folder / "other.xml"), "-o", str(tmp_path / "mapping.yaml"))


@produces("error: … exists; --force writes over it")
def test_a_proposal_onto_a_file(printed: Printed, folder: Path) -> str:
    return printed("exists", str(folder / "arm.xml"), "-o", str(folder / "other.xml"))


def mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "mapping.yaml").write_text(text)
    Mapping.load(tmp_path / "mapping.yaml")


@produces("ConfigError: …: there is no mapping to read (…); …")
def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    Mapping.load(tmp_path / "mapping.yaml")


@produces("ConfigError: …: this is no YAML: …")
def test_a_mapping_that_is_no_yaml(tmp_path: Path) -> None:
    mapping(tmp_path, "version: 1\nentities: {arm: {")


@produces("ConfigError: …: unknown key …")
def test_a_key_that_is_none(tmp_path: Path) -> None:
    mapping(tmp_path, "version: 1\nentities: {arm: {joint: {lift: raise}}}")


@produces("ConfigError: …: … names nothing; to leave it out, give the reason under ignore_…")
def test_a_proposed_name_without_an_answer(tmp_path: Path) -> None:
    mapping(tmp_path, "version: 1\nentities: {arm: {joints: {lift: }}}")


@produces("ConfigError: …: … needs a reason, as …")
def test_something_left_out_without_a_reason(tmp_path: Path) -> None:
    mapping(tmp_path, "version: 1\nentities: {arm: {ignore_joints: {lift: }}}")


@produces("ConfigError: …: ….quaternion has norm …; it must be 1, in the order w, x, y, z")
def test_a_rotation_of_a_mapping_that_is_none(tmp_path: Path) -> None:
    mapping(tmp_path, "version: 1\nentities: {arm: {base: {quaternion: [0, 0, 0, 2]}}}")


# What is shown


def as_xyzw(episode: Episode, values: Any) -> Any:
    for _ in range(3):  # four times would be none
        values = reordered(episode.layout, values)
    return values


@produces("ReplayError: the capture mixes orders of quaternions: …")
def test_a_root_in_another_order_than_its_links(episode: Episode, folder: Path) -> None:
    root = np.s_[:, episode.layout.offsets["arm"] + 3 :][1]

    def turn(values: Any) -> Any:
        values[:, root.start : root.start + 4] = np.roll(values[:, root.start : root.start + 4], -1, axis=1)
        return values

    set_states(episode, folder, turn)


@produces("ReplayError: every quaternion of the capture looks like x, y, z, w: …")
def test_a_capture_in_another_order(episode: Episode, folder: Path) -> None:
    set_states(episode, folder, lambda values: as_xyzw(episode, values))


@produces("ReplayError: the time of state … is … s after … s; times must not go back. …")
def test_two_episodes_in_one(episode: Episode, folder: Path) -> None:
    values = np.concatenate([episode.scene_values, episode.scene_values])
    replay([SceneState(episode.layout, row) for row in values], folder / "arm.xml").save_video(folder / "video.mp4")


@produces("ReplayError: … is not shown as it was captured: … is off by … at state … (allowed: …)…")
def test_a_model_that_stands_elsewhere(episode: Episode, folder: Path) -> None:
    replay_episode(episode, folder / "shifted.xml").report.check(0.001)


def noted(episode: Episode, words: str, model: Path) -> str:
    return next(line for line in replay_episode(episode, model).report.lines() if words in line)


@produces("the captured quaternions look like x, y, z, w; states hold w, x, y, z")
def test_a_capture_in_another_order_that_is_only_compared(episode: Episode, folder: Path) -> str:
    return noted(replace(episode, scene_values=as_xyzw(episode, episode.scene_values)), "look", folder / "arm.xml")


@produces("whatever is off in position is off by the same (…) m, capture minus model: …")
def test_a_base_that_stands_elsewhere(episode: Episode, folder: Path) -> str:
    return noted(episode, "the same", folder / "shifted.xml")


@produces("the states' own rate is … Hz; the capture says … Hz")
def test_another_rate(episode: Episode, folder: Path) -> str:
    return noted(replace(episode, info=replace(episode.info, rate_hz=30.0)), "rate", folder / "arm.xml")


@produces("of … states … have the time of the one before, …the first at state …")
def test_times_that_stand_still(episode: Episode, folder: Path) -> str:
    values = np.array(episode.scene_values)
    values[1, 0] = 0.0
    return noted(replace(episode, scene_values=values), "time of the one before", folder / "arm.xml")


@produces("… is … beyond its range … at state …")
def test_a_joint_beyond_its_range(episode: Episode, folder: Path, tmp_path: Path) -> str:
    (tmp_path / "narrow.xml").write_text(ARM.replace('range="-1 1"', 'range="0.5 1"'))
    return noted(episode, "beyond", tmp_path / "narrow.xml")


@produces("in the local model … and … sink into each other, by … mm at state … (…)")
def test_bodies_that_sink_into_each_other(episode: Episode, folder: Path, tmp_path: Path) -> str:
    (tmp_path / "large.xml").write_text(ARM.replace('size="0.1 0.1 0.1"', 'size="0.3 0.3 0.495"'))
    return noted(episode, "sink", tmp_path / "large.xml")


@produces("not compared, for the model lacks them: …")
def test_links_that_the_model_lacks(episode: Episode, folder: Path, tmp_path: Path) -> str:
    text = ARM.replace('<body name="hand" pos="0.3 0 0">', '<body name="tool" pos="0.3 0 0">')
    (tmp_path / "tool.xml").write_text(text)
    return noted(episode, "lacks", tmp_path / "tool.xml")


@produces("error: there is no .hdf5 in the folder …; parts are recovered with: remote-env repair")
def test_a_folder_without_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main(["replay", str(tmp_path)])
    return capsys.readouterr().err
