"""What Isaac Lab 2.x does its own way. **Never run with Isaac Lab 2.x**: that needs Isaac Sim, which needs a GPU.

Written from the documentation and sources of Isaac Lab 2.0 to 2.3; tested with a stand-in of that interface
(tests/server/test_isaac_stand_in.py), which proves the conversions and nothing about Isaac Sim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remote_env.errors import ConfigError
from remote_env.server.isaac.lab import Lab, parse_launcher_arguments
from remote_env.server.isaac.options import Options


class Lab2(Lab):
    """Isaac Lab 2.x: Isaac Sim before every other import, data are tensors, quaternions begin with w."""

    quaternion_order = "wxyz"

    def __init__(self) -> None:
        self._app: Any = None

    def begin(self, options: Options) -> None:
        """Start Isaac Sim: nothing else of Isaac Lab may be imported before it runs.

        Raises:
            ConfigError: an argument is unknown, or a 3.x preset was asked for.
        """
        from isaaclab.app import AppLauncher

        if options.physics:
            raise ConfigError(f"physics={options.physics!r}: Isaac Lab 2.x has PhysX only; leave it out, or use 3.x")
        self._app = AppLauncher(parse_launcher_arguments(AppLauncher.add_app_launcher_args, options)).app

    def registered_cfg(self, task_id: str, options: Options) -> Any:
        """See `Lab`."""
        from isaaclab_tasks.utils import parse_env_cfg

        return parse_env_cfg(task_id, device=options.device)

    def launch(self, cfg: Any, options: Options) -> None:
        """Nothing: `begin` has started Isaac Sim."""

    def ask_for_final_observation(self, cfg: Any) -> None:
        """Nothing: 2.x keeps no observation before an autoreset."""

    def ask_for_mjcf(self, cfg: Any, path: str) -> None:
        """Nothing: PhysX makes no MuJoCo model."""

    def root_pose(self, data: Any) -> Any:
        """See `Lab`."""
        return _pose(data, "root_link")

    def root_velocity(self, data: Any) -> Any:
        """See `Lab`."""
        return data.root_vel_w if self.is_velocity_of_centre(data) else data.root_link_vel_w

    def root_centre(self, data: Any) -> Any:
        """See `Lab`."""
        centres = data.body_com_pos_b if hasattr(data, "body_com_pos_b") else data.com_pos_b
        return centres[:, 0]

    def joints(self, data: Any) -> tuple[Any, Any]:
        """See `Lab`."""
        return data.joint_pos, data.joint_vel

    def body_poses(self, data: Any) -> Any:
        """See `Lab`."""
        return _pose(data, "body_link")

    def object_names(self, collection: Any) -> Sequence[str]:
        """See `Lab`."""
        names: Sequence[str] = collection.object_names
        return names

    def objects(self, data: Any) -> tuple[Any, Any]:
        """See `Lab`."""
        return _pose(data, "object_link"), data.object_link_vel_w

    def write_root(self, asset: Any, pose: Any, velocity: Any, env_ids: Any) -> None:
        """See `Lab`."""
        if self.is_velocity_of_centre(asset.data):
            asset.write_root_pose_to_sim(pose, env_ids=env_ids)
            asset.write_root_velocity_to_sim(velocity, env_ids=env_ids)
            return
        asset.write_root_link_pose_to_sim(pose, env_ids=env_ids)
        asset.write_root_link_velocity_to_sim(velocity, env_ids=env_ids)

    def write_joints(self, asset: Any, positions: Any, velocities: Any, env_ids: Any) -> None:
        """See `Lab`."""
        asset.write_joint_state_to_sim(positions, velocities, env_ids=env_ids)

    def write_objects(self, collection: Any, pose: Any, velocity: Any, env_ids: Any) -> None:
        """See `Lab`."""
        collection.write_object_link_pose_to_sim(pose, env_ids=env_ids)
        collection.write_object_link_velocity_to_sim(velocity, env_ids=env_ids)

    def close(self) -> None:
        """Close Isaac Sim, which may end the process."""
        if self._app is not None:
            self._app.close()


def _pose(data: Any, whose: str) -> Any:
    """(…, 7) poses of frames, by the name that this version has: "root_link_pose_w" or "root_link_state_w"."""
    for name in (f"{whose}_pose_w", f"{whose}_state_w", f"{whose.removesuffix('_link')}_state_w"):
        if hasattr(data, name):
            return getattr(data, name)[..., :7]
    raise ConfigError(f"this Isaac Lab's {type(data).__name__} tells no {whose} poses; versions from 2.0 on are known")
