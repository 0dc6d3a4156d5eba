"""Local models from URDF, from the capture itself, and completed from its shapes."""

from __future__ import annotations

import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from remote_env.errors import CaptureError, ReplayError
from remote_env.replay import Replayer, load_model
from remote_env.replay.files import whole_file
from remote_env.replay.mapping import Mapping
from remote_env.state import SceneDescription, SceneState, Shape
from remote_env.tasks.mujoco_scene import MujocoScene

URDF = """
<robot name="arm">
  <link name="base"><visual><geometry><box size="0.1 0.1 0.1"/></geometry></visual></link>
  <link name="upper">
    <inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>
    <collision><geometry><box size="0.1 0.1 0.3"/></geometry></collision>
  </link>
  <link name="lower">
    <inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>{mesh}
  </link>
  <link name="tip"/>
  <joint name="pan" type="revolute"><parent link="base"/><child link="upper"/><origin xyz="0 0 0.1"/>
    <axis xyz="0 0 1"/><limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
  <joint name="lift" type="revolute"><parent link="upper"/><child link="lower"/><origin xyz="0 0 0.3"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="1" effort="1" velocity="1"/>
    <mimic joint="pan" multiplier="0.5" offset="0.1"/></joint>
  <joint name="to_tip" type="fixed"><parent link="lower"/><child link="tip"/><origin xyz="0 0 0.2"/></joint>
</robot>
"""
MESH = '<visual><geometry><mesh filename="{}"/></geometry></visual>'
SCENE = """
<mujoco>
  <worldbody>
    <body name="arm" pos="0.2 0 0">
      <geom type="box" size="0.05 0.05 0.05"/>
      <body name="link" pos="0 0 0.1"><joint name="lift" axis="0 1 0"/><geom type="capsule" size="0.02 0.1"/></body>
    </body>
    <body name="cube" pos="-0.4 0 0.5"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>
  </worldbody>
</mujoco>
"""
SHAPES = (
    Shape("arm", "arm", "box", (0.05, 0.05, 0.05)),
    Shape("arm", "link", "capsule", (0.02, 0.1), rgba=(0, 0.3, 1, 1)),
    Shape("cube", "cube", "box", (0.1, 0.1, 0.1), rgba=(1, 0, 0, 1)),
)


def captured() -> SceneState:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    data.qpos[:] = [0.7, -0.3, 0.1, 0.4, 0.5, 0.5, 0.5, 0.5]
    return MujocoScene(model).read(data)


# ---- URDF


def test_a_urdf_keeps_its_root_its_fixed_links_and_its_mimic_joints(tmp_path):
    path = tmp_path / "arm.urdf"
    path.write_text(URDF.format(mesh=""))
    model = load_model(path)
    (arm,) = MujocoScene(model).layout.entities
    assert arm.name == "base"
    assert arm.link_names == ("base", "upper", "lower", "tip")
    assert arm.joint_names == ("pan", "lift")
    assert model.ngeom == 2  # what is only visual, too
    other = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="base"><body name="upper" pos="0 0 0.1"><joint name="pan" axis="0 0 1"/>'
        '<geom size="1"/></body></body></worldbody></mujoco>'
    )
    data = mujoco.MjData(other)
    data.qpos[:] = 0.6
    state = MujocoScene(other).read(data)
    mapping = {"version": 1, "ignore": {"model_joints": {"base/lift": "mimics pan"}}}
    with Replayer(model, mapping=mapping) as replayer:
        replayer.set_state(state)
        assert replayer.data.joint("lift").qpos.item() == pytest.approx(0.1 + 0.5 * 0.6)
        assert replayer.fidelity.max_position_error_m < 1e-12


def write_mesh(path: Path) -> None:
    """A tetrahedron."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nv 0 0 0.1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")


@pytest.mark.parametrize(
    ("name", "place", "extra"),
    [
        ("tip.obj", "arm/urdf/tip.obj", ""),
        ("../meshes/tip.obj", "arm/meshes/tip.obj", ""),
        ("package://arm/meshes/tip.obj", "arm/meshes/tip.obj", ""),
        ("package://other/x/tip.obj", "arm/urdf/stl/tip.obj", '<mujoco><compiler meshdir="stl"/></mujoco>'),
    ],
)
def test_meshes_are_found_where_a_urdf_says(tmp_path, name, place, extra):
    write_mesh(tmp_path / place)
    path = tmp_path / "arm" / "urdf" / "arm.urdf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(URDF.format(mesh=MESH.format(name)).replace("</robot>", extra + "</robot>"))
    assert load_model(path).nmesh == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            URDF.format(mesh=MESH.format("package://arm/gone.stl")),
            r"the mesh 'package://arm/gone.stl' is not there.*meshdir",
        ),
        ("<mujoco/>", "is no URDF: its first element is <mujoco>"),
        ("<robot", "is no XML"),
        ('<robot name="a"><link name="b"/><link name="c"/></robot>', r"2 root links \(b, c\)"),
        (URDF.format(mesh="").replace('type="revolute"', 'type="strange"'), "MuJoCo does not load"),
    ],
)
def test_a_urdf_that_is_none_says_so(tmp_path, text, said):
    path = tmp_path / "arm.urdf"
    path.write_text(text)
    with pytest.raises(ReplayError, match=said):
        load_model(path)


# ---- the capture's own


def test_a_capture_s_shapes_make_a_model_that_stands_as_captured():
    state, description = captured(), SceneDescription(SHAPES)
    with Replayer("capture", description=description, width=64, height=48) as replayer:
        assert replayer.check_names(state.layout) == ()
        replayer.set_state(state)
        assert replayer.fidelity.links == 6  # three bodies, each a root and a link
        assert replayer.fidelity.max_position_error_m == 0.0
        np.testing.assert_array_equal(replayer.data.body("arm/link").xquat, state["arm"].link_poses[1, 3:])
        image = replayer.render().astype(int)
    assert (image[..., 0] - image[..., 1] > 60).any()  # the red cube
    assert (image[..., 2] - image[..., 0] > 60).any()  # the blue link


def test_what_has_no_shape_is_left_out():
    with Replayer("capture", description=SceneDescription(SHAPES[1:2])) as replayer:
        replayer.set_state(captured())
        assert replayer.fidelity.links == 2
        assert replayer.model.nmocap == 1


def test_a_compiled_model_of_the_capture_knows_itself(tmp_path):
    """As it goes to other processes."""
    path = tmp_path / "own.mjb"
    mujoco.mj_saveModel(load_model("capture", description=SceneDescription(SHAPES)), str(path))
    with Replayer(path) as replayer:
        replayer.set_state(captured())
        assert replayer.fidelity.max_position_error_m == 0.0


NEWTON = """
<mujoco>
  <worldbody>
    <geom name="/World/ground" type="plane" size="5 5 5"/>
    <body name="_World_envs_env_0_Arm_arm" mocap="true">
      <geom type="box" size="0.05 0.05 0.05"/>
      <body name="_World_envs_env_0_Arm_link" pos="0 0 0.1">
        <joint name="_World_envs_env_0_Arm_joints_lift" axis="0 1 0"/><geom type="capsule" size="0.02 0.1"/>
      </body>
    </body>
    <body name="_World_envs_env_0_Cube"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>
  </worldbody>
</mujoco>
"""


def test_a_simulator_s_own_mjcf_matches_by_the_ends_of_its_names():
    """Prefixes, and a fixed base that is a mocap body, as Newton writes them."""
    state = captured()
    with Replayer("capture", description=SceneDescription(SHAPES, NEWTON), width=64, height=48) as replayer:
        assert replayer.check_names(state.layout) == ()
        replayer.set_state(state)
        assert replayer.fidelity.max_position_error_m < 1e-12
        assert replayer.fidelity.max_rotation_error_rad < 1e-7
        assert replayer.data.joint("_World_envs_env_0_Arm_joints_lift").qpos == 0.7
        assert replayer.model.ncam == replayer.model.nlight == 1  # so that there is something to see
        image = replayer.render().astype(int)
        assert (image[..., 0] - image[..., 1] > 60).any()  # a red cube: the colours are those of the shapes
        assert (image[..., 2] - image[..., 0] > 60).any()
    given = mujoco.MjModel.from_xml_string(NEWTON)
    with Replayer(given) as replayer, pytest.raises(ReplayError, match="only in the model: _World_envs_env_0_Arm"):
        replayer.check_names(state.layout)  # a model of the user's own is never matched without being asked to


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (None, "this one has none; record with description="),
        (SceneDescription(notes=("meshes alone",)), r"this one has none \(meshes alone\)"),
        (
            SceneDescription(mjcf="<mujoco><worldbody><geom/></worldbody></mujoco>"),
            "does not accept the capture's own MJCF",
        ),
    ],
)
def test_a_capture_that_does_not_tell_is_refused(description, said):
    with pytest.raises(ReplayError, match=said):
        Replayer("capture", description=description)


# ---- what a model lacks

ARM_ALONE = SCENE[: SCENE.index('    <body name="cube"')] + "  </worldbody></mujoco>"


def test_what_a_model_lacks_is_added_from_the_shapes(tmp_path):
    path, state = tmp_path / "arm.xml", captured()
    path.write_text(ARM_ALONE)
    with Replayer(path) as replayer, pytest.raises(ReplayError, match="only in the capture: cube;"):
        replayer.check_names(state.layout)
    mapping = {"version": 1, "add_missing": True}
    with Replayer(path, mapping=mapping, description=SceneDescription(SHAPES)) as replayer:
        replayer.set_state(state)
        assert replayer.fidelity.max_position_error_m < 1e-12
        assert replayer.data.body("cube/cube").xpos.tolist() == state["cube"].root_pose[:3].tolist()
        assert replayer.data.joint("lift").qpos == 0.7  # the arm is the model's own
        with Replayer(replayer.model, mapping=mapping, description=SceneDescription(SHAPES)) as again:
            again.set_state(state)  # as in another process: nothing is missing any more
    spec = mujoco.MjSpec.from_string(ARM_ALONE)
    assert load_model(spec, description=SceneDescription(SHAPES), mapping=Mapping(add_missing=True)).nmocap == 1


def test_names_like_ours_in_a_model_of_the_user_s_are_never_matched_without_being_asked_to(tmp_path):
    path = tmp_path / "scene.xml"
    path.write_text(SCENE.replace('name="cube"', 'name="cube/cube"'))
    with Replayer(path) as replayer, pytest.raises(ReplayError, match="only in the model: cube/cube;"):
        replayer.check_names(captured().layout)


def test_nothing_can_be_added_to_what_is_compiled_or_from_nothing():
    model = mujoco.MjModel.from_xml_string(ARM_ALONE)
    mapping = Mapping(add_missing=True)
    with pytest.raises(ReplayError, match="cannot add cube to a compiled model; give the file"):
        load_model(model, description=SceneDescription(SHAPES), mapping=mapping)
    with pytest.raises(ReplayError, match="this one tells of none"):
        load_model(model, mapping=mapping)


# ---- robot_descriptions


def test_robot_descriptions_are_loaded_where_installed(tmp_path, monkeypatch):
    """A package of that layout, made here: the real one fetches its models from the network."""
    monkeypatch.setitem(sys.modules, "robot_descriptions", None)
    with pytest.raises(ReplayError, match="pip install robot_descriptions"):
        load_model("robot_descriptions:panda_mj_description")
    monkeypatch.delitem(sys.modules, "robot_descriptions")
    package = tmp_path / "robot_descriptions"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "scene.xml").write_text(SCENE)
    (package / "arm_mj_description.py").write_text(f"MJCF_PATH = {str(tmp_path / 'scene.xml')!r}\n")
    (package / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert load_model("robot_descriptions:arm_mj_description").njnt == 2
        with pytest.raises(ReplayError, match="has no 'leg'"):
            load_model("robot_descriptions:leg")
        with pytest.raises(ReplayError, match="neither an MJCF nor a URDF"):
            load_model("robot_descriptions:empty")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "robot_descriptions"]:
            del sys.modules[name]


@pytest.mark.parametrize("mesh", ["package://arm/../../secret.stl", "package://arm//secret.stl"])
def test_a_mesh_stays_in_its_package(tmp_path, mesh):
    (tmp_path / "secret.stl").write_bytes(b"secret")
    (tmp_path / "arm" / "urdf").mkdir(parents=True)
    path = tmp_path / "arm" / "urdf" / "arm.urdf"
    shape = f'<visual><geometry><mesh filename="{mesh}"/></geometry></visual>'
    path.write_text(f'<robot name="a"><link name="b">{shape}</link></robot>')
    with pytest.raises(ReplayError, match="leads out of its package"):
        load_model(path)


@pytest.mark.parametrize(("name", "said"), [("json:dumps", "missing 1 required"), ("gc:unfreeze", "not NoneType")])
def test_functions_that_make_no_model_are_told(name, said):
    with pytest.raises(ReplayError, match=said):
        load_model(name)


def test_a_name_too_long_for_the_disk_is_told(tmp_path):
    told = pytest.raises(CaptureError, match="cannot be written: File name too long")
    with told, whole_file(tmp_path / ("x" * 300)) as file:
        file.write_bytes(b"")


def test_two_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a.bin"
    (tmp_path / ".a.tmp.bin").write_bytes(b"left by one that was killed")
    with whole_file(path) as file:
        told = pytest.raises(CaptureError, match="being written by another replay")
        with told, whole_file(path):
            pytest.fail("it is taken")
        file.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]
