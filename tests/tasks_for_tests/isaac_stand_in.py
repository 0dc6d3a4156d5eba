"""A stand-in of Isaac Lab 2.x's interface, with numpy dressed as torch. It simulates nothing but constant velocities.

It lets what `lab2` and the backend do with that interface be run where Isaac Sim cannot be: the order of starting,
names, frames and conventions, the autoreset. It says nothing about Isaac Sim itself.
"""

from __future__ import annotations

import argparse
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces

STEP_S = 0.02
STEPS = 3  # of an episode
HALF = float(np.sqrt(0.5))
events: list[str] = []  # what happened, in order


class Device(NamedTuple):
    """As torch.device."""

    type: str


class Tensor(np.ndarray):  # type: ignore[type-arg]
    """As much of torch.Tensor as is used."""

    device = Device("cpu")

    def to(self, *args: Any) -> Tensor:
        dtype = next((arg for arg in args if isinstance(arg, type) and issubclass(arg, np.generic)), self.dtype)
        return self.astype(dtype).view(Tensor)

    def detach(self) -> Tensor:
        return self

    def contiguous(self) -> Tensor:
        return np.ascontiguousarray(self).view(Tensor)

    def numel(self) -> int:
        return int(self.size)

    def element_size(self) -> int:
        return int(self.itemsize)

    def data_ptr(self) -> int:
        return int(self.ctypes.data)

    def numpy(self) -> Any:
        return np.asarray(self)


def tensor(values: Any, dtype: Any = np.float32) -> Tensor:
    return np.array(values, dtype).view(Tensor)


def _torch() -> ModuleType:
    module = ModuleType("torch")
    module.uint8, module.float32 = np.uint8, np.float32  # type: ignore[attr-defined]
    module.as_tensor = lambda values, device=None: np.array(values).view(Tensor)  # type: ignore[attr-defined]
    module.zeros = lambda size: tensor(np.zeros(size))  # type: ignore[attr-defined]
    module.cat = lambda parts, dim=0: np.concatenate(parts, axis=dim).view(Tensor)  # type: ignore[attr-defined]
    return module


class AppLauncher:
    """Isaac Sim's start."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        events.append(f"app {arguments.device} headless={arguments.headless} cameras={arguments.enable_cameras}")
        self.app = SimpleNamespace(close=lambda: events.append("app closed"))
        sys.modules["isaaclab.envs"] = _module("isaaclab.envs", DirectRLEnv=Env)

    @staticmethod
    def add_app_launcher_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--device", default="cuda:0")
        parser.add_argument("--headless", action="store_true")
        parser.add_argument("--enable_cameras", action="store_true")


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin=f"/nowhere/{name}/__init__.py", is_package=True)
    vars(module).update(contents)
    return module


def modules() -> dict[str, ModuleType]:
    """What to put into `sys.modules`. `isaaclab.envs` is not there before Isaac Sim runs."""
    events.clear()
    app = _module("isaaclab.app", AppLauncher=AppLauncher)
    mathematics = _module("isaaclab.utils.math", quat_from_euler_xyz=lambda *_: tensor([[1, 0, 0, 0]]))
    return {
        "torch": _torch(),
        "isaaclab": _module("isaaclab", app=app, __path__=[]),
        "isaaclab.app": app,
        "isaaclab.utils": _module("isaaclab.utils", math=mathematics, __path__=[]),
        "isaaclab.utils.math": mathematics,
    }


class Body:
    """A rigid object or, with joints, an articulation; its mass sits beside its frame.

    Args:
        places: (N, 3) of the frame in the world.
        joints: names.
        old: whether its data have the names of the oldest 2.x, which know velocities of the centre of mass only.
    """

    def __init__(self, places: Any, joints: tuple[str, ...] = (), *, old: bool = False) -> None:
        count = len(places)
        self.body_names = ["trunk", "limb"] if joints else ["trunk"]
        if joints:
            self.joint_names = list(joints)
        pose = np.concatenate([places, np.tile([HALF, 0, 0, HALF], (count, 1))], axis=1)  # turned about z, wxyz
        self.pose = tensor(pose)
        self.velocity = tensor(np.tile([0.0, 0, 0, 0, 0, 2.0], (count, 1)))  # of the centre of mass, old or not
        self.positions, self.speeds = (tensor(np.zeros((count, len(joints)))) for _ in range(2))
        self.centre = tensor(np.tile([0.1, 0, 0], (count, len(self.body_names), 1)))
        self.old, self.written = old, []
        self.data = _Data(self)

    # The interface of assets

    def write_root_pose_to_sim(self, pose: Any, env_ids: Any) -> None:
        self.pose[env_ids] = pose
        self.written.append(np.asarray(env_ids).tolist())

    def write_root_velocity_to_sim(self, velocity: Any, env_ids: Any) -> None:
        self.velocity[env_ids] = velocity

    def write_root_link_pose_to_sim(self, pose: Any, env_ids: Any) -> None:
        self.write_root_pose_to_sim(pose, env_ids)

    def write_root_link_velocity_to_sim(self, velocity: Any, env_ids: Any) -> None:
        moved = np.array(velocity)
        moved[:, :3] += np.cross(moved[:, 3:], [0.0, 0.1, 0.0])  # ω × (R c), R as in the beginning
        self.velocity[env_ids] = moved

    def write_joint_state_to_sim(self, positions: Any, velocities: Any, env_ids: Any) -> None:
        self.positions[env_ids], self.speeds[env_ids] = positions, velocities


class _Data:
    """What assets tell, by the names of an old or a new 2.x."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        body = self.__dict__["_body"]
        links = np.repeat(body.pose[:, None], len(body.body_names), axis=1).view(Tensor)
        origin = np.array(body.velocity)
        origin[:, :3] -= np.cross(origin[:, 3:], [0.0, 0.1, 0.0])
        known = {"joint_pos": body.positions, "joint_vel": body.speeds}
        if body.old:
            state = np.concatenate([body.pose, body.velocity], axis=1).view(Tensor)
            bodies = np.concatenate([links, np.zeros((*links.shape[:2], 6), np.float32)], axis=-1).view(Tensor)
            known |= {
                "root_state_w": state,
                "root_vel_w": body.velocity,
                "body_state_w": bodies,
                "com_pos_b": body.centre,
            }
        else:
            known |= {
                "root_link_pose_w": body.pose,
                "root_link_vel_w": origin.view(Tensor),
                "body_link_pose_w": links,
            }
        if name not in known:
            raise AttributeError(name)
        return known[name]


class Collection:
    """Two objects."""

    def __init__(self, origins: Any) -> None:
        self.object_names = ["robot", "ball"]  # the first is called as an articulation is
        pose = np.zeros((len(origins), 2, 7))
        pose[..., :3], pose[..., 3] = origins[:, None] + [[0, 0, 1], [0, 0, 2]], 1
        self.data = SimpleNamespace(
            object_link_pose_w=tensor(pose), object_link_vel_w=tensor(np.zeros((len(origins), 2, 6)))
        )

    def write_object_link_pose_to_sim(self, pose: Any, env_ids: Any) -> None:
        self.data.object_link_pose_w[env_ids] = pose

    def write_object_link_velocity_to_sim(self, velocity: Any, env_ids: Any) -> None:
        self.data.object_link_vel_w[env_ids] = velocity


class EnvCfg:
    """A task's configuration."""

    def __init__(self) -> None:
        self.sim = SimpleNamespace(device="cuda:0")
        self.scene = SimpleNamespace(num_envs=7)
        self.old = False
        self.seed = None


class Env:
    """A task of Isaac Lab 2.x: a robot that turns about its mass, a box, and a collection."""

    metadata: ClassVar[dict[str, Any]] = {}

    def __init__(self, cfg: Any, **_kwargs: Any) -> None:
        events.append("env")
        self.cfg, self.device, self.num_envs, self.step_dt = cfg, cfg.sim.device, cfg.scene.num_envs, STEP_S
        count = self.num_envs
        origins = np.arange(count)[:, None] * np.array([10.0, -20.0, 0.0])
        self.scene = SimpleNamespace(
            articulations={"robot": Body(origins + np.array([1, 2, 3]), ("hip", "knee"), old=cfg.old)},
            rigid_objects={"box": Body(origins + np.array([4, 5, 6]), old=cfg.old)},
            rigid_object_collections={"toys": Collection(origins)},
            env_origins=tensor(origins),
            write_data_to_sim=lambda: events.append("written"),
        )
        self.sim = SimpleNamespace(forward=lambda: None)
        self.episode_length_buf = tensor(np.zeros(count), np.int64)
        self.extras: dict[str, Any] = {}
        self.max_episode_length = STEPS
        self.single_observation_space = spaces.Dict(policy=spaces.Box(-np.inf, np.inf, (1,)))
        self.single_action_space = spaces.Box(-1.0, 1.0, (2,))
        self.resets = 0

    @property
    def unwrapped(self) -> Env:
        return self

    def _observe(self) -> dict[str, Tensor]:
        return {"policy": self.episode_length_buf.reshape(-1, 1).astype(np.float32).view(Tensor)}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        self._reset_idx(np.arange(self.num_envs).view(Tensor))
        return self._observe(), self.extras

    def step(self, action: Tensor) -> Any:
        self.episode_length_buf += 1
        robot = self.scene.articulations["robot"]
        robot.positions[:] += action
        truncated = (self.episode_length_buf >= STEPS).view(Tensor)
        rewards = self.episode_length_buf.astype(np.float32).view(Tensor)
        self.extras["success"] = tensor(action[:, 0] > 0.5, bool)
        ended = np.flatnonzero(truncated).view(Tensor)
        if len(ended):
            self._reset_idx(ended)
        return self._observe(), rewards, tensor(np.zeros(self.num_envs), bool), truncated, self.extras

    def _reset_idx(self, env_ids: Any) -> None:
        self.episode_length_buf[env_ids] = 0
        self.scene.articulations["robot"].positions[env_ids] = 0

    def close(self) -> None:
        events.append("env closed")
