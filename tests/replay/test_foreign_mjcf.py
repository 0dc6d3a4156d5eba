"""Scenes that come with somebody else's capture: no other file is read, and no memory taken on a word."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from remote_env.errors import ReplayError
from remote_env.record import read_episode
from remote_env.replay import contacts
from remote_env.replay.contacts import find_contacts
from remote_env.replay.foreign_mjcf import MAX_BODIES, MAX_BYTES, tamed
from remote_env.replay.models import load_model
from remote_env.replay.own_scene import MAX_SHAPES
from remote_env.state import SceneDescription, Shape
from remote_env.tasks.mujoco_scene import MujocoScene

GOLDEN = Path(__file__).parents[1] / "data" / "isaac_pick.hdf5"
BODY = '<worldbody><body name="b"><geom size="1"/></body></worldbody>'


def scene(text: str) -> SceneDescription:
    return SceneDescription(mjcf=text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<mujoco><include file="{secret}"/></mujoco>', "<include> is not for a scene from elsewhere"),
        ('<mujoco><worldbody><include file="{secret}"/></worldbody></mujoco>', "<include> '' makes things"),
        ('<mujoco><asset><mesh name="m" file="{secret}"/></asset></mujoco>', r"<mesh> 'm' reads the file '/"),
        ('<mujoco><asset><texture type="cube" fileup="{secret}"/></asset></mujoco>', "<texture> '' reads the file"),
        ('<mujoco><asset><model name="m" file="{secret}"/></asset></mujoco>', "<model> 'm' makes things"),
        ('<mujoco><extension><plugin plugin="x"/></extension></mujoco>', "<extension> is not for"),
        ('<mujoco><asset><mesh><plugin plugin="x"/></mesh></asset></mujoco>', "<plugin>"),
        ('<mujoco><worldbody><replicate count="1000000"/></worldbody></mujoco>', "<replicate>"),
        ('<mujoco><asset><texture builtin="flat" type="cube" width="20000"/></asset></mujoco>', "2400000000 pixels"),
        ('<mujoco><asset><texture builtin="flat" width="1e9"/></asset></mujoco>', "width='1e9', no size"),
        ('<mujoco><asset><hfield nrow="9999" ncol="9999" size="1 1 1 1"/></asset></mujoco>', "height fields 99980001"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]><mujoco model="&b;"/>', "declares a document type"),
        ("<mujoco><worldbody>" + "<body/>" * (MAX_BODIES + 1) + "</worldbody></mujoco>", f"{MAX_BODIES} bodies"),
        ('<robot name="r"/>', "its first element is <robot>"),
        ("\x1b[31m", "it is no XML"),
        (" " * (MAX_BYTES + 1), f"allowed are {MAX_BYTES}"),
    ],
)
def test_what_names_files_or_asks_for_much_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "secret.xml").write_text("<mujocoinclude><asset/></mujocoinclude>")
    with pytest.raises(ReplayError, match=f"own MJCF is not used: .*{said}"):
        load_model("capture", description=scene(text.replace("{secret}", str(tmp_path / "secret.xml"))))


def test_what_takes_memory_or_time_and_is_never_seen_is_left_out() -> None:
    greedy = (
        '<size memory="1000G" nuserdata="2000000000" nuser_body="100000000" nkey="1000000000"/>'
        '<option ccd_iterations="2000000000" gravity="0 0 -1"/><visual><quality shadowsize="1000000"/></visual>'
    )
    body = BODY.replace("<geom", f'<geom user="{"1 " * 999}"')
    model = load_model("capture", description=scene(f"<mujoco>{greedy}{body}</mujoco>"))
    assert model.narena < 1 << 30
    assert model.opt.ccd_iterations < 1000
    assert model.opt.gravity[2] == -1
    assert model.nuserdata == model.nuser_body == model.nuser_geom == model.nkey == 0
    assert model.vis.quality.shadowsize < 10_000


def test_what_isaac_lab_wrote_stays_as_it_is() -> None:
    description = read_episode(GOLDEN).description
    assert description is not None
    before, after = (
        mujoco.MjModel.from_xml_string(description.mjcf),
        mujoco.MjModel.from_xml_string(tamed(description.mjcf)),
    )
    for name in ("nbody", "njnt", "ngeom", "neq", "nexclude"):
        assert getattr(before, name) == getattr(after, name)
    np.testing.assert_array_equal(before.geom_size, after.geom_size)
    np.testing.assert_array_equal(before.body_pos, after.body_pos)


def test_too_many_shapes_are_refused() -> None:
    shapes = tuple(Shape("cube", "cube", "box", (1.0, 1.0, 1.0)) for _ in range(MAX_SHAPES + 1))
    with pytest.raises(ReplayError, match=f"tells of {MAX_SHAPES + 1} shapes; up to {MAX_SHAPES}"):
        load_model("capture", description=SceneDescription(shapes))


def test_a_scene_in_which_everything_overlaps_keeps_its_deepest_contacts(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = "".join(
        f'<body name="b{index}" pos="{index * index / 100} 0 0"><freejoint/><geom size="1"/></body>'
        for index in range(6)
    )
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    own = MujocoScene(model)
    values = np.stack([own.read(mujoco.MjData(model)).values] * 3)
    every = find_contacts(model, own.writer(own.layout), values, deeper_than_m=0.001)
    assert len(every) == 15
    assert {contact.states for contact in every} == {3}
    monkeypatch.setattr(contacts, "MAX_PAIRS", 4)
    assert find_contacts(model, own.writer(own.layout), values, deeper_than_m=0.001) == every[:4]
