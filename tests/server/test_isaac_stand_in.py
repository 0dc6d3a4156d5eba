"""The Isaac Lab backend against a stand-in of 2.x's interface; Isaac Lab 3 itself runs in tests/isaac."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tasks_for_tests import isaac_stand_in as stand_in

from remote_env.errors import ConfigError, InputError, TaskError, Unsupported
from remote_env.server.isaac.backend import IsaacLabBackend
from remote_env.state import SceneState

TASK = """
from isaaclab.envs import DirectRLEnv  # not there before Isaac Sim runs
from tasks_for_tests.isaac_stand_in import EnvCfg

class Task(DirectRLEnv):
    cfg: EnvCfg
"""
Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "isaaclab.envs", None)
    monkeypatch.setattr(sys, "argv", ["launch.py", "/a/folder"])
    (tmp_path / "a_task.py").write_text(TASK)
    monkeypatch.delitem(sys.modules, "a_task", raising=False)
    made: list[IsaacLabBackend] = []

    def make(num_envs: int | None = None, **kwargs: Any) -> IsaacLabBackend:
        backend = IsaacLabBackend()
        backend.num_envs = num_envs
        backend.make(f"{tmp_path / 'a_task.py'}:Task", kwargs)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()
    sys.modules.pop("a_task", None)


def test_isaac_sim_starts_before_the_task_is_imported_and_ends_after_it(make: Make) -> None:
    backend = make(device="cuda:1", enable_cameras=True)
    assert stand_in.events[:2] == ["app cuda:1 headless=True cameras=True", "env"]
    assert backend._task.cfg.sim.device == "cuda:1"
    assert backend._task.num_envs == 1
    backend.close()
    assert stand_in.events[-2:] == ["env closed", "app closed"]


def test_isaac_sim_is_closed_when_the_task_cannot_be_made(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"has no 'nothing'; it has device"):
        make(cfg={"sim.nothing": 1})
    assert stand_in.events == ["app cpu headless=True cameras=False", "app closed"]


def test_presets_of_3x_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="PhysX only"):
        make(physics="newton_mjwarp")


def test_a_version_whose_quaternions_are_others_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    last = stand_in.tensor([[0, 0, 0, 1]])
    monkeypatch.setattr(sys.modules["isaaclab.utils.math"], "quat_from_euler_xyz", lambda *_: last)
    with pytest.raises(ConfigError, match="has quaternions xyzw, where that has wxyz"):
        make()
    assert stand_in.events[-2:] == ["env closed", "app closed"]


@pytest.mark.parametrize("old", [False, True])
def test_states_are_wxyz_in_the_environments_frame_with_velocities_of_the_origin(make: Make, *, old: bool) -> None:
    backend = make(2, cfg={"old": old})
    layout, values = backend.states([1, 0])
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)
    state = SceneState(layout, values[0])
    assert [entity.name for entity in layout.entities] == ["robot", "box", "toys/robot", "ball"]
    assert layout.entity("robot").joint_names == ("hip", "knee")
    assert layout.entity("robot").link_names == ("trunk", "limb")
    half = np.sqrt(0.5)
    np.testing.assert_allclose(state["robot"].root_pose, [1, 2, 3, half, 0, 0, half], atol=1e-6)
    np.testing.assert_allclose(state["robot"].link_poses[1], [1, 2, 3, half, 0, 0, half], atol=1e-6)
    # At rest but for turning about its centre of mass, 0.1 m along its own x axis, which points along y.
    np.testing.assert_allclose(state["box"].root_velocity, [0.2, 0, 0, 0, 0, 2], atol=1e-6)
    np.testing.assert_allclose(state["toys/robot"].root_pose, [0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("old", [False, True])
def test_restoring_is_the_exact_opposite_for_the_named_environments(make: Make, *, old: bool) -> None:
    backend = make(3, cfg={"old": old})
    layout, values = backend.states([0, 1, 2])
    box = backend._task.scene.rigid_objects["box"]
    velocity = box.velocity.copy()
    changed = SceneState(layout, values[1].copy())
    changed["robot"].joint_positions[:] = (0.5, -0.5)
    changed["ball"].root_velocity[:] = (1, 2, 3, 4, 5, 6)
    changed.values[0] = 2 * stand_in.STEP_S
    backend.restore_states(layout, changed.values[None], [1])
    assert box.written == [[1]]
    np.testing.assert_allclose(box.velocity, velocity, atol=1e-6)
    after = backend.states([0, 1, 2])[1]
    np.testing.assert_allclose(after[1], changed.values, atol=1e-6)
    np.testing.assert_array_equal(after[[0, 2]], values[[0, 2]])


def test_joints_are_restored_by_name(make: Make) -> None:
    backend = make()
    state = backend.state(native=False)
    plain = state.layout.to_plain()
    plain["entities"][0]["joints"].reverse()
    permuted = SceneState(type(state.layout).from_plain(plain), state.values.copy())
    permuted["robot"].joint_positions[:] = (1.0, 2.0)  # knee, hip
    backend.restore(permuted)
    np.testing.assert_allclose(backend.state(native=False)["robot"].joint_positions, [2.0, 1.0])


def test_states_of_another_scene_are_refused(make: Make) -> None:
    backend = make()
    state = backend.state(native=False)
    plain = state.layout.to_plain()
    plain["entities"][1]["name"] = "crate"
    with pytest.raises(InputError, match=r"box is missing; crate is none of this scene's"):
        backend.restore(SceneState(type(state.layout).from_plain(plain), state.values))
    with pytest.raises(InputError, match="not finite"):
        backend.restore(SceneState(state.layout, state.values * np.nan))
    for change, said in (
        ({0: -1.0}, "begins at 0 s"),
        ({0: 1e20}, "begins at 0 s"),
        ({1: 1e300}, "too large for float32"),
        ({4: 0.0, 7: 0.0}, "'robot' .*norm 0"),
    ):
        wrong = state.values.copy()
        for index, value in change.items():
            wrong[index] = value
        with pytest.raises(InputError, match=said):
            backend.restore(SceneState(state.layout, wrong))
    np.testing.assert_array_equal(backend.state(native=False).values, state.values)
    with pytest.raises(Unsupported, match="no native state"):
        backend.state(native=True)


def test_a_state_that_came_along_with_a_step_is_not_told_of_a_later_scene(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make()
    backend.reset(0, None)
    backend.state(native=False)
    backend.step([0.25, 0.0])  # brings its scene along, since the last one was asked for
    box, step = backend._task.scene.rigid_objects["box"], backend._task.step

    def fall_and_raise(action: Any) -> Any:
        box.pose[:, 2] = -1.0
        raise ValueError("fell")

    monkeypatch.setattr(backend._task, "step", fall_and_raise)
    with pytest.raises(ValueError, match="fell"):
        backend.step([0.0, 0.0])
    assert backend.state(native=False)["box"].root_pose[2] == -1.0
    monkeypatch.setattr(backend._task, "step", step)
    backend.step([0.0, 0.0])
    monkeypatch.setattr(backend._task, "lift", lambda: box.pose[:, 2].fill(4.0), raising=False)
    backend.call("lift", (), {})
    assert backend.state(native=False)["box"].root_pose[2] == 4.0


def test_without_a_final_observation_none_is_faked_and_the_reset_is_not_done_twice(make: Make) -> None:
    backend = make()
    assert backend.metadata["final_observation"] is False
    backend.reset(0, None)
    resets = backend._task.resets
    for step in range(1, stand_in.STEPS + 1):
        observation, reward, terminated, truncated, info = backend.step([0.25, 0.0])
        assert reward == step
    assert (terminated, truncated, info["final_observation"]) == (False, True, False)
    np.testing.assert_array_equal(observation, [0.0])  # the next episode's: there is nothing else
    ended = backend.state(native=False)
    assert ended.time_s == pytest.approx(stand_in.STEPS * stand_in.STEP_S)
    np.testing.assert_allclose(ended["robot"].joint_positions, [0.75, 0.0])
    again, info = backend.reset(None, None)
    np.testing.assert_array_equal(again, [0.0])
    assert info == {}
    assert backend._task.resets == resets
    assert backend.state(native=False).time_s == 0.0
    backend.reset(5, None)
    assert backend._task.resets == resets + 1, "a seed resets again"


@pytest.mark.parametrize("num_envs", [None, 2])
def test_the_first_plain_reset_is_the_one_that_showed_the_spaces(make: Make, num_envs: int | None) -> None:
    backend = make(num_envs)
    assert backend._task.resets == 1
    observation, _ = backend.reset(None, None)
    assert backend._task.resets == 1
    assert observation.shape == ((1,) if num_envs is None else (num_envs, 1))
    backend.reset(None, None)
    assert backend._task.resets == 2


def test_a_batch_tells_which_environments_ended_in_which_scene(make: Make) -> None:
    backend = make(3)
    backend.reset(None, None)
    layout, values = backend.states([1])
    values[0, 0] = 2 * stand_in.STEP_S
    backend.restore_states(layout, values, [1])
    action = np.zeros((3, 2), np.float32)
    action[1] = 1.0
    _, _, _, truncated, info = backend.step(action)
    np.testing.assert_array_equal(truncated, [False, True, False])
    np.testing.assert_array_equal(info["is_success"], [False, True, False])
    assert "final_obs" not in info
    ids, final = backend.final_states()  # type: ignore[misc]
    assert list(ids) == [1]
    np.testing.assert_allclose(SceneState(layout, final[0])["robot"].joint_positions, [1.0, 1.0])
    backend.step(action)
    assert backend.final_states() is None


def test_poses_that_are_none_are_told_with_their_name(make: Make) -> None:
    backend = make()
    backend._task.scene.rigid_objects["box"].pose[:, 3:] = 0.0
    with pytest.raises(TaskError, match=r"'box' a quaternion of norm 0.*reset\(\)"):
        backend.state(native=False)
