"""The task: an arm that is to lift a cube off the ground, on Isaac Lab 3 with Newton. Needs Isaac Lab.

Action (7,): targets of the six joints [rad] in the order of `arm.ARM_JOINTS`, and the gap between the fingers [m].
Observation "policy" (23,): positions and velocities of the eight joints in that order and then left and right finger
[rad, m], the cube's position in the frame of its environment [m] and its quaternion wxyz.
50 steps a second; at most 300 steps; an episode ends when the cube was held up for half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import isaaclab.sim as sim_utils
import numpy as np
import torch
from gymnasium.spaces import Box
from isaaclab.actuators import ImplicitActuatorCfg
from isaaclab.assets import ArticulationCfg, AssetBaseCfg, RigidObjectCfg
from isaaclab.envs import DirectRLEnv, DirectRLEnvCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sim import SimulationCfg
from isaaclab.utils.configclass import configclass
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg, NewtonShapeCfg

from .arm import ARM_JOINTS, CUBE_SIZE_M, FINGER_JOINTS, HOME, LINKS, MAX_GAP_M

ASSETS = Path(__file__).parent / "assets"
LIFT_M = 0.10
HELD_STEPS = 25
GRASP_REACH_M = 0.15  # from the hand's frame to whatever it holds; the finger tips are at 0.13
REACH_M = (0.28, 0.44)  # where cubes are put: so far from the base,
AZIMUTH_RAD = 0.9  # and up to so far to its sides
YAW_RAD = np.pi / 4

_LIMITS = np.array([link.limits for link in LINKS if link.joint in ARM_JOINTS] + [(0.0, MAX_GAP_M)], np.float32)
_HOME = dict(zip(ARM_JOINTS, HOME, strict=True)) | {FINGER_JOINTS[0]: MAX_GAP_M / 2, FINGER_JOINTS[1]: -MAX_GAP_M / 2}


def _usd(name: str) -> Any:
    return sim_utils.UsdFileCfg(usd_path=str(ASSETS / f"{name}.usda"))


@configclass
class PickSceneCfg(InteractiveSceneCfg):
    """Arm, cube and ground; the arm's base is the origin of its environment."""

    ground = AssetBaseCfg(
        prim_path="/World/ground",
        spawn=sim_utils.GroundPlaneCfg(usd_path=str(ASSETS / "ground.usda"), color=None),
    )
    robot = ArticulationCfg(
        prim_path="{ENV_REGEX_NS}/Robot",
        spawn=_usd("robot"),
        init_state=ArticulationCfg.InitialStateCfg(joint_pos=_HOME),
        actuators={
            "arm": ImplicitActuatorCfg(
                joint_names_expr=list(ARM_JOINTS),
                stiffness=2500.0,
                damping=120.0,
                armature=0.05,
                effort_limit_sim=150.0,
            ),
            "fingers": ImplicitActuatorCfg(
                joint_names_expr=list(FINGER_JOINTS),
                stiffness=2000.0,
                damping=40.0,
                armature=0.05,
                effort_limit_sim=30.0,
            ),
        },
    )
    cube = RigidObjectCfg(
        prim_path="{ENV_REGEX_NS}/Cube",
        spawn=_usd("cube"),
        init_state=RigidObjectCfg.InitialStateCfg(pos=(0.35, 0.0, CUBE_SIZE_M / 2)),
    )


@configclass
class IsaacPickEnvCfg(DirectRLEnvCfg):
    """What the task is made with."""

    decimation = 4
    episode_length_s = 6.0
    action_space = Box(_LIMITS[:, 0], _LIMITS[:, 1], dtype=np.float32)
    observation_space = 2 * len(_HOME) + 7
    sim = SimulationCfg(
        dt=0.005,
        render_interval=4,
        # Elliptic cones with a high ratio of impedances keep what is held from creeping out of the fingers.
        physics=NewtonCfg(
            solver_cfg=MJWarpSolverCfg(
                njmax=120, nconmax=40, cone="elliptic", impratio=10.0, integrator="implicitfast", iterations=50
            ),
            # Stiff: a time constant of 2 / kd is two physics steps.
            default_shape_cfg=NewtonShapeCfg(ke=1.0e4, kd=200.0, gap=0.0),
        ),
    )
    scene = PickSceneCfg(num_envs=1, env_spacing=2.0)
    compute_final_obs = True


class IsaacPickEnv(DirectRLEnv):
    """Pick the cube.

    `reset(seed=s)` gives environment i what a single environment gets with the seed s + i.
    `extras["is_success"]`: (num_envs,) bool, whether the cube has been held up for half a second.
    """

    cfg: IsaacPickEnvCfg

    def __init__(self, cfg: IsaacPickEnvCfg, render_mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(cfg, render_mode, **kwargs)
        self._robot, self._cube = self.scene["robot"], self.scene["cube"]
        self._joints, _ = self._robot.find_joints([*ARM_JOINTS, *FINGER_JOINTS], preserve_order=True)
        self._hand = self._robot.find_bodies("hand_link")[0][0]
        self._held = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        self._targets = torch.zeros(self.num_envs, len(self._joints), device=self.device)
        self._random = _generators(self.num_envs, 0 if cfg.seed is None else cfg.seed)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start all episodes anew."""
        if seed is not None:
            self._random = _generators(self.num_envs, seed)
        return super().reset(seed, options)

    def _pre_physics_step(self, actions: torch.Tensor) -> None:
        low, high = (torch.as_tensor(_LIMITS[:, side], device=self.device) for side in (0, 1))
        actions = actions.clamp(low, high)
        self._targets[:, :6] = actions[:, :6]
        self._targets[:, 6] = actions[:, 6] / 2
        self._targets[:, 7] = -actions[:, 6] / 2

    def _apply_action(self) -> None:
        self._robot.actuators.target_command.set_position_index(value=self._targets, joint_ids=self._joints)

    def _get_observations(self) -> dict[str, torch.Tensor]:
        position, velocity = (
            values[:, self._joints] for values in (self._robot.data.joint_pos.torch, self._robot.data.joint_vel.torch)
        )
        quaternion = self._cube.data.root_quat_w.torch[:, [3, 0, 1, 2]]  # Isaac Lab 3 has xyzw
        return {"policy": torch.cat((position, velocity, self._cube_position(), quaternion), dim=-1)}

    def _get_rewards(self) -> torch.Tensor:
        return (self._lift() / LIFT_M).clamp(0.0, 1.0)

    def _get_dones(self) -> tuple[torch.Tensor, torch.Tensor]:
        hand = self._robot.data.body_pos_w.torch[:, self._hand] - self.scene.env_origins
        is_in_hand = (self._cube_position() - hand).norm(dim=-1) < GRASP_REACH_M
        self._held = torch.where(is_in_hand & (self._lift() >= LIFT_M), self._held + 1, 0)
        is_success = self._held >= HELD_STEPS
        self.extras["is_success"] = is_success
        return is_success, self.episode_length_buf >= self.max_episode_length

    def _cube_position(self) -> torch.Tensor:
        return self._cube.data.root_pos_w.torch - self.scene.env_origins

    def _lift(self) -> torch.Tensor:
        return self._cube_position()[:, 2] - CUBE_SIZE_M / 2

    def _reset_idx(self, env_ids: Sequence[int] | torch.Tensor | None) -> None:
        ids = torch.arange(self.num_envs) if env_ids is None else torch.as_tensor(env_ids).cpu()
        env_ids = ids.to(self.device, torch.int32)
        super()._reset_idx(env_ids)
        rows = ids.to(self.device, torch.long)
        self._held[rows] = 0
        joints = self._robot.data.default_joint_pos.torch[rows].clone()
        self._targets[rows] = joints[:, self._joints]
        self._robot.write_joint_position_to_sim_index(position=joints, env_ids=env_ids)
        self._robot.write_joint_velocity_to_sim_index(velocity=torch.zeros_like(joints), env_ids=env_ids)
        pose = torch.stack([_cube_pose(self._random[index]) for index in ids.tolist()]).to(self.device)
        pose[:, :3] += self.scene.env_origins[rows]
        self._cube.write_root_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
        self._cube.write_root_velocity_to_sim_index(root_velocity=torch.zeros_like(pose[:, :6]), env_ids=env_ids)


def _generators(num_envs: int, seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + index) for index in range(num_envs)]


def _cube_pose(random: np.random.Generator) -> torch.Tensor:
    """(7,) a place on the ground within reach, in the environment's frame; quaternion xyzw, as Isaac Lab 3 has it."""
    reach, azimuth = random.uniform(*REACH_M), random.uniform(-AZIMUTH_RAD, AZIMUTH_RAD)
    yaw = random.uniform(-YAW_RAD, YAW_RAD)
    place = [reach * np.cos(azimuth), reach * np.sin(azimuth), CUBE_SIZE_M / 2]
    return torch.tensor([*place, 0.0, 0.0, np.sin(yaw / 2), np.cos(yaw / 2)], dtype=torch.float32)
