"""Lab: what differs between versions of Isaac Lab, in one place; `lab3` and `lab2` implement it."""

from __future__ import annotations

import abc
import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from remote_env.errors import ConfigError
from remote_env.server.isaac.options import Options


class Lab(abc.ABC):
    """One version's ways to start, to read and to write.

    Tensors: N environments, K of them chosen by `env_ids` (K,) int64, J joints, L bodies, M objects of a collection;
    poses are in the world, their quaternions in `quaternion_order`.

    Attributes:
        quaternion_order: "wxyz" or "xyzw".
    """

    quaternion_order: str

    @abc.abstractmethod
    def begin(self, options: Options) -> None:
        """Start what has to be there before a task's code may be imported."""

    @abc.abstractmethod
    def registered_cfg(self, task_id: str, options: Options) -> Any:
        """The configuration of a registered task."""

    @abc.abstractmethod
    def launch(self, cfg: Any, options: Options) -> None:
        """Start what `cfg` needs to be simulated; it stays until `close`."""

    @abc.abstractmethod
    def ask_for_final_observation(self, cfg: Any) -> None:
        """Have the environment keep the observation before its autoreset, where it can."""

    @abc.abstractmethod
    def ask_for_mjcf(self, cfg: Any, path: str) -> None:
        """Have a MuJoCo solver write the model that it makes, where there is one."""

    @abc.abstractmethod
    def root_pose(self, data: Any) -> Any:
        """(N, 7) of an asset's root frame."""

    def is_velocity_of_centre(self, data: Any) -> bool:
        """Whether `root_velocity` is that of the centre of mass: the oldest versions have nothing else."""
        return not hasattr(data, "root_link_vel_w")

    @abc.abstractmethod
    def root_velocity(self, data: Any) -> Any:
        """(N, 6) of an asset's root."""

    @abc.abstractmethod
    def root_centre(self, data: Any) -> Any:
        """(N, 3) centre of mass in the root's frame [m]; asked for only where velocities are of it."""

    @abc.abstractmethod
    def joints(self, data: Any) -> tuple[Any, Any]:
        """(N, J) positions and velocities."""

    @abc.abstractmethod
    def body_poses(self, data: Any) -> Any:
        """(N, L, 7) of the frames of an asset's bodies."""

    @abc.abstractmethod
    def object_names(self, collection: Any) -> Sequence[str]:
        """The names of a collection's objects."""

    @abc.abstractmethod
    def objects(self, data: Any) -> tuple[Any, Any]:
        """(N, M, 7) poses and (N, M, 6) velocities of the frames of a collection's objects."""

    @abc.abstractmethod
    def write_root(self, asset: Any, pose: Any, velocity: Any, env_ids: Any) -> None:
        """Place an asset's root frame: (K, 7) and (K, 6), the velocity as `root_velocity` gives it."""

    @abc.abstractmethod
    def write_joints(self, asset: Any, positions: Any, velocities: Any, env_ids: Any) -> None:
        """Set all joints of an articulation: (K, J)."""

    @abc.abstractmethod
    def write_objects(self, collection: Any, pose: Any, velocity: Any, env_ids: Any) -> None:
        """Place a collection's objects: (K, M, 7) and (K, M, 6)."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the simulation; where that is Isaac Sim, this may end the process."""


def parse_launcher_arguments(add_arguments: Callable[[argparse.ArgumentParser], Any], options: Options) -> Any:
    """The launcher's own arguments, as its command line would give them.

    Raises:
        ConfigError: it does not know one of `options.arguments`.
    """
    parser = _Parser(add_help=False)
    add_arguments(parser)
    parsed = parser.parse_args(["--device", options.device, *options.arguments])
    if "--headless" not in options.arguments:
        parsed.headless = options.headless
    parsed.enable_cameras = options.enable_cameras or getattr(parsed, "enable_cameras", False)
    return parsed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"arguments= for Isaac Lab's launcher: {message}; {self.format_usage().strip()}")
