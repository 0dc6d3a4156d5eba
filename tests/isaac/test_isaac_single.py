"""One Isaac Lab environment of one's own over a real server: spaces, episodes, infos, states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import START_TIMEOUT_S
from gymnasium import spaces

from remote_env import RemoteEnv, poses
from remote_env.errors import ConfigError, InputError, TaskError, Unsupported
from remote_env.state import SceneState

STEP_S = 0.01
STEPS = 5  # of an episode
REST = np.zeros(2, np.float32)
TASK = f"{Path(__file__).parent / 'isaac_tasks.py'}:SwingEnv"
RESTORE_TOLERANCE = 1e-5  # of a step after a restore; see remote_env/server/isaac/scene.py


@pytest.fixture(scope="module")
def env(isaac_python: str, isolated_home: Path) -> Iterator[RemoteEnv]:
    with RemoteEnv(env=TASK, simulator="isaaclab", python=isaac_python, start_timeout_s=START_TIMEOUT_S) as env:
        env.reset(seed=0)  # loads the rest of what Newton compiles
        env.step(REST)
        yield env


def test_spaces_are_of_one_environment_and_observations_obey_them(env: RemoteEnv) -> None:
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (4,), np.float32)
    assert env.action_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert info == {}
    observation, reward, terminated, truncated, _ = env.step(REST)
    assert env.observation_space.contains(observation)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert env.metadata["render_fps"] == pytest.approx(1 / STEP_S)
    assert env.metadata["final_observation"] is True


def test_extras_cross_without_tensors_and_what_cannot_cross_is_left_out(env: RemoteEnv) -> None:
    env.reset(seed=0)
    info = env.step(REST)[4]
    assert info["log"] == {"length": 1.0, "deep": {"one": 1.0}}
    assert info["lengths"] == 1
    assert info["is_success"] is False
    np.testing.assert_array_equal(info["pairs"], [1, 1])
    assert "env" not in info


def test_an_episode_ends_with_its_own_observation_and_scene_and_resets_once(env: RemoteEnv) -> None:
    first, _ = env.reset(seed=0)
    for step in range(1, STEPS + 1):
        observation, reward, terminated, truncated, info = env.step(np.ones(2, np.float32))
        assert reward == step
    assert (terminated, truncated, info["final_observation"]) == (False, True, True)
    ended = env.get_state()
    assert ended.time_s == pytest.approx(STEPS * STEP_S)
    np.testing.assert_allclose(observation[:2], ended["arm"].joint_positions, atol=1e-6)
    again, _ = env.reset()  # what the autoreset gave
    np.testing.assert_array_equal(again, first)
    assert env.get_state().time_s == 0.0
    observation, reward, _, _, info = env.step(REST)
    assert reward == 1.0, "a second reset would not show here, a missing one would"
    assert "final_obs" not in info, "an old one is not this step's"


def test_success_and_time_out_are_terminated_and_truncated(env: RemoteEnv) -> None:
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(np.full(2, 2.0, np.float32))
    assert (terminated, truncated, info["is_success"]) == (True, False, True)


def test_the_same_seed_and_actions_give_the_same_numbers(env: RemoteEnv) -> None:
    runs = []
    for _ in range(2):
        env.reset(seed=7)
        runs.append([env.step(np.array([0.5, -0.5], np.float32))[0] for _ in range(3)])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_a_state_names_everything_root_first(env: RemoteEnv) -> None:
    env.reset(seed=0)
    layout = env.get_state().layout
    assert [entity.name for entity in layout.entities] == ["arm", "kite", "stick", "blocks/stick", "red"]
    assert layout.entity("arm").joint_names == ("shoulder", "elbow")
    assert layout.entity("arm").link_names == ("base", "upper", "lower")
    assert layout.entity("blocks/stick").link_names == ("stick",)
    assert layout.source.startswith("isaaclab 3.")


def test_quaternions_are_wxyz_in_the_environments_frame(env: RemoteEnv) -> None:
    env.reset(seed=0)
    state = env.get_state()
    state.check()
    half = np.sqrt(0.5)
    np.testing.assert_allclose(state["stick"].root_pose, [1, 0, 2, half, 0, 0, half], atol=1e-6)
    np.testing.assert_allclose(state["kite"].root_pose, [0, 1, 3, half, 0, 0, half], atol=1e-6)
    np.testing.assert_allclose(state["red"].root_pose, [3, 0.5, 2, 1, 0, 0, 0], atol=1e-6)
    # The wing sits 0.2 m along the keel's x axis, which is turned to the environment's y.
    np.testing.assert_allclose(state["kite"].link_poses[1, :3], [0, 1.2, 3], atol=1e-6)
    np.testing.assert_allclose(state["arm"].link_poses[0], [0, 0, 0, half, 0, 0, half], atol=1e-6)


@pytest.mark.parametrize("name", ["stick", "kite"])
def test_velocities_are_of_the_frames_origin_though_the_mass_is_beside_it(env: RemoteEnv, name: str) -> None:
    env.reset(seed=0)
    start = env.get_state()
    start[name].root_velocity[:] = (0.3, -0.2, 0.1, 3.0, -2.0, 5.0)
    env.set_state(start)
    np.testing.assert_allclose(env.get_state()[name].root_velocity, start[name].root_velocity, atol=1e-5)
    before, after = start, _stepped(env)
    moved = (after[name].root_pose[:3] - before[name].root_pose[:3]) / STEP_S
    mean = (after[name].root_velocity + before[name].root_velocity) / 2
    # Of the centre of mass it would be |ω × c| = 0.5 m/s beside this; a semi-implicit step is off by g Δt / 2 …
    np.testing.assert_allclose(moved, mean[:3], atol=0.06)
    turned = poses.multiply(after[name].root_pose[3:], poses.conjugate(before[name].root_pose[3:]))
    np.testing.assert_allclose(2 * turned[1:] / STEP_S, mean[3:], atol=0.1)  # in the environment's axes


def _stepped(env: RemoteEnv) -> SceneState:
    env.step(REST)
    return env.get_state()


def test_a_step_after_a_restore_equals_the_step_after_the_original(env: RemoteEnv) -> None:
    env.reset(seed=0)
    env.step(np.array([0.8, -0.4], np.float32))
    kept = env.get_state()
    first = env.step(np.array([0.2, 0.3], np.float32))
    first_state = env.get_state()
    env.step(REST)
    env.set_state(kept)
    np.testing.assert_allclose(env.get_state().values, kept.values, atol=1e-6)
    second = env.step(np.array([0.2, 0.3], np.float32))
    np.testing.assert_allclose(second[0], first[0], atol=RESTORE_TOLERANCE)
    np.testing.assert_allclose(env.get_state().values, first_state.values, atol=RESTORE_TOLERANCE)
    assert second[1] == first[1], "the episode's clock is restored too"


def test_what_the_task_opens_may_be_read(env: RemoteEnv) -> None:
    env.reset(seed=0)
    before = env.get_wrapper_attr("common_step_counter")
    env.step(REST)
    assert env.get_wrapper_attr("common_step_counter") == before + 1


def test_states_are_restored_by_name(env: RemoteEnv) -> None:
    env.reset(seed=0)
    state = env.get_state()
    plain = state.layout.to_plain()
    plain["entities"].reverse()
    arm = next(entity for entity in plain["entities"] if entity["name"] == "arm")
    arm["joints"].reverse()
    layout = type(state.layout).from_plain(plain)
    permuted = SceneState(layout, np.zeros(layout.size))
    for entity in state:
        mine = permuted[entity.layout.name]
        mine.root_pose[:], mine.root_velocity[:] = entity.root_pose, entity.root_velocity
        mine.link_poses[:] = entity.link_poses
    permuted["arm"].joint_positions[:] = (0.2, -0.1)  # elbow, shoulder
    env.set_state(permuted)
    np.testing.assert_allclose(env.get_state()["arm"].joint_positions, [-0.1, 0.2], atol=1e-6)


def test_states_of_another_scene_are_refused_and_nothing_moves(env: RemoteEnv) -> None:
    env.reset(seed=0)
    state = env.get_state()
    plain = state.layout.to_plain()
    plain["entities"][0]["joints"][0] = "knee"
    plain["entities"][2]["name"] = "pole"
    layout = type(state.layout).from_plain(plain)
    with pytest.raises(InputError, match=r"arm/knee.*arm/shoulder.*pole is none of.*stick is missing"):
        env.set_state(SceneState(layout, state.values))
    np.testing.assert_array_equal(env.get_state().values, state.values)


def test_native_states_are_unsupported(env: RemoteEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(Unsupported, match="no native state"):
        env.get_state(native=True)


def test_actions_may_be_lists_and_those_of_another_shape_are_refused(env: RemoteEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"\(3,\)"):
        env.step(np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"\(1, 2\)"):
        env.step(np.zeros((1, 2), np.float32))
    assert env.step(np.zeros(2, np.float64))[1] == 1.0, "a refused action steps nothing"


def test_nan_from_the_simulator_is_told(env: RemoteEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(TaskError, match=r"NaN in .*observation.*reset"):
        env.step(np.full(2, 90.0, np.float32))
    env.reset(seed=0)
    assert np.isfinite(env.step(REST)[0]).all()


def test_the_scene_is_described_by_shapes_and_a_model_with_its_own_names(env: RemoteEnv) -> None:
    described = env.get_scene_description()
    by_link = {(shape.entity, shape.link): shape for shape in described.shapes}
    capsule = by_link["arm", "lower"]
    assert (capsule.kind, capsule.size, capsule.rgba) == ("capsule", (0.02, 0.1), (0.2, 0.4, 0.8, 1.0))
    np.testing.assert_allclose(capsule.pose[3:], [np.sqrt(0.5), 0, np.sqrt(0.5), 0], atol=1e-6)
    assert by_link["red", "red"].size == (0.05, 0.1, 0.15)
    assert by_link["red", "red"].is_solid
    assert not by_link["stick", "Stick"].is_solid
    _check_model(described.mjcf, env.get_state())


def _check_model(mjcf: str, state: SceneState) -> None:
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(mjcf)
    names: Any = lambda kind, count: [mujoco.mj_id2name(model, kind, index) for index in range(count)]  # noqa: E731
    bodies = names(mujoco.mjtObj.mjOBJ_BODY, model.nbody)
    joints = names(mujoco.mjtObj.mjOBJ_JOINT, model.njnt)
    assert {entity.name for entity in state.layout.entities} < set(bodies)
    assert {"upper", "lower", "wing"} < set(bodies)
    assert {"shoulder", "elbow", "flap", "stick_free_joint"} < set(joints)


def test_unknown_keyword_arguments_are_refused_before_anything_starts(isaac_python: str) -> None:
    with pytest.raises(ConfigError, match=r"no keyword argument 'devise'; did you mean 'device'\? Known are device"):
        RemoteEnv(env=TASK, env_kwargs={"devise": "cpu"}, simulator="isaaclab", python=isaac_python).reset()
