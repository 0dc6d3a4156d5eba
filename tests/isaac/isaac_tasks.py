"""Isaac Lab environments for these tests, from small files of ours: for what no example has. Needs Isaac Lab 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import isaaclab.envs.mdp as mdp
import isaaclab.sim as sim_utils
import numpy as np
import torch
from isaaclab.actuators import ImplicitActuatorCfg
from isaaclab.assets import ArticulationCfg, RigidObjectCfg, RigidObjectCollectionCfg
from isaaclab.envs import DirectRLEnv, DirectRLEnvCfg, ManagerBasedRLEnvCfg
from isaaclab.managers import (
    EventTermCfg,
    ObservationGroupCfg,
    ObservationTermCfg,
    RewardTermCfg,
    SceneEntityCfg,
    TerminationTermCfg,
)
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import CameraCfg
from isaaclab.sim import SimulationCfg
from isaaclab.utils.configclass import configclass
from isaaclab_newton.physics import NewtonCfg
from isaaclab_newton.renderers import NewtonWarpRendererCfg

ASSETS = Path(__file__).parent / "assets"
BROKEN = 90.0  # an action that breaks the physics
TURNED_XYZW = (0.0, 0.0, 0.7071068, 0.7071068)  # by 90° about z


def _usd(name: str) -> Any:
    return sim_utils.UsdFileCfg(usd_path=str(ASSETS / f"{name}.usda"))


def _block(name: str, x: float) -> RigidObjectCfg:
    return RigidObjectCfg(
        prim_path=f"{{ENV_REGEX_NS}}/Block_{name}",
        spawn=sim_utils.CuboidCfg(
            size=(0.1, 0.2, 0.3),
            rigid_props=sim_utils.RigidBodyPropertiesCfg(),
            mass_props=sim_utils.MassPropertiesCfg(mass=0.2),
            collision_props=sim_utils.CollisionPropertiesCfg(),
        ),
        init_state=RigidObjectCfg.InitialStateCfg(pos=(x, 0.5, 2.0)),
    )


def _hinged(name: str, pos: tuple[float, float, float], *, stiffness: float) -> ArticulationCfg:
    return ArticulationCfg(
        prim_path=f"{{ENV_REGEX_NS}}/{name.capitalize()}",
        spawn=_usd(name),
        init_state=ArticulationCfg.InitialStateCfg(pos=pos, rot=TURNED_XYZW),
        actuators={"all": ImplicitActuatorCfg(joint_names_expr=[".*"], stiffness=stiffness, damping=0.2)},
    )


@configclass
class SwingSceneCfg(InteractiveSceneCfg):
    """A fixed arm, and what falls: a stick whose mass is beside its frame, a hinged kite, two blocks."""

    arm = _hinged("arm", (0.0, 0.0, 0.0), stiffness=10.0)
    kite = _hinged("kite", (0.0, 1.0, 3.0), stiffness=1.0)
    stick = RigidObjectCfg(
        prim_path="{ENV_REGEX_NS}/Stick",
        spawn=_usd("stick"),
        init_state=RigidObjectCfg.InitialStateCfg(pos=(1.0, 0.0, 2.0), rot=TURNED_XYZW, ang_vel=(3.0, -2.0, 5.0)),
    )
    blocks = RigidObjectCollectionCfg(rigid_objects={"stick": _block("stick", 2.0), "red": _block("red", 3.0)})


@configclass
class SwingEnvCfg(DirectRLEnvCfg):
    """Five steps of 10 ms."""

    sim = SimulationCfg(dt=0.005, render_interval=2, physics=NewtonCfg())
    scene = SwingSceneCfg(num_envs=1, env_spacing=4.0)
    decimation = 2
    episode_length_s = 0.05
    action_space = 2
    observation_space = 4
    state_space = 2
    compute_final_obs = True


class SwingEnv(DirectRLEnv):
    """The arm follows; an action above 1 ends the episode; one of `BROKEN` gives NaN."""

    cfg: SwingEnvCfg
    remote_calls = ("common_step_counter",)

    def _pre_physics_step(self, actions: torch.Tensor) -> None:
        self._actions = actions

    def _apply_action(self) -> None:
        self.scene["arm"].set_joint_position_target_index(target=self._actions.clamp(-1.0, 1.0))

    def _get_observations(self) -> dict[str, torch.Tensor]:
        data = self.scene["arm"].data
        joints = torch.cat([data.joint_pos.torch, data.joint_vel.torch], -1)
        if getattr(self, "_actions", None) is not None and (self._actions == BROKEN).any():
            joints = joints + float("nan")
        count = self.episode_length_buf
        picture = count.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 4, 6, 3)
        return {"policy": joints, "critic": torch.stack([count, count * 2], -1), "picture": picture}

    def _get_rewards(self) -> torch.Tensor:
        return self.episode_length_buf.float()

    def _get_dones(self) -> tuple[torch.Tensor, torch.Tensor]:
        terminated = (self._actions > 1.0).any(-1) & (self._actions < BROKEN).all(-1)
        self.extras["log"] = {"length": self.episode_length_buf.float().mean(), "deep": {"one": torch.tensor(1)}}
        self.extras["lengths"] = self.episode_length_buf
        self.extras["pairs"] = torch.stack([self.episode_length_buf, self.episode_length_buf], -1)
        self.extras["env"] = self  # cannot cross
        self.extras["is_success"] = terminated
        return terminated, self.episode_length_buf >= self.max_episode_length

    def _reset_idx(self, env_ids: Any) -> None:
        super()._reset_idx(env_ids)
        for name in ("arm", "kite"):
            asset = self.scene[name]
            pose, data = asset.data.default_root_pose.torch[env_ids].clone(), asset.data
            pose[:, :3] += self.scene.env_origins[env_ids]
            asset.write_root_link_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
            asset.write_root_link_velocity_to_sim_index(
                root_velocity=data.default_root_vel.torch[env_ids], env_ids=env_ids
            )
            asset.write_joint_position_to_sim_index(position=data.default_joint_pos.torch[env_ids], env_ids=env_ids)
            asset.write_joint_velocity_to_sim_index(velocity=data.default_joint_vel.torch[env_ids], env_ids=env_ids)
        stick = self.scene["stick"]
        pose, velocity = (
            values.torch[env_ids] for values in (stick.data.default_root_pose, stick.data.default_root_vel)
        )
        pose = torch.cat([pose[:, :3] + self.scene.env_origins[env_ids], pose[:, 3:]], -1)
        stick.write_root_link_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
        stick.write_root_com_velocity_to_sim_index(root_velocity=velocity, env_ids=env_ids)
        blocks = self.scene["blocks"]
        poses = blocks.data.default_body_pose.torch[env_ids].clone()
        poses[..., :3] += self.scene.env_origins[env_ids][:, None]
        blocks.write_body_link_pose_to_sim_index(body_poses=poses, env_ids=env_ids)
        blocks.write_body_link_velocity_to_sim_index(
            body_velocities=blocks.data.default_body_vel.torch[env_ids], env_ids=env_ids
        )


class FaultySwingEnv(SwingEnv):
    """Goes wrong on demand, once, where it is told to."""

    cfg: SwingEnvCfg
    remote_calls = ("plan",)
    how = ""

    def plan(self, how: str) -> None:
        """Go wrong like this in the next step or reset; "short" lets all episodes end with their first step."""
        if how in ("short", "long"):
            self.cfg.episode_length_s = 0.01 if how == "short" else 0.05
        else:
            self.how = how

    def _is_planned(self, how: str) -> bool:
        is_planned = self.how == how
        if is_planned:
            self.how = ""
        return is_planned

    def _pre_physics_step(self, actions: torch.Tensor) -> None:
        super()._pre_physics_step(actions)
        if self._is_planned("raise before physics"):
            raise ValueError("before physics")

    def _get_dones(self) -> tuple[torch.Tensor, torch.Tensor]:
        dones = super()._get_dones()
        if self._is_planned("odd extras"):
            weight = torch.ones(2, requires_grad=True)
            self.extras["odd"] = {
                "graph": weight * 2,
                "nested": [[1, 2], [3]],
                "tensors": [torch.ones(1)],
                "texts": np.array(["a", None], object),
                "complex": torch.ones(1, dtype=torch.complex64),
                "sparse": torch.ones(2, 2).to_sparse(),
                "small": torch.ones(2, dtype=torch.float8_e4m3fn),
                "bytes": b"x",
                "none": None,
                "huge": 2**80,
                "empty": torch.zeros(0, 3),
                3: "a number's",
            }
        if self._is_planned("raise in dones"):
            raise ValueError("in dones")
        return dones

    def _get_rewards(self) -> torch.Tensor:
        rewards = super()._get_rewards()
        return rewards * float("nan") if self._is_planned("NaN reward") else rewards

    def _get_observations(self) -> dict[str, torch.Tensor]:
        if self._is_planned("raise in observations"):
            raise ValueError("in observations")
        observations = super()._get_observations()
        if self._is_planned("wider"):
            observations["policy"] = torch.cat([observations["policy"]] * 2, -1)
        return observations

    def _reset_idx(self, env_ids: Any) -> None:
        super()._reset_idx(env_ids)
        if self._is_planned("raise in reset"):
            raise ValueError("in reset")


@configclass
class SeenSceneCfg(SwingSceneCfg):
    """The same, and a camera that Newton renders, which looks at the red block from the front."""

    camera = CameraCfg(
        prim_path="{ENV_REGEX_NS}/Camera",
        offset=CameraCfg.OffsetCfg(pos=(1.0, 0.5, 2.0), convention="world"),
        spawn=sim_utils.PinholeCameraCfg(focal_length=24.0),
        data_types=["rgb", "depth"],
        width=64,
        height=48,
        renderer_cfg=NewtonWarpRendererCfg(),
    )


@configclass
class SeenEnvCfg(SwingEnvCfg):
    """Its observation is the picture."""

    scene = SeenSceneCfg(num_envs=1, env_spacing=10.0)
    observation_space = [48, 64, 3]  # noqa: RUF012


class SeenEnv(SwingEnv):
    """Sees with a camera."""

    cfg: SeenEnvCfg

    def _get_observations(self) -> dict[str, torch.Tensor]:
        output = self.scene["camera"].data.output
        return {"policy": output["rgb"].torch[..., :3], "depth": output["depth"].torch}


@configclass
class _Actions:
    joints = mdp.JointPositionActionCfg(asset_name="arm", joint_names=["shoulder", "elbow"], scale=0.5)


@configclass
class _PolicyGroup(ObservationGroupCfg):
    position = ObservationTermCfg(func=mdp.joint_pos_rel, params={"asset_cfg": SceneEntityCfg("arm")})
    velocity = ObservationTermCfg(func=mdp.joint_vel_rel, params={"asset_cfg": SceneEntityCfg("arm")})
    concatenate_terms = False


@configclass
class _Observations:
    policy: _PolicyGroup = _PolicyGroup()


@configclass
class _Events:
    reset = EventTermCfg(func=mdp.reset_scene_to_default, mode="reset")


@configclass
class _Rewards:
    alive = RewardTermCfg(func=mdp.is_alive, weight=1.0)


def is_raised(env: Any) -> torch.Tensor:
    """Whether the shoulder has turned by more than a tenth."""
    return env.scene["arm"].data.joint_pos.torch[:, 0].abs() > 0.1


@configclass
class _Terminations:
    time_out = TerminationTermCfg(func=mdp.time_out, time_out=True)
    success = TerminationTermCfg(func=is_raised)


@configclass
class _ArmSceneCfg(InteractiveSceneCfg):
    arm = _hinged("arm", (0.0, 0.0, 0.0), stiffness=40.0)


@configclass
class ManagedEnvCfg(ManagerBasedRLEnvCfg):
    """The arm alone, by managers."""

    sim = SimulationCfg(dt=0.005, render_interval=2, physics=NewtonCfg())
    scene = _ArmSceneCfg(num_envs=1, env_spacing=4.0)
    decimation = 2
    episode_length_s = 0.2
    actions: _Actions = _Actions()
    observations: _Observations = _Observations()
    events: _Events = _Events()
    rewards: _Rewards = _Rewards()
    terminations: _Terminations = _Terminations()
