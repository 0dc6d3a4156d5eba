"""What Isaac Lab 3.x does its own way.

Run with Isaac Lab 3.0.0 and Newton on a CPU, without Isaac Sim. Never run here: a GPU, Isaac Sim (Kit) and its PhysX,
which `launch_simulation` starts by itself when the configuration asks for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from remote_env.errors import ConfigError
from remote_env.server.isaac.lab import Lab, parse_launcher_arguments
from remote_env.server.isaac.options import Options


class Lab3(Lab):
    """Isaac Lab 3.x: a configuration says what is started, data are `ProxyArray`s, writes take keywords."""

    quaternion_order = "xyzw"

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def begin(self, options: Options) -> None:
        """Nothing: 3.x reads a task's configuration before it starts anything."""

    def registered_cfg(self, task_id: str, options: Options) -> Any:
        """See `Lab`; its presets are resolved, `options.physics` among them."""
        from isaaclab_tasks.utils import resolve_task_config

        overrides = [f"physics={options.physics}"] if options.physics else []
        try:
            cfg, _ = resolve_task_config(task_id, None, overrides=overrides)
        except ValueError as error:  # an unknown preset; it lists those that the task has
            raise ConfigError(f"physics={options.physics!r} for {task_id}: {error}") from error
        return cfg

    def launch(self, cfg: Any, options: Options) -> None:
        """Start nothing for Newton, Isaac Sim for PhysX and for its cameras.

        Raises:
            ConfigError: an argument is unknown, or Isaac Sim is needed and not installed.
        """
        from isaaclab.app import add_launcher_args, launch_simulation

        arguments = parse_launcher_arguments(add_launcher_args, options)
        if options.physics and cfg is not None:
            arguments.physics = options.physics
        try:
            self._open.enter_context(launch_simulation(cfg, arguments))
        except (ModuleNotFoundError, SystemExit) as error:  # its launcher leaves when Isaac Sim is not there
            raise ConfigError(
                "this task asks for Isaac Sim (its PhysX, or a camera of its renderer), which is not installed here or "
                f"did not start ({type(error).__name__}: {error}); the log says more. Install isaacsim, or choose "
                "physics='newton_mjwarp' where the task has that preset"
            ) from error

        _let_compilation_be_seen()

    def ask_for_final_observation(self, cfg: Any) -> None:
        """See `Lab`."""
        if hasattr(cfg, "compute_final_obs"):
            cfg.compute_final_obs = True

    def ask_for_mjcf(self, cfg: Any, path: str) -> None:
        """See `Lab`: Newton's MuJoCo solver can; a path of the user's own is left alone."""
        solver: Any = getattr(getattr(cfg.sim, "physics", None), "solver_cfg", None)
        if hasattr(solver, "save_to_mjcf") and not solver.save_to_mjcf:
            solver.save_to_mjcf = path

    def root_pose(self, data: Any) -> Any:
        """See `Lab`."""
        return data.root_link_pose_w.torch

    def root_velocity(self, data: Any) -> Any:
        """See `Lab`."""
        return data.root_link_vel_w.torch

    def root_centre(self, data: Any) -> Any:
        """See `Lab`."""
        return data.body_com_pos_b.torch[:, 0]

    def joints(self, data: Any) -> tuple[Any, Any]:
        """See `Lab`."""
        return data.joint_pos.torch, data.joint_vel.torch

    def body_poses(self, data: Any) -> Any:
        """See `Lab`."""
        return data.body_link_pose_w.torch

    def object_names(self, collection: Any) -> Sequence[str]:
        """See `Lab`."""
        names: Sequence[str] = collection.body_names
        return names

    def objects(self, data: Any) -> tuple[Any, Any]:
        """See `Lab`."""
        return data.body_link_pose_w.torch, data.body_link_vel_w.torch

    def write_root(self, asset: Any, pose: Any, velocity: Any, env_ids: Any) -> None:
        """See `Lab`."""
        asset.write_root_link_pose_to_sim_index(root_pose=pose, env_ids=env_ids.int())
        asset.write_root_link_velocity_to_sim_index(root_velocity=velocity, env_ids=env_ids.int())

    def write_joints(self, asset: Any, positions: Any, velocities: Any, env_ids: Any) -> None:
        """See `Lab`."""
        asset.write_joint_position_to_sim_index(position=positions, env_ids=env_ids.int())
        asset.write_joint_velocity_to_sim_index(velocity=velocities, env_ids=env_ids.int())

    def write_objects(self, collection: Any, pose: Any, velocity: Any, env_ids: Any) -> None:
        """See `Lab`."""
        collection.write_body_link_pose_to_sim_index(body_poses=pose, env_ids=env_ids.int())
        collection.write_body_link_velocity_to_sim_index(body_velocities=velocity, env_ids=env_ids.int())

    def close(self) -> None:
        """See `Lab`."""
        self._open.close()


def _let_compilation_be_seen() -> None:
    """Have Warp log each module that it compiles, for minutes in all at a first start; Isaac Lab has silenced it."""
    import isaaclab.utils.warp  # noqa: F401  now, since it is this import that silences
    import warp

    warp.config.quiet = False
    warp.config.log_level = warp.LOG_INFO
