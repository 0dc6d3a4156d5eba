"""The MetaSim backend against a stand-in with MetaSim's calls and MuJoCo's physics; MetaSim itself never ran here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tasks_for_tests.metasim_stand_in import BaseTaskEnv, RLTaskEnv, StandInHandler, make_handler, make_task

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import ConfigError, InputError, Unsupported
from remote_env.server.backend import load_backend
from remote_env.server.metasim_backend import MetaSimBackend
from remote_env.spaces import space_to_plain
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

TOLERANCE = 1e-6  # the handler's numbers are float32


def tensor_kinds() -> list[Any]:
    try:
        import torch
    except ImportError:
        return [None]
    return [None, lambda array: torch.as_tensor(np.array(array))]  # runs where torch is: make test-ecosystem's venv


@pytest.fixture(params=tensor_kinds())
def tensors(request: pytest.FixtureRequest) -> Any:
    return request.param


def made(env: Any = RLTaskEnv, num_envs: int | None = None, **kwargs: Any) -> MetaSimBackend:
    backend = load_backend("metasim")
    assert isinstance(backend, MetaSimBackend)
    backend.num_envs = num_envs
    backend.make(env, kwargs)
    return backend


@pytest.mark.parametrize("as_dictionaries", [False, True])
def test_a_scene_is_what_mujoco_says_by_name(as_dictionaries: bool) -> None:
    backend = made(make_handler, as_dictionaries=as_dictionaries)
    handler = backend._handler
    handler.datas[0].qvel[:] = [0.5, -0.7, 0.1, 0.2, 0.3, 1.0, 2.0, 3.0]
    for _ in range(3):
        backend.step(np.array([0.3, -0.2]))
    state = backend.state(native=False)
    state.check()
    truth = MujocoScene(handler.model).read(handler.datas[0])
    assert [(e.name, e.joint_names, e.link_names) for e in state.layout.entities] == [
        ("arm", ("elbow", "shoulder"), ("arm", "forearm")),
        ("cube", (), ("cube",)),
    ]
    assert state.time_s == pytest.approx(3 * 4 * 0.005)
    for name in ("arm", "cube"):
        np.testing.assert_allclose(state[name].root_pose, truth[name].root_pose, atol=TOLERANCE)
        np.testing.assert_allclose(state[name].link_poses, truth[name].link_poses, atol=TOLERANCE)
    np.testing.assert_allclose(state["cube"].root_velocity, truth["cube"].root_velocity, atol=1e-5)
    np.testing.assert_allclose(state["arm"].joint_positions, truth["arm"].joint_positions[::-1], atol=TOLERANCE)
    np.testing.assert_allclose(state["arm"].joint_velocities, truth["arm"].joint_velocities[::-1], atol=TOLERANCE)
    with pytest.raises(Unsupported, match="no native state"):
        backend.state(native=True)


@pytest.mark.parametrize("as_dictionaries", [False, True])
def test_a_step_after_a_restore_is_the_step_after_the_original(as_dictionaries: bool, tensors: Any) -> None:
    backend = made(make_handler, as_dictionaries=as_dictionaries, tensors=tensors)
    backend.step(np.array([0.3, -0.2]))
    then = backend.state(native=False)
    after = backend.step(np.array([0.5, 0.5]))[0]
    backend.step(np.array([-1.0, 1.0]))
    backend.restore(then)
    assert backend.state(native=False).time_s == then.time_s
    np.testing.assert_allclose(backend.state(native=False).values, then.values, atol=TOLERANCE)
    np.testing.assert_allclose(backend.step(np.array([0.5, 0.5]))[0], after, atol=1e-5)  # float32 in, float32 out
    assert backend.state(native=False).time_s == pytest.approx(2 * then.time_s)


def test_a_state_goes_in_by_name_whatever_its_order() -> None:
    backend = made(make_handler)
    backend.step(np.array([0.3, -0.2]))
    then = backend.state(native=False)
    backend.step(np.array([0.3, -0.2]))
    other = SceneLayout((EntityLayout("cube"), EntityLayout("arm", ("shoulder", "elbow"))), "elsewhere")
    shuffled = SceneState(other, np.zeros(other.size))
    for name in ("arm", "cube"):
        shuffled[name].root_pose[:] = then[name].root_pose
        shuffled[name].root_velocity[:] = then[name].root_velocity
    shuffled["arm"].joint_positions[:] = then["arm"].joint_positions[::-1]
    shuffled["arm"].joint_velocities[:] = then["arm"].joint_velocities[::-1]
    backend.restore(shuffled)
    np.testing.assert_allclose(backend.state(native=False).values[1:], then.values[1:], atol=TOLERANCE)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    backend = made(make_handler)
    before = backend.state(native=False)
    other = SceneLayout((EntityLayout("arm", ("elbow", "wrist")), EntityLayout("ball")), "mujoco 3")
    with pytest.raises(
        InputError, match=r"of mujoco 3.*only in the state: arm/wrist, ball; only here: arm/shoulder, c"
    ):
        backend.restore(SceneState(other, np.zeros(other.size)))
    bad = SceneState(before.layout, before.values.copy())
    bad["cube"].root_pose[3:] = 0.0
    with pytest.raises(InputError, match=r"'cube'.*quaternion of norm 0"):
        backend.restore(bad)
    assert backend.state(native=False) == before


def test_velocities_that_the_simulator_forgets_are_told_of() -> None:
    backend = made(make_handler, forgets_velocities=True)
    backend.step(np.array([0.3, -0.2]))
    moving = backend.state(native=False)
    with pytest.raises(Unsupported, match=r"took the poses.*velocities of 'arm'.*1\.0\.0b0"):
        backend.restore(moving)
    at_rest = SceneState(moving.layout, moving.values.copy())
    for entity in at_rest:
        entity.root_velocity[:] = 0.0
        entity.joint_velocities[:] = 0.0
    backend.restore(at_rest)


def test_one_environment_is_an_ordinary_one(tensors: Any) -> None:
    backend = made(make_task, tensors=tensors)
    assert backend.observation_space.shape == (4,)
    assert backend.action_space.shape == (2,)
    assert backend.metadata["final_observation"] is True
    observation, info = backend.reset(7, None)
    assert backend._handler.seeds == [7]
    assert observation in backend.observation_space
    assert info == {} or "privileged_observation" in info
    for _ in range(4):
        observation, reward, terminated, truncated, info = backend.step(np.array([0.1, 0.1]))
        assert (type(reward), terminated, truncated) == (float, False, False)
    before = backend.state(native=False)
    observation, _, terminated, truncated, info = backend.step(np.array([0.1, 0.1]))
    assert (terminated, truncated) == (False, True)
    end = backend.state(native=False)
    assert end.time_s == pytest.approx(before.time_s + 0.02)  # the scene in which it ended, not the next one's
    joints = np.concatenate([end["arm"].joint_positions, end["arm"].joint_velocities])
    np.testing.assert_allclose(observation, joints, atol=TOLERANCE)
    pending, _ = backend.reset(None, None)
    assert np.abs(pending).max() == 0.0  # the episode that has begun by itself
    assert backend.state(native=False).time_s == 0.0
    assert len(backend._handler.seeds) == 1
    backend.reset(8, None)
    assert backend._handler.seeds == [7, 8]


def test_an_older_version_s_final_observation_is_not_made_up() -> None:
    class Older(RLTaskEnv):
        _note_auto_reset = None  # so that it can be taken away

        def __getattribute__(self, name: str) -> Any:
            if name == "_note_auto_reset":
                raise AttributeError(name)
            return super().__getattribute__(name)

        def step(self, actions: Any) -> tuple[Any, ...]:
            result = BaseTaskEnv.step(self, actions)
            ended = np.flatnonzero(result[2] | result[3]).tolist()
            if ended:
                self.reset(env_ids=ended)
                result[0][ended] = self._observation(self.handler.get_states(mode="tensor"))[ended]
            return (*result[:4], {"observations": {"raw": {"obs": np.full((1, 4), 9.0, np.float32)}}})

    backend = made(Older)
    assert backend.metadata["final_observation"] is False
    backend.reset(None, None)
    for _ in range(5):
        observation, _, _, truncated, _ = backend.step(np.array([0.1, 0.1]))
    assert truncated
    assert np.abs(observation).max() == 0.0  # what the task gave: the next episode's
    assert backend.state(native=False).time_s == pytest.approx(0.1)  # the scene is that of the end all the same


def test_a_batch_keeps_its_environments_apart(tensors: Any) -> None:
    backend = made(make_task, 3, tensors=tensors)
    assert backend.autoreset_mode == "SAME_STEP"
    assert backend.observation_space.shape == (3, 4)
    assert backend.single_action_space.shape == (2,)
    backend.reset(None, None)
    backend.step(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))
    layout, values = backend.states([2, 0])
    assert values.shape == (2, layout.size)
    assert np.abs(values[0] - values[1]).max() > 1e-3
    assert backend.final_states() is None
    one = values[0].copy()
    backend.restore_states(layout, one[None], [1])
    np.testing.assert_allclose(backend.states([1])[1][0], one, atol=TOLERANCE)
    np.testing.assert_allclose(backend.states([0])[1][0], values[1], atol=TOLERANCE)
    backend._handler.datas[1].qpos[0] = 4.0  # ends by itself
    observation, reward, terminated, truncated, infos = backend.step(np.zeros((3, 2)))
    assert terminated.tolist() == [False, True, False]
    assert truncated.tolist() == [False] * 3
    assert reward.shape == (3,)
    assert infos["_final_obs"].tolist() == [False, True, False]
    assert infos["final_obs"][1, 1] > 0.9
    assert np.abs(infos["final_obs"][[0, 2]]).max() == 0.0
    assert np.abs(observation[1]).max() == 0.0
    ids, finals = backend.final_states()  # type: ignore[misc]
    assert list(ids) == [1]
    assert SceneState(layout, finals[0])["arm"].joint_positions[1] > 0.9
    assert backend.states([1])[1][0, 0] == 0.0
    backend.step(np.zeros((3, 2)))
    assert backend.final_states() is None


def test_a_task_that_leaves_resets_to_its_caller() -> None:
    backend = made(BaseTaskEnv, 2)
    assert backend.autoreset_mode == "DISABLED"
    assert backend.observation_space.shape == (2, 4)  # the joints: its own observation is MetaSim's state
    assert backend.single_action_space.low.tolist() == [-2.0, -1.0]  # elbow, shoulder
    backend.reset(None, None)
    for _ in range(5):
        truncated = backend.step(np.full((2, 2), 0.3))[3]
    assert truncated.all()
    observation, _ = backend.reset(None, {"reset_mask": np.array([True, False])})
    assert np.abs(observation[0]).max() == 0.0
    assert np.abs(observation[1]).max() > 0.0
    assert backend.states([0, 1])[1][:, 0].tolist() == [0.0, pytest.approx(0.1)]
    with pytest.raises(InputError, match=r"reset_mask has shape \(3,\)"):
        backend.reset(None, {"reset_mask": [True] * 3})


def test_everything_of_it_can_cross_the_wire() -> None:
    backend = made(make_task, 2)
    for space in (backend.observation_space, backend.action_space, backend.single_observation_space):
        space_to_plain(space)
    description = backend.describe_scene()
    assert [(shape.entity, shape.kind, shape.size) for shape in description.shapes] == [
        ("cube", "box", (0.03, 0.04, 0.05))
    ]
    assert description.notes == ("arm: its shapes are in a file",)


def test_served_like_any_other(isolated_home: Path) -> None:
    stand_in = Path(__file__).parents[1] / "tasks_for_tests/metasim_stand_in.py"
    with RemoteEnv(env=f"{stand_in}:make_task", simulator="metasim", capture_state=True) as env:
        env.reset(seed=3)
        for _ in range(4):
            env.step(np.array([0.1, 0.1], np.float32))
        before = env.get_state()
        after = env.step(np.array([0.2, 0.2], np.float32))
        assert after[3] is True
        assert env.get_state().time_s == pytest.approx(0.1)
        env.reset()
        env.set_state(before)
        np.testing.assert_allclose(env.get_state().values, before.values, atol=TOLERANCE)
        np.testing.assert_allclose(env.step(np.array([0.2, 0.2], np.float32))[0], after[0], atol=1e-5)
        assert env.get_scene_description().shapes[0].entity == "cube"


def test_a_batch_served_like_any_other(isolated_home: Path) -> None:
    stand_in = Path(__file__).parents[1] / "tasks_for_tests/metasim_stand_in.py"
    with RemoteVectorEnv(env=f"{stand_in}:make_task", simulator="metasim", num_envs=3, capture_state=True) as env:
        env.reset(seed=1)
        for _ in range(5):
            truncated, infos = env.step(np.full((3, 2), 0.1, np.float32))[3:]
        assert truncated.all()
        assert infos["_final_obs"].all()
        assert {env_id: state.time_s for env_id, state in env.final_states.items()} == pytest.approx(
            {0: 0.1, 1: 0.1, 2: 0.1}
        )
        assert [state.time_s for state in env.get_states()] == [0.0] * 3
        env.set_states([env.final_states[1]], [2])
        assert env.get_state(2).time_s == pytest.approx(0.1)
        assert env.get_state(0).time_s == 0.0


def test_without_metasim_it_says_what_to_install() -> None:
    for name in ("close_box", "RoboVerse/close_box", "scenario"):
        with pytest.raises(ConfigError, match=r"cannot import 'metasim'.*roboverse-metasim\[mujoco\].*another project"):
            made(name)


def test_mistakes_in_the_making_name_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no \['num_env'\].*'decimation'.*'simulator'"):
        made(RLTaskEnv, num_env=3)
    with pytest.raises(ConfigError, match="made a dict; it must make a MetaSim task or handler"):
        made(lambda num_envs: {})
    with pytest.raises(ConfigError, match="no task file"):
        made("/nowhere/task.py:make")
    with pytest.raises(ConfigError, match="names '/'"):
        made("os:sep")

    def get_task_class(name: str) -> Any:
        raise KeyError(f"Unknown task '{name}'. Registered tasks: reach")

    registry = type(sys)("metasim.task.registry")
    registry.get_task_class = get_task_class  # type: ignore[attr-defined]
    for name in ("metasim", "metasim.task"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, "metasim.task.registry", registry)
    with pytest.raises(ConfigError, match=r"no task of MetaSim's here: Unknown task 'walk'. Registered tasks: reach"):
        made("RoboVerse/walk")
    registry.get_task_class = lambda name: RLTaskEnv  # type: ignore[attr-defined]
    shared = RLTaskEnv.scenario
    assert made("reach", 2)._count == 2
    assert RLTaskEnv.scenario is shared
    assert shared.num_envs == 1  # the task's own scenario is not changed


def test_a_handler_with_a_step_of_its_own_is_a_handler_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInHandler, "step", lambda self, action: None, raising=False)  # as before 0.2.0
    backend = made(make_handler)
    backend.step(np.array([0.3, -0.2]))
    assert backend.state(native=False)["arm"].joint_positions.any()


def test_a_step_of_unknown_length_has_to_be_given() -> None:
    def make(num_envs: int) -> Any:
        handler = make_handler(num_envs)
        handler.__class__ = type("NoTime", (type(handler),), {"env_step_s": None})
        return handler

    backend = made(make)
    backend.step(np.zeros(2))
    with pytest.raises(ConfigError, match=r"NoTime does not tell how long a step is.*step_dt_s"):
        backend.state(native=False)
    timed = made(make, step_dt_s=0.25)
    timed.step(np.zeros(2))
    assert timed.state(native=False).time_s == 0.25


def test_isaac_s_velocities_of_the_centre_of_mass_become_those_of_the_origin() -> None:
    """Isaac Lab's root_state_w has the velocity of the centre of mass; never run on Isaac Sim here."""
    centre = np.array([0.01, 0.0, 0.0])

    def make(num_envs: int) -> Any:
        handler = make_handler(num_envs)
        handler.scenario.simulator = "isaacsim"
        centres = {"arm": np.zeros((num_envs, 2, 3)), "cube": np.tile(centre, (num_envs, 1, 1))}
        datas = {name: type("Asset", (), {"data": type("D", (), {"body_com_pos_b": c})}) for name, c in centres.items()}
        handler.scene = type(
            "Scene", (), {"articulations": {"arm": datas["arm"]}, "rigid_objects": {"cube": datas["cube"]}}
        )
        return handler

    backend = made(make)
    backend._handler.datas[0].qvel[5:] = [0.0, 0.0, 2.0]  # about z: the centre at x = 0.01 moves along y
    state = backend.state(native=False)
    np.testing.assert_allclose(state["cube"].root_velocity[:3], -np.cross([0, 0, 2.0], centre), atol=TOLERANCE)
    backend.restore(state)
    np.testing.assert_allclose(backend.state(native=False).values, state.values, atol=TOLERANCE)
