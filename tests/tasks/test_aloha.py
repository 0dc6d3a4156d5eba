"""AlohaEnv as a Gymnasium environment: spaces, seeds, options, images, states, wrong use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from remote_env.errors import ConfigError, InputError, ReplayError, TaskError
from remote_env.tasks import INSERTION_ID, TRANSFER_CUBE_ID, register_tasks
from remote_env.tasks.aloha import OBS_TYPES, AlohaEnv
from remote_env.tasks.aloha_model import OBJECTS, START_RANGES

TASKS = ("transfer_cube", "insertion")
SMALL = {"width": 64, "height": 48, "quality": "fast"}
REST = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.1] * 2)


def waving(count: int, seed: int = 0) -> np.ndarray:
    return REST + np.random.default_rng(seed).normal(0, 0.2, (count, 14))


@pytest.mark.filterwarnings("ignore:.*infinity:UserWarning")  # a state's bounds are what they are
@pytest.mark.parametrize(
    ("task", "obs_type"), [*(("transfer_cube", each) for each in OBS_TYPES), ("insertion", "pixels_agent_pos")]
)
def test_gymnasiums_checker_is_content(task: str, obs_type: str) -> None:
    register_tasks()
    task_id = {"transfer_cube": TRANSFER_CUBE_ID, "insertion": INSERTION_ID}[task]
    cameras = ("top", "left_wrist")
    env = gymnasium.make(task_id, obs_type=obs_type, render_mode="rgb_array", cameras=cameras, **SMALL)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("task_id", [TRANSFER_CUBE_ID, INSERTION_ID])
def test_registered_tasks_last_300_steps(task_id: str) -> None:
    register_tasks()
    register_tasks()
    env = gymnasium.make(task_id)
    env.reset(seed=0)
    truncations = [env.step(REST)[3] for _ in range(300)]
    assert truncations == [False] * 299 + [True]
    assert env.metadata["render_fps"] == 50
    assert abs(env.unwrapped.data.time - 6.0) < 1e-9
    env.close()


def test_the_action_space_is_gym_alohas_and_the_start_lies_outside_it() -> None:
    env = AlohaEnv()
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (14,), np.float32)
    obs, _ = env.reset(seed=0)
    assert not env.action_space.contains(obs.astype(np.float32))
    env.step(REST)
    elbow = env.data.ctrl[2]
    assert elbow == 1.16


def test_observations_of_each_type_agree() -> None:
    envs = {kind: AlohaEnv("insertion", obs_type=kind, **SMALL) for kind in OBS_TYPES}
    seen: dict[str, Any] = {}
    for kind, env in envs.items():
        env.reset(seed=5)
        for action in waving(5):
            seen[kind] = env.step(action)[0]
    np.testing.assert_array_equal(seen["pixels_agent_pos"]["agent_pos"], seen["agent_pos"])
    np.testing.assert_array_equal(seen["pixels_agent_pos"]["pixels"]["top"], seen["pixels"]["top"])
    state = dict(zip(envs["state"].state_names, seen["state"], strict=True))
    np.testing.assert_array_equal(seen["state"][:14], seen["agent_pos"])
    scene = envs["state"].get_scene_state()
    for name in ("peg", "socket"):
        pose = [state[f"{name}_{axis}"] for axis in ("x", "y", "z", "qw", "qx", "qy", "qz")]
        np.testing.assert_allclose(pose, scene[name].root_pose, atol=1e-12)
        assert state[f"{name}_vz"] == scene[name].root_velocity[2]
    for env in envs.values():
        env.close()


def test_observations_are_never_overwritten() -> None:
    env = AlohaEnv(obs_type="pixels_agent_pos", render_mode="rgb_array", **SMALL)
    first, _ = env.reset(seed=0)
    kept = {"agent_pos": first["agent_pos"].copy(), "top": first["pixels"]["top"].copy()}
    shown = env.render()
    shown[:] = 0  # what render() gives is the caller's own
    for action in waving(10):
        env.step(action)
    np.testing.assert_array_equal(first["agent_pos"], kept["agent_pos"])
    np.testing.assert_array_equal(first["pixels"]["top"], kept["top"])
    env.close()


def test_seeds_give_these_poses_on_every_machine() -> None:
    env = AlohaEnv("insertion")
    env.reset(seed=0)
    peg, socket = env.data.qpos[16:19], env.data.qpos[23:26]
    assert peg.tolist() == [0.16369616873214543, 0.45395734275277405, 0.05]
    assert socket.tolist() == [-0.1983472364471471, 0.5626540478400545, 0.05]


@pytest.mark.parametrize("task", TASKS)
def test_poses_fill_their_ranges_and_follow_the_seed(task: str) -> None:
    env, other = AlohaEnv(task), AlohaEnv(task)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in OBJECTS[task]}
    for seed in range(40):
        env.reset(seed=seed)
        other.reset(seed=seed)
        np.testing.assert_array_equal(env.data.qpos, other.data.qpos)
        for name in seen:
            seen[name].append(env.get_scene_state()[name].root_pose.copy())
    for name, poses in seen.items():
        low, high = np.array(START_RANGES[name]).T
        positions = np.array(poses)[:, :3]
        assert (low <= positions).all()
        assert (positions <= high).all()
        assert (np.ptp(positions, axis=0) >= 0.8 * (high - low)).all()


def test_resets_without_a_seed_go_on_in_one_stream() -> None:
    env = AlohaEnv()
    env.reset(seed=1)
    first = env.data.qpos[16:18].copy()
    env.reset()
    assert not np.array_equal(env.data.qpos[16:18], first)


@pytest.mark.parametrize("task", TASKS)
def test_two_in_one_process_do_not_interfere(task: str) -> None:
    alone = AlohaEnv(task)
    alone.reset(seed=0)
    expected = [alone.step(action)[0] for action in waving(20)]
    one, two = AlohaEnv(task), AlohaEnv(task)
    one.reset(seed=0)
    two.reset(seed=99)
    for action, other_action, obs in zip(waving(20), waving(20, seed=1), expected, strict=True):
        two.step(other_action)
        np.testing.assert_array_equal(one.step(action)[0], obs)


def test_an_episode_does_not_remember_the_one_before() -> None:
    env = AlohaEnv()
    runs = []
    for _ in range(2):
        env.reset(seed=4)
        runs.append([env.step(action)[0] for action in waving(30)])
    np.testing.assert_array_equal(*runs)


def test_a_pose_by_hand_leaves_the_next_draw_alone() -> None:
    env, other = AlohaEnv("insertion"), AlohaEnv("insertion")
    pose = (0.15, 0.5, 0.02, 1.0, 0.0, 0.0, 0.0)
    env.reset(seed=0, options={"poses": {"peg": pose}})
    np.testing.assert_array_equal(env.data.qpos[16:23], pose)
    other.reset(seed=0)
    np.testing.assert_array_equal(env.data.qpos[23:], other.data.qpos[23:])
    env.reset()
    other.reset()
    np.testing.assert_array_equal(env.data.qpos, other.data.qpos)


@pytest.mark.parametrize("native", [True, False])
def test_scene_states_go_there_and_back(native: bool) -> None:
    env = AlohaEnv("insertion")
    env.reset(seed=2)
    for action in waving(25):
        env.step(action)
    state = env.get_scene_state(native=native)
    expected = [env.step(action)[0] for action in waving(25, seed=1)]
    env.set_scene_state(state)
    assert np.abs(env.get_scene_state().values - state.values).max() < 1e-9
    found = [env.step(action)[0] for action in waving(25, seed=1)]
    if native:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_restored_state_needs_no_reset_and_shows_at_once() -> None:
    env = AlohaEnv(obs_type="pixels", render_mode="rgb_array", **SMALL)
    env.reset(seed=0)
    before, state = env.render(), env.get_scene_state()
    env.reset(seed=1)
    assert not np.array_equal(env.render(), before)
    env.set_scene_state(state)
    np.testing.assert_array_equal(env.render(), before)
    fresh = AlohaEnv()
    fresh.set_scene_state(state)
    fresh.step(REST)
    with pytest.raises(ReplayError, match="box"):
        AlohaEnv("insertion").set_scene_state(state)
    env.close()


def test_nothing_is_rendered_that_was_not_asked_for() -> None:
    env = AlohaEnv(obs_type="agent_pos", render_mode="rgb_array", **SMALL)
    env.reset(seed=0)
    env.step(REST)
    assert env._renderer is None
    assert env.render().shape == (48, 64, 3)
    env.close()
    assert env.render().shape == (48, 64, 3)  # a closed environment can be used again
    env.close()


def test_cameras_and_sizes_are_as_asked() -> None:
    names = ("left_pillar", "right_pillar", "top", "angle", "front_close", "left_wrist", "right_wrist")
    env = AlohaEnv(obs_type="pixels", cameras=names, width=40, height=30, quality="fast")
    obs, _ = env.reset(seed=0)
    assert tuple(sorted(obs)) == tuple(sorted(names))
    assert {image.shape for image in obs.values()} == {(30, 40, 3)}
    assert len({image.tobytes() for image in obs.values()}) == len(names)
    env.close()


def test_dashes_do_for_underscores() -> None:
    assert AlohaEnv("transfer-cube").task == "transfer_cube"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": "juggling"}, "transfer_cube, insertion"),
        ({"obs_type": "rgb"}, "pixels_agent_pos"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"cameras": ("ceiling",)}, "left_pillar"),
        ({"cameras": ()}, "at least one"),
        ({"cameras": ("top", "top")}, "none twice"),
        ({"width": 0}, "1 to 8192"),
        ({"height": 2.5}, "1 to 8192"),
        ({"quality": "best"}, "fast"),
        ({"model_dir": "/nonexistent"}, "model_dir must hold"),
    ],
)
def test_wrong_arguments_are_config_errors(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AlohaEnv(**arguments)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (np.zeros(13), r"\(14,\)"),
        (np.zeros((1, 14)), r"\(14,\)"),
        (np.full(14, np.nan), "finite"),
        (np.full(14, np.inf, np.float32), "finite"),
        (np.array(["left"] * 14), "numbers"),
    ],
)
def test_a_wrong_action_is_refused_and_moves_nothing(action: np.ndarray, says: str) -> None:
    env = AlohaEnv()
    env.reset(seed=0)
    before = env.get_scene_state(native=True)
    with pytest.raises(InputError, match=says):
        env.step(action)
    assert env.get_scene_state(native=True) == before
    env.step(REST)


def test_whole_numbers_and_lists_are_actions_too() -> None:
    env, other = AlohaEnv(), AlohaEnv()
    env.reset(seed=0)
    other.reset(seed=0)
    np.testing.assert_array_equal(env.step([0] * 14)[0], other.step(np.zeros(14))[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pose": {}}, "poses"),
        ({"poses": {"peg": (0, 0, 0, 1, 0, 0, 0)}}, "box"),
        ({"poses": {"box": (0, 0, 0)}}, "quaternion"),
        ({"poses": {"box": (0, 0, 0, 2, 0, 0, 0)}}, "unit"),
        ({"poses": {"box": "here"}}, "numbers"),
    ],
)
def test_a_wrong_option_leaves_the_episode_alone(options: dict[str, Any], says: str) -> None:
    env = AlohaEnv()
    env.reset(seed=0)
    before = env.get_scene_state(native=True)
    with pytest.raises(InputError, match=says):
        env.reset(seed=1, options=options)
    assert env.get_scene_state(native=True) == before


def test_a_step_before_any_reset_is_refused() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        AlohaEnv().step(REST)


def test_a_simulation_that_blows_up_is_a_task_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it runs
    env = AlohaEnv()
    env.reset(seed=0)
    env.data.qvel[:] = 1e12
    with pytest.raises(TaskError, match="unstable"):
        env.step(REST)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(REST)
    env.reset(seed=0)
    env.step(REST)


def test_render_without_a_mode_warns_and_gives_nothing() -> None:
    env = AlohaEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None


def test_the_package_imports_no_simulator_and_the_task_no_gym_aloha() -> None:
    code = (
        "import sys, remote_env.tasks as tasks; assert 'mujoco' not in sys.modules;"
        "tasks.register_tasks(); import gymnasium; gymnasium.make(tasks.INSERTION_ID).reset(seed=0);"
        "assert not {'gym_aloha', 'dm_control', 'OpenGL.GL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_observations_have_the_order_of_their_space() -> None:
    env = AlohaEnv(obs_type="pixels_agent_pos", cameras=("top", "left_wrist"), **SMALL)
    obs, _ = env.reset(seed=0)
    assert list(obs) == list(env.observation_space)
    assert list(obs["pixels"]) == list(env.observation_space["pixels"])
    env.close()


@pytest.mark.parametrize(
    ("obs_type", "keys", "left"),
    [
        ("pixels_agent_pos", ("agent_pos",), {"agent_pos": ()}),
        ("pixels_agent_pos", ("pixels/top",), {"pixels": ("top",)}),
        ("pixels_agent_pos", ("pixels", "agent_pos"), {"agent_pos": (), "pixels": ("left_wrist", "top")}),
        ("pixels_agent_pos", (), {}),
        ("pixels_agent_pos", None, {"agent_pos": (), "pixels": ("left_wrist", "top")}),
        ("pixels", ("left_wrist",), {"left_wrist": ()}),
    ],
)
def test_what_nobody_wants_is_not_rendered(
    obs_type: str, keys: tuple[str, ...] | None, left: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = AlohaEnv(obs_type=obs_type, cameras=("top", "left_wrist"), **SMALL)
    rendered: list[str] = []
    monkeypatch.setattr(env, "_frame", lambda camera: rendered.append(camera) or np.zeros(3, np.uint8))
    env.set_wanted_observations(keys)
    obs, _ = env.reset(seed=0)
    assert {key: tuple(value) if isinstance(value, dict) else () for key, value in obs.items()} == left
    assert rendered == ([*left] if obs_type == "pixels" else [*left.get("pixels", ())])
    env.set_wanted_observations(None)
    env.reset()
    assert rendered[-2:] == ["left_wrist", "top"]
