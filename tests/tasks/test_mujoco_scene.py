"""MujocoScene against real MuJoCo models."""

from __future__ import annotations

import dataclasses
import importlib.resources
from pathlib import Path

import mujoco
import numpy as np
import pytest

from remote_env.errors import InputError, ReplayError, Unsupported
from remote_env.state import SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

MIXED = """
<mujoco>
  <worldbody>
    <geom type="plane" size="2 2 0.1"/>
    <body name="table" pos="0 0 0.1" euler="0 0 30"><geom type="box" size="0.3 0.3 0.1"/></body>
    <body name="arm" pos="1 0 0.2" euler="10 20 30">
      <joint name="turn" type="hinge" axis="0 0 1"/><geom type="capsule" size="0.05 0.2"/>
      <body pos="0 0 0.4">
        <joint type="slide" axis="1 0 0"/><geom type="capsule" size="0.04 0.1"/>
        <site name="tip"/>
      </body>
    </body>
    <body name="ball" pos="0 0 0.6">
      <freejoint/><geom type="ellipsoid" size="0.05 0.08 0.03" pos="0.02 0 0"/>
    </body>
    <body pos="-1 0 0.5"><freejoint/><geom type="box" size="0.05 0.06 0.07"/></body>
    <body name="hand" mocap="true" pos="0 1 1"><geom type="sphere" size="0.05" contype="0"/></body>
  </worldbody>
  <actuator><position joint="turn" kp="5"/></actuator>
</mujoco>
"""


def make(xml: str = MIXED) -> tuple[MujocoScene, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(xml)
    return MujocoScene(model), mujoco.MjData(model)


def shake(scene: MujocoScene, data: mujoco.MjData, *, seed: int = 0, steps: int = 30) -> None:
    """Random velocities and controls, then a few steps, so that nothing is zero or at rest."""
    rng = np.random.default_rng(seed)
    data.qvel[:] = rng.normal(size=scene.model.nv)
    data.ctrl[:] = rng.normal(size=scene.model.nu)
    if scene.model.nmocap:
        data.mocap_pos[:] = rng.normal(size=data.mocap_pos.shape)
        data.mocap_quat[:] = rng.normal(size=data.mocap_quat.shape)
    for _ in range(steps):
        mujoco.mj_step(scene.model, data)


def run(scene: MujocoScene, data: mujoco.MjData, steps: int = 20) -> bytes:
    for _ in range(steps):
        mujoco.mj_step(scene.model, data)
    return np.concatenate([data.qpos, data.qvel, data.qacc, data.qacc_warmstart]).tobytes()


def aloha_model(task: str = "transfer_cube") -> mujoco.MjModel:
    assets = importlib.resources.files("gym_aloha") / "assets"
    return mujoco.MjModel.from_xml_path(str(Path(str(assets)) / f"bimanual_viperx_{task}.xml"))


def test_entities_are_the_world_s_children_with_deterministic_names():
    scene, _ = make()
    assert [(e.name, e.joint_names, e.link_names) for e in scene.layout.entities] == [
        ("table", (), ("table",)),
        ("arm", ("turn", "unnamed_joint_1"), ("arm", "unnamed_body_3")),
        ("ball", (), ("ball",)),
        ("unnamed_body_5", (), ("unnamed_body_5",)),
        ("hand", (), ("hand",)),
    ]
    assert scene.layout.source == f"mujoco {mujoco.__version__}"


def test_a_made_up_name_never_takes_an_existing_one():
    xml = (
        "<mujoco><worldbody><body/><body name='unnamed_body_1'/>"
        "<body><body name='unnamed_body_3'/></body></worldbody></mujoco>"
    )
    scene, _ = make(xml)
    assert [entity.name for entity in scene.layout.entities] == [
        "unnamed_body_1_",
        "unnamed_body_1",
        "unnamed_body_3_",
    ]


def test_read_gives_mujoco_s_own_numbers():
    scene, data = make()
    shake(scene, data)
    mujoco.mj_forward(scene.model, data)
    state = scene.read(data)
    state.check()
    assert state.time_s == data.time
    arm, ball = state["arm"], state["ball"]
    assert arm.joint_positions.tolist() == data.qpos[:2].tolist()
    assert arm.joint_velocities.tolist() == data.qvel[:2].tolist()
    own = np.zeros(6)  # its root turns by a hinge of its own
    mujoco.mj_objectVelocity(scene.model, data, mujoco.mjtObj.mjOBJ_XBODY, scene.model.body("arm").id, own, 0)
    np.testing.assert_allclose(arm.root_velocity, [*own[3:], *own[:3]], atol=1e-12)
    assert own.any()
    body = data.body("ball")
    assert ball.root_pose.tolist() == [*body.xpos, *body.xquat]
    for link, pose in zip(arm.layout.link_names[:1], arm.link_poses, strict=False):
        assert pose.tolist() == [*data.body(link).xpos, *data.body(link).xquat]


def test_root_velocity_is_of_the_frame_origin_in_the_world_frame():
    scene, data = make()
    data.qpos[5:9] = [0.5, 0.5, -0.5, 0.5]
    shake(scene, data)
    mujoco.mj_forward(scene.model, data)
    velocity = np.zeros(6)  # MuJoCo states it angular first, of the frame origin, world axes
    ball = scene.model.body("ball").id
    mujoco.mj_objectVelocity(scene.model, data, mujoco.mjtObj.mjOBJ_XBODY, ball, velocity, 0)
    expected = np.concatenate([velocity[3:], velocity[:3]])
    np.testing.assert_allclose(scene.read(data)["ball"].root_velocity, expected, atol=1e-12)
    assert abs(expected[3:] - data.qvel[5:8]).max() > 0.01  # the body frame would have been wrong


def test_link_poses_belong_to_the_captured_joints_after_a_plain_step():
    scene, data = make()
    shake(scene, data)  # ends with mj_step, so xpos is one step old
    state = scene.read(data)
    stale = data.body("ball").xpos.copy()
    fresh = mujoco.MjData(scene.model)
    fresh.qpos[:], fresh.mocap_pos[:], fresh.mocap_quat[:] = data.qpos, data.mocap_pos, data.mocap_quat
    mujoco.mj_forward(scene.model, fresh)
    assert state["ball"].link_poses[0, :3].tolist() == fresh.body("ball").xpos.tolist() != stale.tolist()
    mujoco.mj_forward(scene.model, data)
    assert state == scene.read(data, kinematics_current=True)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("current", [False, True])
def test_reading_never_changes_the_trajectory(native, current):
    scene, data = make()
    data.qpos[2:] += 0.05  # quaternions off unit norm, as noise on qpos leaves them
    shake(scene, data)
    twin = mujoco.MjData(scene.model)
    mujoco.mj_copyData(twin, scene.model, data)
    scene.read(data, native=native, kinematics_current=current)
    assert run(scene, data) == run(scene, twin)


def test_a_state_shares_no_memory_with_mujoco():
    scene, data = make()
    state = scene.read(data, native=True)
    before = state.values.copy(), state.native
    shake(scene, data)
    scene.read(data, native=True)
    assert (state.values == before[0]).all()
    assert state.native == before[1]


def test_quaternions_that_lost_their_norm_are_read_as_mujoco_uses_them():
    scene, data = make()
    data.qpos[5:9] = [2.0, 0.0, 0.0, 0.1]
    state = scene.read(data)
    state.check()
    mujoco.mj_forward(scene.model, data)
    assert state["ball"].root_pose[3:].tolist() == data.body("ball").xquat.tolist()


@pytest.mark.parametrize("settled", [False, True])
def test_native_restores_bit_equal_continuation(settled):
    scene, data = make()
    shake(scene, data, steps=200)
    if settled:
        mujoco.mj_forward(scene.model, data)
    state = scene.read(data, native=True)
    other = mujoco.MjData(scene.model)
    shake(scene, other, seed=1)
    scene.write(state, other)
    assert scene.read(other, native=True) == state
    assert run(scene, other) == run(scene, data)


def test_native_continues_dm_control_s_order_of_half_steps():
    model = aloha_model()
    scene, data = MujocoScene(model), mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[-7:-4] = [0.0, 0.5, 0.02]

    def half_steps(data: mujoco.MjData, count: int) -> bytes:
        for index in range(count):
            data.ctrl[:] = model.key_qpos[0][:16] + 0.1 * np.sin(index)
            mujoco.mj_step2(model, data)
            mujoco.mj_step1(model, data)
        return data.qpos.tobytes() + data.qvel.tobytes()

    mujoco.mj_step1(model, data)
    half_steps(data, 150)
    assert data.ncon > 0
    state = scene.read(data, native=True, kinematics_current=True)
    assert state == scene.read(data, native=True)
    other = mujoco.MjData(model)
    scene.write(state, other)
    assert half_steps(other, 100) == half_steps(data, 100)


def test_named_write_reads_back_the_same_poses_bit_for_bit():
    scene, data = make()
    for seed in range(20):
        shake(scene, data, seed=seed)
        state = scene.read(data)
        other = mujoco.MjData(scene.model)
        scene.write(state, other)
        again = scene.read(other)
        for before, after in zip(state, again, strict=True):
            assert before.root_pose.tobytes() == after.root_pose.tobytes()
            assert before.link_poses.tobytes() == after.link_poses.tobytes()
            assert before.joint_positions.tobytes() == after.joint_positions.tobytes()
            np.testing.assert_allclose(before.root_velocity, after.root_velocity, atol=1e-12)
        assert again.time_s == state.time_s


def test_named_write_goes_by_name_not_by_order():
    scene, data = make()
    shake(scene, data)
    start = MIXED.index('    <body name="arm"')
    end = MIXED.index('    <body name="ball"')
    moved = MIXED[:start] + MIXED[end:]
    moved = moved.replace("  </worldbody>", MIXED[start:end] + "  </worldbody>")
    moved = moved.replace("<body pos=", '<body name="unnamed_body_5" pos=', 1)
    moved = moved.replace("<body pos=", '<body name="unnamed_body_3" pos=', 1)
    moved = moved.replace('<joint type="slide"', '<joint name="unnamed_joint_1" type="slide"')
    other_scene, other = make(moved)
    state = scene.read(data)
    other_scene.write(state, other)
    assert other.body("ball").xpos.tolist() == state["ball"].root_pose[:3].tolist()
    assert other.joint("turn").qpos.item() == state["arm"].joint_positions[0]
    assert other.body("hand").xpos.tolist() == state["hand"].root_pose[:3].tolist()


def test_native_bytes_of_another_model_or_version_fall_back_to_names():
    scene, data = make()
    shake(scene, data)
    state = scene.read(data, native=True)
    assert scene.fits(state.native)
    assert not scene.fits(None)
    assert not scene.fits(state.native[:-8])
    assert not scene.fits(state.native.replace(mujoco.__version__.encode(), b"0.0.1"))
    assert not scene.fits(state.native[:-8] + np.array([np.nan]).tobytes())
    foreign = dataclasses.replace(state, native=b"isaac's own")
    other = mujoco.MjData(scene.model)
    scene.write(foreign, other)
    assert other.body("ball").xpos.tolist() == state["ball"].root_pose[:3].tolist()


def test_a_state_of_another_scene_lists_every_unmatched_name():
    scene, data = make()
    before = data.qpos.tobytes()
    xml = MIXED.replace('"turn"', '"twist"').replace('name="ball"', 'name="egg"').replace("mocap=", "mocap =")
    other_scene, other = make(xml)
    with pytest.raises(ReplayError) as caught:
        scene.write(other_scene.read(other), data)
    message = str(caught.value)
    assert "only in the state: arm/joint twist, egg;" in message
    assert "only in the model: arm/joint turn, ball." in message
    assert data.qpos.tobytes() == before


def test_what_cannot_move_may_be_missing_from_the_state_but_not_from_the_model():
    scene, _ = make()
    without_table = MIXED.replace('<body name="table"', '<body name="desk"')
    other_scene, _ = make(without_table)
    assert other_scene.unmatched(scene.layout) == (["table"], [])
    bare = "<mujoco><worldbody><body name='a'><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    more = bare.replace("</worldbody>", "<body name='wall'><geom size='1'/></body></worldbody>")
    assert make(more)[0].unmatched(make(bare)[0].layout) == ([], [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_values_that_mean_nothing_are_refused(bad):
    scene, data = make()
    state = scene.read(data)
    values = state.values.copy()
    start = scene.layout.offsets["ball"]
    values[start + 3 : start + 7] = bad
    with pytest.raises(InputError, match="'ball'"):
        scene.write(SceneState(scene.layout, values), data)
    values = state.values.copy()
    values[0] = np.nan
    with pytest.raises(InputError, match="time"):
        scene.write(SceneState(scene.layout, values), data)


def test_a_ball_joint_is_unsupported_by_name():
    body = "<body><joint name='hip' type='ball'/><geom size='1'/></body>"
    with pytest.raises(Unsupported, match="'hip'"):
        make(f"<mujoco><worldbody>{body}</worldbody></mujoco>")


def test_aloha_has_two_arms_and_a_box():
    scene = MujocoScene(aloha_model())
    found = {entity.name: len(entity.joint_names) for entity in scene.layout.entities}
    assert found == {"table": 0, "midair": 0, "vx300s_left": 8, "vx300s_right": 8, "box": 0}
