"""Replayer: many states at once, and captures that it refuses."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from remote_env.errors import InputError, ReplayError
from remote_env.replay import Replayer
from remote_env.replay.conventions import reordered
from remote_env.state import SceneLayout, SceneState
from remote_env.tasks.aloha_model import aloha_model_path
from remote_env.tasks.mujoco_scene import MujocoScene

SCENE = """
<mujoco>
  <worldbody>
    <body name="arm" pos="0.2 0 0" euler="0 0 40">
      <geom type="box" size="0.05 0.05 0.05"/>
      <body name="link" pos="0 0 0.1"><joint name="lift" axis="0 1 0"/><geom type="capsule" size="0.02 0.1"/></body>
    </body>
    <body name="cube" pos="-0.4 0 0.5"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>
    <body name="hand" mocap="true"><geom size="0.1"/></body>
  </worldbody>
</mujoco>
"""


def simulated(model: mujoco.MjModel, steps: int = 40) -> tuple[SceneLayout, np.ndarray]:
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qvel[-6:] = [0.3, 0, 0.5, 3.0, 2.0, 1.0]
    values = []
    for step in range(steps):
        if model.nmocap:
            data.mocap_pos[0, 2] = 0.01 * step
        mujoco.mj_step(model, data, 3)
        values.append(scene.read(data).values)
    return scene.layout, np.array(values)


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture(scope="module")
def states(model):
    return simulated(model)


@pytest.mark.parametrize("task", [None, "transfer_cube"])
def test_many_at_once_are_as_one_by_one(model, task):
    given = model if task is None else mujoco.MjModel.from_xml_path(str(aloha_model_path(task)))
    layout, values = simulated(given)
    with Replayer(given) as many, Replayer(given) as single:
        shown = many.set_states(layout, values)
        rows = []
        for row in values:
            single.set_state(SceneState(layout, row))
            rows.append(single.scene.read(single.data, kinematics_current=True).values)
        np.testing.assert_allclose(shown.local, rows, atol=1e-12)
        assert shown.expected is values
        assert many.fidelity == single.fidelity
        assert many.fidelity.max_position_error_m == many.fidelity.max_rotation_error_rad == 0.0
        assert many.data.qpos.tobytes() == single.data.qpos.tobytes()
        assert many.data.time == single.data.time == values[-1, 0]
        assert many.expected_layout is layout


def test_more_rows_than_are_taken_at_once(model, states, monkeypatch):
    monkeypatch.setattr("remote_env.tasks.mujoco_scene._ROWS_AT_ONCE", 7)
    with Replayer(model) as replayer:
        assert replayer.set_states(*states).local.shape == (40, states[0].size)
        assert replayer.fidelity.max_position_error_m == 0.0
        assert replayer.fidelity.states == 40


def test_no_rows_change_nothing(model, states):
    with Replayer(model) as replayer:
        before = replayer.data.qpos.copy()
        assert len(replayer.set_states(states[0], states[1][:0]).local) == 0
        assert (replayer.data.qpos == before).all()


def test_numbering_counts_on_or_is_given(model, states):
    layout, values = states
    wrong = values.copy()
    place = layout.offsets["arm"] + 13
    wrong[5, place] += 1.0
    with Replayer(model) as replayer:
        replayer.set_states(layout, values[:3])
        replayer.set_states(layout, wrong[3:])
        assert replayer.fidelity.worst_rotation == "arm/link at state 5"
        assert replayer.fidelity.states == 40
    with Replayer(model) as replayer:
        replayer.set_states(layout, wrong[5:], first=1, stride=2)
        assert replayer.fidelity.worst_rotation == "arm/link at state 1"


def test_a_picture_shows_the_last_of_many(model, states):
    layout, values = states
    with Replayer(model, width=32, height=24) as many, Replayer(model, width=32, height=24) as single:
        many.render()  # before any state, too
        many.set_states(layout, values)
        single.set_state(SceneState(layout, values[-1]))
        assert (many.render() == single.render()).all()


def test_a_layout_is_expected_once_there_is_one(model):
    with Replayer(model) as replayer, pytest.raises(InputError, match="after the first state"):
        _ = replayer.expected_layout


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("lift", np.nan, "the state of 'arm' at .* s is not finite"),
        ("quaternion", 0.0, "'cube' at .* a quaternion of norm 0"),
        ("time", np.inf, "the state's time is inf"),
    ],
)
def test_one_bad_row_among_many_is_named_and_nothing_is_shown(model, states, column, value, said):
    layout, values = states
    columns = {"lift": layout.offsets["arm"] + 13, "time": 0}
    cube = layout.offsets["cube"]
    columns["quaternion"] = slice(cube + 3, cube + 7)
    bad = values.copy()
    bad[17, columns[column]] = value
    with Replayer(model) as replayer:
        before = replayer.data.qpos.copy()
        with pytest.raises(InputError, match=said):
            replayer.set_states(layout, bad)
        assert (replayer.data.qpos == before).all()
        replayer.set_states(*states)


def test_a_capture_whose_quaternions_are_all_xyzw_is_refused(model, states):
    layout, values = states
    xyzw = values
    for _ in range(3):  # three times wxyz <- xyzw is once xyzw <- wxyz
        xyzw = reordered(layout, xyzw)
    with Replayer(model) as replayer, pytest.raises(ReplayError, match=r"every quaternion .* looks like x, y, z, w"):
        replayer.set_states(layout, xyzw)


def test_a_root_in_another_order_than_its_links_is_refused_by_name(model, states):
    layout, values = states
    mixed = values.copy()
    arm = layout.offsets["arm"]
    mixed[:, arm + 3 : arm + 7] = np.roll(values[:, arm + 3 : arm + 7], -1, axis=1)
    with Replayer(model) as replayer, pytest.raises(ReplayError, match=r"mixes orders .* the root of 'arm'"):
        replayer.set_states(layout, mixed)


def test_large_errors_alone_are_not_taken_for_another_order(model, states):
    layout, values = states
    wrong = values.copy()
    wrong[:, layout.offsets["arm"] + 13] += 1.0
    with Replayer(model) as replayer:
        replayer.set_states(layout, wrong)
        assert replayer.fidelity.max_rotation_error_rad == pytest.approx(1.0)


def test_states_of_another_task_are_refused_on_both_sides(model):
    other = mujoco.MjModel.from_xml_path(str(aloha_model_path("insertion")))
    layout, values = simulated(other, steps=1)
    with Replayer(model) as replayer, pytest.raises(ReplayError) as caught:
        replayer.set_states(layout, values)
    assert "only in the capture: table, midair, vx300s_left, vx300s_right" in str(caught.value)
    assert "only in the model: arm, cube, hand;" in str(caught.value)


def test_a_model_with_what_states_place_twice_keeps_its_bits(model, states):
    """Another layout begins another fidelity; an equal one goes on."""
    layout, values = states
    again = SceneLayout.from_plain(layout.to_plain())
    with Replayer(model) as replayer:
        replayer.set_states(layout, values)
        replayer.set_states(again, values)
        assert replayer.fidelity.states == 80
