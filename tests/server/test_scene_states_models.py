"""Scene states of small models whose right answers are known: rotations, offset centres, orders, couplings."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from remote_env.poses import velocity_of_centre, velocity_of_origin, wxyz_from_xyzw
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

HALF = np.sqrt(0.5)
# The rotation, in both conventions, and where it takes the axes x and z.
ROTATIONS = [
    ("none", (1, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0), (0, 0, 1)),
    ("a quarter about x", (HALF, HALF, 0, 0), (HALF, 0, 0, HALF), (1, 0, 0), (0, -1, 0)),
    ("a quarter about y", (HALF, 0, HALF, 0), (0, HALF, 0, HALF), (0, 0, -1), (1, 0, 0)),
    ("a quarter about z", (HALF, 0, 0, HALF), (0, 0, HALF, HALF), (0, 1, 0), (0, 0, 1)),
    ("a half about z", (0, 0, 0, 1), (0, 0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    ("a third about xyz", (0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (0, 1, 0), (1, 0, 0)),
]
FREE = """
<mujoco><option gravity="0 0 0" timestep="0.001"/><worldbody>
  <body name="club"><freejoint/>
    <inertial pos="0.3 0.1 -0.2" mass="1" diaginertia="0.02 0.02 0.02"/><geom size="0.05" contype="0" conaffinity="0"/>
  </body>
</worldbody></mujoco>
"""
CENTRE = np.array([0.3, 0.1, -0.2])


def made(xml: str) -> tuple[MujocoScene, mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return MujocoScene(model), model, data


def steps(model: mujoco.MjModel, data: mujoco.MjData, count: int) -> np.ndarray:
    for _ in range(count):
        mujoco.mj_step(model, data)
    return np.concatenate([data.qpos, data.qvel, data.act])


@pytest.mark.parametrize(("wxyz", "xyzw", "x", "z"), [row[1:] for row in ROTATIONS], ids=[row[0] for row in ROTATIONS])
def test_a_known_rotation_is_the_same_in_both_conventions(wxyz, xyzw, x, z) -> None:
    scene, _, data = made(FREE)
    np.testing.assert_allclose(wxyz_from_xyzw(xyzw), wxyz, atol=1e-15)
    data.qpos[3:7] = wxyz
    state = scene.read(data)
    np.testing.assert_allclose(state["club"].root_pose[3:], wxyz, atol=1e-15)
    for axis, turned in (((1.0, 0, 0), x), ((0, 0, 1.0), z)):
        seen = np.zeros(3)
        mujoco.mju_rotVecQuat(seen, np.array(axis), state["club"].root_pose[3:])
        np.testing.assert_allclose(seen, turned, atol=1e-15)
    # In the other order every rotation but the symmetric one is another: the body's pose shows it.
    swapped = SceneState(state.layout, state.values.copy())
    swapped["club"].root_pose[3:] = xyzw
    scene.write(swapped, data)
    assert np.allclose(data.xquat[1], wxyz) == (wxyz == xyzw)


def test_an_offset_centre_of_mass_flies_straight_and_the_origin_turns_around_it() -> None:
    """v_origin = v_centre - ω × (R c): torque-free with a spherical inertia, both v_centre and ω stay as they are."""
    scene, model, data = made(FREE)
    velocity, spin = np.array([0.4, -0.3, 0.2]), np.array([1.0, 2.0, -3.0])
    data.qpos[3:7] = (0.5, 0.5, -0.5, 0.5)
    state = scene.read(data)
    pose = state["club"].root_pose
    state["club"].root_velocity[:] = velocity_of_origin([*velocity, *spin], pose[3:], CENTRE)
    scene.write(state, data)
    start = data.xipos[1].copy()
    for _ in range(300):
        mujoco.mj_step(model, data)
    after = scene.read(data)["club"]
    arm = np.zeros(3)
    mujoco.mju_rotVecQuat(arm, CENTRE, after.root_pose[3:])
    np.testing.assert_allclose(
        after.root_pose[:3] + arm, start + 0.3 * velocity, atol=2e-3
    )  # MuJoCo's integrator: 6e-4 measured
    np.testing.assert_allclose(after.root_velocity[3:], spin, atol=1e-9)
    np.testing.assert_allclose(after.root_velocity[:3], velocity - np.cross(spin, arm), atol=5e-3)
    back = velocity_of_centre(after.root_velocity, after.root_pose[3:], CENTRE)
    np.testing.assert_allclose(back[:3], velocity, atol=5e-3)
    truth = np.zeros(6)  # MuJoCo's own: angular first, of the body frame's origin, world axes
    mujoco.mj_forward(model, data)
    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, 1, truth, 0)
    np.testing.assert_allclose(after.root_velocity, [*truth[3:], *truth[:3]], atol=1e-12)


ARM = """
<mujoco><worldbody>
  <body name="{root}" pos="0 0 1" quat="0.8 0 0.6 0">{base}
    <geom type="capsule" size="0.03 0.1" mass="1"/>
    <body name="upper" pos="0.1 0 0"><joint name="{a}" axis="0 1 0"/><geom type="capsule" size="0.03 0.1"/>
      <body name="lower" pos="0.2 0 0"><joint name="{b}" type="slide" axis="1 0 0"/><geom size="0.03"/>
        <body name="tip" pos="0.1 0 0"><joint name="{c}" axis="0 0 1"/><geom size="0.03" pos="0.05 0 0"/></body>
      </body>
    </body>
  </body>
  {more}
</worldbody></mujoco>
"""


def arm(base: str = "", more: str = "") -> str:
    return ARM.format(root="arm", base=base, a="lift", b="reach", c="turn", more=more)


def shuffled(state: SceneState) -> SceneState:
    """The same scene with entities, joints and links in the opposite order (the root stays the first link)."""
    layout = SceneLayout(
        tuple(
            EntityLayout(e.name, e.joint_names[::-1], (*e.link_names[:1], *e.link_names[:0:-1]))
            for e in reversed(state.layout.entities)
        ),
        "shuffled",
    )
    other = SceneState(layout, np.zeros(layout.size))
    other.values[0] = state.values[0]
    for entity in other:
        own = state[entity.layout.name]
        entity.root_pose[:], entity.root_velocity[:] = own.root_pose, own.root_velocity
        entity.joint_positions[:], entity.joint_velocities[:] = own.joint_positions[::-1], own.joint_velocities[::-1]
        links = [own.layout.link_names.index(name) for name in entity.layout.link_names]
        entity.link_poses[:] = own.link_poses[links]
    return other


@pytest.mark.parametrize("base", ["", "<freejoint/>"], ids=["fixed", "floating"])
def test_order_carries_no_meaning_and_only_a_floating_base_moves(base: str) -> None:
    scene, model, data = made(arm(base, '<body name="ball" pos="1 0 1"><freejoint/><geom size="0.1"/></body>'))
    data.qvel[:] = np.linspace(-1, 1, model.nv)
    steps(model, data, 50)
    state = scene.read(data)
    expected = steps(model, data, 1)
    mujoco.mj_resetData(model, data)
    scene.write(shuffled(state), data)
    np.testing.assert_allclose(scene.read(data).values, state.values, rtol=0, atol=1e-14)
    np.testing.assert_allclose(steps(model, data, 1), expected, rtol=0, atol=1e-12)
    moved = SceneState(state.layout, state.values.copy())
    moved["arm"].root_pose[:3] += 0.5
    scene.write(moved, data)
    now = scene.read(data)["arm"]
    shift = now.root_pose[:3] - state["arm"].root_pose[:3]
    np.testing.assert_allclose(shift, 0.5 if base else 0.0, atol=1e-14)  # what the model fixes stays where it is
    np.testing.assert_allclose(now.joint_positions, state["arm"].joint_positions, atol=1e-14)


def test_a_mocap_body_is_where_the_state_says_and_what_is_welded_to_it_follows() -> None:
    xml = """
    <mujoco><worldbody>
      <body name="hand" mocap="true" pos="0 0 1"><geom size="0.02" contype="0" conaffinity="0"/></body>
      <body name="cup" pos="0 0 1"><freejoint/><geom size="0.05"/></body>
    </worldbody><equality><weld body1="hand" body2="cup"/></equality></mujoco>
    """
    scene, model, data = made(xml)
    data.mocap_pos[0], data.mocap_quat[0] = (0.2, 0.1, 1.2), (0.6, 0, 0, 0.8)
    steps(model, data, 60)
    state, native = scene.read(data), scene.read(data, native=True)
    assert state["hand"].root_pose.tolist() == [0.2, 0.1, 1.2, 0.6, 0, 0, 0.8]
    expected = steps(model, data, 1)
    data.mocap_pos[0] = 0.0
    steps(model, data, 20)
    scene.write(state, data)
    assert data.mocap_pos[0].tolist() == [0.2, 0.1, 1.2]
    # The solver of the weld starts cold: it stops within its tolerance of where it stopped before.
    np.testing.assert_allclose(steps(model, data, 1), expected, rtol=0, atol=1e-6)
    scene.write(native, data)
    assert steps(model, data, 1).tobytes() == expected.tobytes()


GRIPPER = """
<mujoco><worldbody>
  <body name="palm" pos="0 0 1">
    <geom type="box" size="0.05 0.05 0.02"/>
    <body name="left"><joint name="left" type="slide" axis="0 1 0"/><geom size="0.01" pos="0 0.02 0.1"/></body>
    <body name="right"><joint name="right" type="slide" axis="0 -1 0"/><geom size="0.01" pos="0 -0.02 0.1"/></body>
    <body name="knuckle" pos="0.1 0 0"><joint name="knuckle" axis="0 1 0"/><geom size="0.02" pos="0.05 0 0"/>
      <body name="nail" pos="0.1 0 0"><joint name="nail" axis="0 1 0"/><geom size="0.02" pos="0.05 0 0"/></body>
    </body>
  </body>
</worldbody>
<tendon><fixed name="pull"><joint joint="knuckle" coef="0.02"/><joint joint="nail" coef="0.01"/></fixed></tendon>
<equality><joint joint1="right" joint2="left"/></equality>
<actuator>
  <position name="squeeze" joint="left" kp="50"/>
  <general name="muscle" tendon="pull" dyntype="filter" dynprm="0.1" gainprm="20"/>
</actuator></mujoco>
"""


def squeezed() -> tuple[MujocoScene, mujoco.MjModel, mujoco.MjData]:
    scene, model, data = made(GRIPPER)
    data.ctrl[:] = (0.03, 1.0)
    steps(model, data, 40)
    return scene, model, data


def test_a_mimic_joint_is_an_ordinary_joint_and_a_tendon_is_no_part_of_a_state() -> None:
    scene, model, data = squeezed()
    state = scene.read(data)
    assert state["palm"].layout.joint_names == ("left", "right", "knuckle", "nail")
    left, right = state["palm"].joint_positions[:2]
    assert left > 0.001
    assert abs(left - right) < 2e-3  # held together by the solver, not exactly; the state has what is
    assert data.ten_length[0] != 0.0
    length = data.ten_length[0]
    mujoco.mj_forward(model, data)
    length = data.ten_length[0]
    steps(model, data, 30)
    scene.write(state, data)
    assert data.ten_length[0] == length  # follows from the joints
    assert scene.read(data)["palm"].joint_positions.tolist() == state["palm"].joint_positions.tolist()


def test_controls_and_activations_are_not_in_the_values_but_in_the_native_bytes() -> None:
    scene, model, data = squeezed()
    state, native = scene.read(data), scene.read(data, native=True)
    activation = data.act.copy()
    assert 0.1 < activation[0] < 0.99  # on its way
    expected = steps(model, data, 1)
    data.ctrl[:] = 0.0
    steps(model, data, 50)
    scene.write(state, data)
    assert data.act[0] != activation[0]  # left as it was: the muscle pulls as it did before the restore
    away = np.abs(steps(model, data, 1) - expected)[: model.nq].max()
    scene.write(state, data)
    data.ctrl[:], data.act[:] = (0.03, 1.0), activation
    near = np.abs(steps(model, data, 1) - expected)[: model.nq].max()
    assert near < 1e-9 < away  # with the same controls and activations the step is the same, to the solver's tolerance
    scene.write(native, data)
    assert (data.ctrl.tolist(), data.act.tolist()) == ([0.03, 1.0], activation.tolist())
    assert steps(model, data, 1).tobytes() == expected.tobytes()


def test_native_bytes_restore_the_warm_start_and_two_hundred_steps_of_contacts() -> None:
    blocks = "".join(
        f'<body name="block{i}" pos="{0.02 * i} 0 {0.06 + 0.11 * i}"><freejoint/>'
        '<geom type="box" size="0.05 0.05 0.05"/></body>'
        for i in range(4)
    )
    scene, model, data = made(
        f'<mujoco><worldbody><geom type="plane" size="2 2 0.1"/>{blocks}</worldbody></mujoco>'
    )  # fmt: skip
    steps(model, data, 100)
    assert data.ncon > 8
    native, state = scene.read(data, native=True), scene.read(data)
    warm = data.qacc_warmstart.copy()
    path = [steps(model, data, 1).tobytes() for _ in range(200)]
    scene.write(native, data)
    assert data.qacc_warmstart.tobytes() == warm.tobytes()
    assert [steps(model, data, 1).tobytes() for _ in range(200)] == path
    scene.write(native, data)
    expected = steps(model, data, 1)
    scene.write(state, data)
    # By name the solver starts cold, and finds the same forces to its own tolerance: 3e-17 measured here.
    assert np.abs(steps(model, data, 1) - expected).max() < 1e-9


def test_time_advances_and_comes_back_with_the_state() -> None:
    scene, model, data = made(arm())
    steps(model, data, 25)
    state = scene.read(data)
    assert state.time_s == pytest.approx(0.05)
    steps(model, data, 5)
    scene.write(state, data)
    assert data.time == state.time_s
    steps(model, data, 1)
    assert scene.read(data).time_s == pytest.approx(0.052)


def test_many_states_shown_at_once_have_the_same_numbers_as_each_read_alone() -> None:
    slides = '<joint name="along" type="slide" axis="1 0 0"/><joint name="pitch" axis="0 1 0"/>'  # as a planar walker's
    scene, model, data = made(arm(slides, '<body name="ball" pos="1 0 1"><freejoint/><geom size="0.1"/></body>'))
    data.qvel[:] = np.linspace(-1, 1, model.nv)
    values = []
    for _ in range(5):
        steps(model, data, 3)
        values.append(scene.read(data).values)
    assert scene.read(data)["arm"].root_velocity.any()
    shown = scene.show(scene.writer(scene.layout), np.array(values), mujoco.MjData(model))
    np.testing.assert_allclose(shown, values, rtol=0, atol=1e-12)
