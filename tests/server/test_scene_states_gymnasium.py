"""Scene states of Gymnasium's own MuJoCo tasks, through the backend that serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from remote_env import RemoteEnv
from remote_env.errors import InputError, ReplayError, Unsupported
from remote_env.server.gymnasium_backend import GymnasiumBackend
from remote_env.state import EntityLayout, SceneLayout, SceneState

# id: entities with how many joints and links; how far an observation may be off one step after a restore by name, which
# has positions, joints and velocities but not the solver's warm start. Measured with MuJoCo 3.8.1: at most 2e-14, but
# 1e-12 for Humanoid and 5e-5 for HumanoidStandup.
TASKS = {
    "HalfCheetah-v5": ({"torso": (9, 7)}, 1e-12),
    "Hopper-v5": ({"torso": (6, 4)}, 1e-12),
    "Walker2d-v5": ({"torso": (9, 7)}, 1e-12),
    "Swimmer-v5": ({"torso": (5, 3)}, 1e-12),
    "Ant-v5": ({"torso": (8, 13)}, 1e-12),
    "Humanoid-v5": ({"torso": (17, 13)}, 1e-10),
    "HumanoidStandup-v5": ({"torso": (17, 13)}, 1e-3),  # lies in many contacts: the solver stops at its tolerance
    "Pusher-v5": ({"r_shoulder_pan_link": (7, 10), "object": (2, 1), "goal": (2, 1)}, 1e-12),
    "Reacher-v5": ({"body0": (2, 3), "target": (2, 1)}, 1e-12),
    "InvertedPendulum-v5": ({"cart": (2, 2)}, 1e-12),
    "InvertedDoublePendulum-v5": ({"cart": (3, 3)}, 1e-12),
}


def made(env: Any, **kwargs: Any) -> GymnasiumBackend:
    backend = GymnasiumBackend()
    backend.make(env, kwargs)
    return backend


def actions_for(backend: GymnasiumBackend, count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, backend.action_space.shape) * backend.action_space.high for _ in range(count)]


def play(backend: GymnasiumBackend, actions: list[Any]) -> list[Any]:
    return [backend.step(action)[0].copy() for action in actions]


@pytest.mark.parametrize("task", TASKS)
def test_a_state_says_what_the_model_calls_its_parts_and_time_advances(task: str) -> None:
    backend = made(task)
    backend.reset(0, None)
    began = backend.state(native=False)
    play(backend, actions_for(backend, 3))
    state = backend.state(native=False)
    state.check()
    found = {e.name: (len(e.joint_names), len(e.link_names)) for e in state.layout.entities}
    assert found == TASKS[task][0]
    assert all(entity.link_names[0] == entity.name for entity in state.layout.entities)  # the root first
    step_s = backend._env.unwrapped.dt  # type: ignore[attr-defined]
    assert state.time_s - began.time_s == pytest.approx(3 * step_s)
    model, data = backend._env.unwrapped.model, backend._env.unwrapped.data  # type: ignore[attr-defined]
    for entity in state:
        for joint, position in zip(entity.layout.joint_names, entity.joint_positions, strict=True):
            assert position == data.joint(joint).qpos[0]
        names = {model.body(body).name or f"unnamed_body_{body}" for body in range(model.nbody)}
        assert set(entity.layout.link_names) <= names


@pytest.mark.parametrize("task", TASKS)
def test_a_native_state_continues_bit_for_bit(task: str) -> None:
    backend = made(task)
    backend.reset(0, None)
    actions = actions_for(backend, 230)
    play(backend, actions[:30])
    state = backend.state(native=True)
    expected, end = play(backend, actions[30:]), backend.state(native=True)
    backend.restore(state)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, play(backend, actions[30:]), strict=True))
    assert backend.state(native=True) == end  # with the solver's warm start


@pytest.mark.parametrize("task", TASKS)
def test_a_step_after_a_restore_by_name_is_the_step_after_the_original(task: str) -> None:
    backend = made(task)
    backend.reset(0, None)
    actions = actions_for(backend, 40)
    play(backend, actions[:30])
    state = backend.state(native=False)
    expected = play(backend, actions[30:31])[0]
    play(backend, actions[31:])
    backend.restore(state)
    # xpos of a fresh forward pass where the original had that of the step before: equal to rounding
    np.testing.assert_allclose(backend.state(native=False).values, state.values, rtol=0, atol=1e-14)
    np.testing.assert_allclose(play(backend, actions[30:31])[0], expected, rtol=0, atol=TASKS[task][1])


def numeric_velocity(before: Any, after: Any, step_s: float) -> Any:
    """(6,) linear and angular velocity between two (7,) poses, world axes."""
    w, x, y, z = before[3:] * (1, -1, -1, -1)
    matrix = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])  # q -> q * conj(before)
    turn = matrix @ after[3:]  # right product with the conjugate
    turn *= np.sign(turn[0])
    return np.concatenate([after[:3] - before[:3], 2 * turn[1:]]) / step_s


@pytest.mark.parametrize("task", ["Humanoid-v5", "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5"])
def test_a_root_s_velocity_is_that_of_its_origin_in_world_axes_however_it_is_joined(task: str) -> None:
    """Humanoid and Ant float by a free joint; the others' roots move by slides and hinges of their own."""
    backend = made(task)
    backend.reset(0, None)
    play(backend, actions_for(backend, 15))
    import mujoco

    model, data = backend._env.unwrapped.model, backend._env.unwrapped.data  # type: ignore[attr-defined]
    state, tiny = backend.state(native=False), 1e-7
    later = data.qpos.copy()
    mujoco.mj_integratePos(model, later, data.qvel, tiny)
    before = state[next(iter(state)).layout.name]
    data.qpos[:] = later
    after = backend.state(native=False)[before.layout.name]
    numeric = numeric_velocity(before.root_pose, after.root_pose, tiny)
    assert np.abs(numeric).max() > 0.05
    np.testing.assert_allclose(before.root_velocity, numeric, atol=1e-5)


def test_a_state_of_another_task_is_refused_by_name() -> None:
    cheetah, hopper = made("HalfCheetah-v5"), made("Hopper-v5")
    cheetah.reset(0, None)
    hopper.reset(0, None)
    before = hopper.state(native=True)
    with pytest.raises(
        ReplayError, match=r"only in the state: torso/joint bfoot.*only in the model: torso/joint foot_jo"
    ):
        hopper.restore(cheetah.state(native=True))
    bad = hopper.state(native=False)
    bad.values[3] = np.nan
    with pytest.raises(InputError, match=r"'torso'.*not finite"):
        hopper.restore(bad)
    assert hopper.state(native=True) == before


def test_over_the_wire_bit_for_bit(isolated_home: Path) -> None:
    with RemoteEnv(env="Humanoid-v5") as env:
        env.reset(seed=1)
        rng = np.random.default_rng(1)
        actions = rng.uniform(-0.4, 0.4, (30, 17)).astype(np.float32)
        for action in actions[:10]:
            env.step(action)
        state = env.get_state(native=True)
        expected = [env.step(action)[0].tobytes() for action in actions[10:]]
        env.set_state(state)
        assert [env.step(action)[0].tobytes() for action in actions[10:]] == expected


class Pendulum(gymnasium.Env):
    """A task of one's own that is no MuJoCo model and tells its scene itself."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)
    layout = SceneLayout((EntityLayout("bob", ("hinge",), ("bob",)),), "own 1")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time_s, self.angle, self.speed = 0.0, 1.0, 0.0
        return self._seen(), {}

    def _seen(self) -> Any:
        return np.array([self.angle, self.speed])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.speed += 0.02 * (float(action[0]) - 9.81 * np.sin(self.angle))
        self.angle += 0.02 * self.speed
        self.time_s += 0.02
        return self._seen(), 0.0, False, False, {}

    def get_scene_state(self, *, native: bool) -> SceneState:
        state = SceneState(self.layout, np.zeros(self.layout.size), b"own" if native else None)
        state.values[0] = self.time_s
        bob = state["bob"]
        bob.root_pose[:] = bob.link_poses[0] = [np.sin(self.angle), 0, -np.cos(self.angle), 1, 0, 0, 0]
        bob.joint_positions[0], bob.joint_velocities[0] = self.angle, self.speed
        return state

    def set_scene_state(self, state: SceneState) -> None:
        self.time_s = state.time_s
        self.angle, self.speed = state["bob"].joint_positions[0], state["bob"].joint_velocities[0]


def test_a_task_of_one_s_own_tells_and_takes_its_scene_itself() -> None:
    backend = made(lambda: gymnasium.wrappers.TimeLimit(Pendulum(), 50))  # found behind wrappers
    backend.reset(0, None)
    backend.step(np.zeros(1))
    state = backend.state(native=True)
    assert (state.layout.source, state.native, state.time_s) == ("own 1", b"own", 0.02)
    expected = backend.step(np.ones(1))[0]
    backend.step(np.ones(1))
    backend.restore(state)
    assert backend.state(native=True) == state
    assert backend.step(np.ones(1))[0].tobytes() == expected.tobytes()


def test_a_task_without_a_scene_says_how_to_have_one() -> None:
    backend = made("CartPole-v1")
    backend.reset(0, None)
    with pytest.raises(Unsupported, match=r"no MuJoCo environment, and it offers no get_scene_state\(native=...\)"):
        backend.state(native=False)
