"""A stand-in for MetaSim, which cannot be installed here: its handler's and tasks' calls, over real MuJoCo physics.

Written after MetaSim's source (RoboVerse `packages/metasim`, 1.0.0b0, September 2026): `TensorState`s of `root_state
(N, 13)` and arrays in alphabetical order of joints and bodies, `get_states(mode=…)`, `set_states(states, env_ids)` with
the rows of the whole batch, an `RLTaskEnv` that resets in the same step. Its tensors are numpy arrays, or torch's.
"""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np

ARM = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <geom type="plane" size="2 2 0.1"/>
    <body name="arm" pos="0.1 0.2 0.3" quat="0.9659258 0 0 0.2588190">
      <joint name="shoulder" axis="0 1 0" damping="0.1"/><geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.02"/>
      <body name="forearm" pos="0.2 0 0">
        <joint name="elbow" axis="0 1 0" damping="0.1"/><geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.02"/>
      </body>
    </body>
    <body name="cube" pos="0.6 0 0.5"><freejoint/><geom type="box" size="0.03 0.04 0.05" pos="0.01 0 0"/></body>
  </worldbody>
  <actuator><position joint="shoulder" kp="5"/><position joint="elbow" kp="5"/></actuator>
</mujoco>
"""
JOINTS = {"arm": ["shoulder", "elbow"], "cube": []}
BODIES = {"arm": ["arm", "forearm"], "cube": []}


@dataclasses.dataclass
class EntityState:
    root_state: Any
    body_names: list[str] | None = None
    body_state: Any = None
    joint_pos: Any = None
    joint_vel: Any = None
    joint_pos_target: Any = None


@dataclasses.dataclass
class TensorState:
    objects: dict[str, EntityState]
    robots: dict[str, EntityState]
    cameras: dict[str, Any]
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Scenario:
    """The fields of MetaSim's that matter here."""

    num_envs: int = 1
    simulator: str | None = None
    headless: bool = False
    decimation: int = 4
    robots: list[Any] = dataclasses.field(
        default_factory=lambda: [SimpleNamespace(name="arm", joint_limits={"elbow": (-2, 2), "shoulder": (-1, 1)})]
    )
    objects: list[Any] = dataclasses.field(
        default_factory=lambda: [
            SimpleNamespace(name="cube", half_size=[0.03, 0.04, 0.05], color=[1, 0, 0], collision_enabled=True)
        ]
    )
    cameras: list[Any] = dataclasses.field(default_factory=list)
    sim_params: Any = dataclasses.field(default_factory=lambda: SimpleNamespace(dt=None))

    def update(self, **fields: Any) -> Scenario:
        for name, value in fields.items():
            setattr(self, name, value)
        return self


class StandInHandler:
    """MetaSim's handler over one MuJoCo model and a data object per environment.

    Args:
        scenario: which says how many environments.
        tensors: makes the simulator's tensors of arrays.
        as_dictionaries: give lists of nested dictionaries, whatever mode is asked for.
        forgets_velocities: as MetaSim's MuJoCo handler did before 1.0.0b0.
    """

    def __init__(
        self,
        scenario: Scenario,
        tensors: Any = None,
        *,
        as_dictionaries: bool = False,
        forgets_velocities: bool = False,
    ) -> None:
        self.scenario, self.robots, self.objects = scenario, scenario.robots, scenario.objects
        self.num_envs, self.is_closed, self.seeds = scenario.num_envs, False, []
        self.model = mujoco.MjModel.from_xml_string(ARM)
        self.datas = [mujoco.MjData(self.model) for _ in range(self.num_envs)]
        self._tensors = tensors or (lambda array: np.asarray(array, np.float32))
        self._as_dictionaries, self._forgets = as_dictionaries, forgets_velocities
        for data in self.datas:
            mujoco.mj_forward(self.model, data)

    @property
    def env_step_s(self) -> float:
        return self.model.opt.timestep * self.scenario.decimation

    def get_joint_names(self, name: str, sort: bool = True) -> list[str]:
        return sorted(JOINTS[name]) if sort else JOINTS[name]

    def get_body_names(self, name: str, sort: bool = True) -> list[str]:
        return sorted(BODIES[name]) if sort else BODIES[name]

    def get_states(self, env_ids: list[int] | None = None, mode: str = "dict") -> Any:
        states = TensorState({"cube": self._entity("cube")}, {"arm": self._entity("arm")}, {})
        if mode == "dict" or self._as_dictionaries:
            return [self._nested(states, env_id) for env_id in range(self.num_envs)]
        return states

    def _entity(self, name: str) -> EntityState:
        state = EntityState(self._tensors([self._body(data, name) for data in self.datas]))
        if JOINTS[name]:
            joints, bodies = self.get_joint_names(name), self.get_body_names(name)
            state.joint_pos = self._tensors([[data.joint(joint).qpos[0] for joint in joints] for data in self.datas])
            state.joint_vel = self._tensors([[data.joint(joint).qvel[0] for joint in joints] for data in self.datas])
            state.body_names = bodies
            state.body_state = self._tensors([[self._body(data, body) for body in bodies] for data in self.datas])
        return state

    def _body(self, data: Any, name: str) -> list[float]:
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_comVel(self.model, data)
        velocity, body = np.zeros(6), self.model.body(name).id
        mujoco.mj_objectVelocity(self.model, data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
        return [*data.xpos[body], *data.xquat[body], *velocity[3:], *velocity[:3]]

    def _nested(self, states: TensorState, env_id: int) -> dict[str, Any]:
        nested: dict[str, Any] = {"cameras": {}, "extras": {}}
        for kind in ("robots", "objects"):
            nested[kind] = {}
            for name, entity in getattr(states, kind).items():
                root = entity.root_state[env_id]
                part = {"pos": root[:3], "rot": root[3:7], "vel": root[7:10], "ang_vel": root[10:]}
                if JOINTS[name]:
                    names = self.get_joint_names(name)
                    part["dof_pos"] = {joint: float(entity.joint_pos[env_id, i]) for i, joint in enumerate(names)}
                    part["dof_vel"] = {joint: float(entity.joint_vel[env_id, i]) for i, joint in enumerate(names)}
                    part["dof_pos_target"] = None
                    part["body"] = {
                        body: {"pos": entity.body_state[env_id, i, :3], "rot": entity.body_state[env_id, i, 3:7]}
                        for i, body in enumerate(self.get_body_names(name))
                    }
                nested[kind][name] = part
        return nested

    def set_states(self, states: Any, env_ids: list[int] | None = None) -> None:
        if not isinstance(states, list):
            states = [self._nested(states, env_id) for env_id in range(self.num_envs)]
        for env_id in range(self.num_envs) if env_ids is None else env_ids:
            self._set(self.datas[env_id], states[env_id])

    def _set(self, data: Any, state: dict[str, Any]) -> None:
        cube, arm = state["objects"]["cube"], state["robots"]["arm"]
        joint = data.joint(int(self.model.body("cube").jntadr[0]))
        joint.qpos[:] = [*cube["pos"], *cube["rot"]]
        inverse, spin = np.zeros(4), np.zeros(3)
        mujoco.mju_negQuat(inverse, np.asarray(cube["rot"], np.float64))
        mujoco.mju_rotVecQuat(spin, np.asarray(cube["ang_vel"], np.float64), inverse)
        joint.qvel[:] = [*cube["vel"], *spin]
        for name in JOINTS["arm"]:
            data.joint(name).qpos[0] = arm["dof_pos"][name]
            data.joint(name).qvel[0] = arm["dof_vel"][name]
        if self._forgets:
            data.qvel[:] = 0.0
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.model, data)

    def set_dof_targets(self, actions: Any) -> None:
        for data, row in zip(self.datas, actions, strict=True):
            for value, name in zip(row, self.get_joint_names("arm"), strict=True):
                data.ctrl[JOINTS["arm"].index(name)] = float(value)

    def simulate(self) -> None:
        for data in self.datas:
            mujoco.mj_step(self.model, data, self.scenario.decimation)

    def set_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def close(self) -> None:
        self.is_closed = True


class BaseTaskEnv:
    """MetaSim's task without resets of its own; its observation is the handler's state unless a task says otherwise."""

    scenario = Scenario()
    max_episode_steps = 5

    def __init__(self, scenario: Any = None, device: Any = None, tensors: Any = None, **handler: Any) -> None:
        self.scenario, self.device = scenario, device
        self.num_envs = scenario.num_envs
        self.handler = StandInHandler(scenario, tensors, **handler)
        self._tensor = tensors or np.asarray
        self._initial = copy.deepcopy(self.handler.get_states(mode="tensor"))
        self._episode_steps = np.zeros(self.num_envs, int)

    @property
    def observation_space(self) -> Any:
        return gymnasium.spaces.Box(-np.inf, np.inf, (0,))

    action_space = observation_space

    def _observation(self, states: Any) -> Any:
        return states

    def _ends(self) -> tuple[Any, Any]:
        terminated = np.array([data.qpos[0] > 0.9 for data in self.handler.datas])
        return self._tensor(terminated), self._tensor(self._episode_steps >= self.max_episode_steps)

    def reset(self, states: Any = None, env_ids: Any = None, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.handler.set_seed(seed)
        env_ids = list(range(self.num_envs)) if env_ids is None else env_ids
        self.handler.set_states(self._initial if states is None else states, env_ids)
        self._episode_steps[env_ids] = 0
        observation = self._observation(self.handler.get_states(mode="tensor"))
        rows = observation[env_ids] if hasattr(observation, "shape") else observation
        return rows, {"privileged_observation": observation}

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.handler.set_dof_targets(actions)
        self.handler.simulate()
        self._episode_steps += 1
        states = self.handler.get_states(mode="tensor")
        reward = self._tensor(np.array([data.qpos[0] for data in self.handler.datas], np.float32))
        return (self._observation(states), reward, *self._ends(), {"privileged_observation": states})

    def close(self) -> None:
        self.handler.close()


class RLTaskEnv(BaseTaskEnv):
    """MetaSim's task that resets what has ended in the same step; the observation is one tensor."""

    @property
    def observation_space(self) -> Any:
        return gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    @property
    def action_space(self) -> Any:
        return gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _observation(self, states: Any) -> Any:
        arm = states.robots["arm"]
        return self._tensor(np.concatenate([np.asarray(arm.joint_pos), np.asarray(arm.joint_vel)], axis=1))

    def reset(self, states: Any = None, env_ids: Any = None, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(states, env_ids, seed)
        return self._observation(self.handler.get_states(mode="tensor")), info

    def _note_auto_reset(self, env_ids: list[int], states: Any, info: dict[str, Any]) -> None:
        info["auto_reset_env_ids"] = list(env_ids)

    def step(self, actions: Any) -> tuple[Any, ...]:
        observation, reward, terminated, timed_out, info = super().step(actions)
        info["observations"] = {"raw": {"obs": copy.deepcopy(observation)}}
        info["episode_steps"] = self._tensor(self._episode_steps.copy())
        ended = np.flatnonzero(np.asarray(terminated) | np.asarray(timed_out)).tolist()
        self._note_auto_reset(ended, None, info)
        if ended:
            self.reset(env_ids=ended)
            after = self._observation(self.handler.get_states(mode="tensor"))
            observation[ended] = after[ended]
        return observation, reward, terminated, timed_out, info


def make_handler(num_envs: int, **options: Any) -> StandInHandler:
    """A bare handler, as `get_handler(scenario)` gives one."""
    return StandInHandler(Scenario(num_envs=num_envs), **options)


def make_task(num_envs: int, **options: Any) -> RLTaskEnv:
    """A task with options of the handler's."""
    return RLTaskEnv(Scenario(num_envs=num_envs), **options)
