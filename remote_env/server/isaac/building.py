"""Making an Isaac Lab environment: its configuration, what that needs to be started, the environment itself."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gymnasium

from remote_env.errors import ConfigError
from remote_env.server.isaac.lab import Lab
from remote_env.server.isaac.options import Options, apply_overrides
from remote_env.server.isaac.tasks import Task

_OURS = {"scene.num_envs": "num_envs", "sim.device": "device"}  # what is given another way


@dataclass(frozen=True)
class Built:
    """An environment that runs.

    Attributes:
        env: as it was made, with wrappers if it has some.
        mjcf: the MuJoCo model that its solver made; "" where none did.
        model_file: where the solver writes it; to be closed after the environment.
    """

    env: Any
    mjcf: str
    model_file: IO[str]


def find_lab() -> Lab:
    """What the installed version of Isaac Lab does its own way; nothing of Isaac is imported for it.

    Raises:
        ConfigError: Isaac Lab is not installed here.
    """
    spec = importlib.util.find_spec("isaaclab")
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"simulator='isaaclab': {sys.executable} has no isaaclab; pass python= with the interpreter that has it, "
            "such as '~/IsaacLab/isaaclab.sh -p'"
        )
    if Path(spec.origin).with_name("app").joinpath("sim_launcher.py").exists():
        from remote_env.server.isaac.lab3 import Lab3

        return Lab3()
    from remote_env.server.isaac.lab2 import Lab2

    return Lab2()


def check_quaternions(lab: Lab) -> None:
    """Ask Isaac Lab's own mathematics whether its quaternions begin with w, as told by its version.

    Raises:
        ConfigError: they do not: a pre-release between 2.x and 3.0, whose states would all be wrong.
    """
    import torch
    from isaaclab.utils.math import quat_from_euler_xyz

    zero = torch.zeros(1)
    identity = quat_from_euler_xyz(zero, zero, zero)[0]
    found = "wxyz" if float(identity[0]) > 0.5 else "xyzw"
    if found != lab.quaternion_order:
        raise ConfigError(
            f"this Isaac Lab starts as {type(lab).__name__} does and has quaternions {found}, where that has "
            f"{lab.quaternion_order}: a version between 2.3 and 3.0; install 3.0, or 2.3"
        )


def build(task: Task, lab: Lab, options: Options, num_envs: int) -> Built:
    """Make the environment of a task; what it needs is started, and stays until `lab.close()`.

    Raises:
        ConfigError: the configuration has no such parts, or what it asks for is not installed.
    """
    cfg = _configuration(task, lab, options, num_envs)
    # In memory, so that a start that is killed leaves no file; for as long as the environment, since a solver that is
    # made again writes its model again.
    model_file = os.fdopen(os.memfd_create("remote-env-scene.xml"), encoding="utf-8")
    try:
        if cfg is not None:
            lab.ask_for_mjcf(cfg, f"/proc/self/fd/{model_file.fileno()}")
        lab.launch(cfg, options)
        env = _construct(task, cfg, options, num_envs)
        if env.unwrapped.num_envs != num_envs:
            made = env.unwrapped.num_envs
            env.close()
            raise ConfigError(f"{task.name} made {made} environments where {num_envs} were asked for")
        return Built(env, model_file.read(), model_file)
    except BaseException:
        model_file.close()
        raise


def _configuration(task: Task, lab: Lab, options: Options, num_envs: int) -> Any:
    """The task's configuration with all overrides; None for a function that makes the whole environment."""
    for path, name in _OURS.items():
        if path in options.cfg:
            raise ConfigError(f"cfg={{{path!r}: …}}: pass {name}= instead")
    if task.task_id is not None:
        cfg = lab.registered_cfg(task.task_id, options)
    elif task.cfg_class is not None:
        cfg = task.cfg_class()
    elif options.cfg:
        raise ConfigError(f"cfg= is for a configuration; {task.name} is a function that makes it all: use task_kwargs=")
    else:
        return None
    if not hasattr(cfg, "sim") or not hasattr(cfg, "scene"):
        raise ConfigError(f"{type(cfg).__name__} is no configuration of an Isaac Lab environment: no sim and scene")
    lab.ask_for_final_observation(cfg)
    apply_overrides(cfg, options.cfg)
    cfg.sim.device = options.device
    cfg.scene.num_envs = num_envs
    if options.seed is not None:
        cfg.seed = options.seed
    return cfg


def _construct(task: Task, cfg: Any, options: Options, num_envs: int) -> Any:
    given = dict(options.task_kwargs)
    if options.render_mode is not None:
        given["render_mode"] = options.render_mode
    if task.task_id is not None:
        return gymnasium.make(task.task_id, cfg=cfg, disable_env_checker=True, **given)
    if cfg is not None:
        return task.factory(cfg=cfg, **given)
    return task.factory(num_envs=num_envs, device=options.device, **given)
