"""Making what a MetaSim server serves: a registered task, a class or function of the user's, or a bare handler.

Never run on a MetaSim of today; see `remote_env.server.metasim_backend`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.server.backend import load_from_file, load_object

BARE = "scenario"  # env="scenario": a handler alone, of the scenario that the keyword arguments describe
PREFIX = "RoboVerse/"  # of the ids that MetaSim registers with Gymnasium
INSTALL = (
    "MetaSim comes from RoboVerse: pip install 'roboverse-metasim[mujoco] @ "
    "git+https://github.com/RoboVerseOrg/RoboVerse.git#subdirectory=packages/metasim' (the PyPI package 'metasim' is "
    "another project), or pass python= to name the interpreter that has it"
)


def make_subject(env: Any, kwargs: Mapping[str, Any], num_envs: int) -> Any:
    """The task, or the launched handler, that `env` names.

    Args:
        env: the name of a registered task, "module:name" or "file.py:name" of a task class or of a function that makes
            a task or a handler, "scenario", or a callable.
        kwargs: "device", and fields of the task's scenario ("simulator", "headless", "robots", …); for a function,
            whatever it takes.
        num_envs: how many environments.

    Raises:
        ConfigError: MetaSim, the name or a field is not there; the message says what is.
    """
    options = dict(kwargs)
    device = options.pop("device", None)
    if env == BARE:
        return _make_handler(options, num_envs)
    found = _find(env)
    if not hasattr(found, "scenario"):
        given = {"num_envs": num_envs, **options} | ({} if device is None else {"device": device})
        made = found(**given)
        return getattr(made, "task_env", made)  # of MetaSim's own Gymnasium adapters
    scenario = _updated(copy.deepcopy(found.scenario), {**options, "num_envs": num_envs}, f"env={env!r}")
    return found(scenario, device)


def _make_handler(options: dict[str, Any], num_envs: int) -> Any:
    scenario_class = metasim_object("metasim.scenario.scenario", "ScenarioCfg")
    get_handler = metasim_object("metasim.utils.setup_util", "get_handler")
    if not options.get("simulator"):
        raise ConfigError(f"env={BARE!r} needs env_kwargs={{'simulator': 'mujoco', 'robots': ['franka'], …}}")
    return get_handler(_updated(scenario_class(), {"headless": True, **options, "num_envs": num_envs}, f"env={BARE!r}"))


def _updated(scenario: Any, options: dict[str, Any], asked: str) -> Any:
    """MetaSim's own `update` skips a field that it does not know, with a line in the log; here it is an error."""
    if dataclasses.is_dataclass(scenario):
        known = sorted(field.name for field in dataclasses.fields(scenario))
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigError(
                f"{asked}: a scenario has no {unknown}; env_kwargs may be 'device', 'step_dt_s' or {known}"
            )
    return scenario.update(**options)


def _find(env: Any) -> Any:
    if callable(env):
        return env
    module, colon, name = str(env).rpartition(":")
    if not colon:
        return _find_registered(str(env))
    if module.endswith(".py"):
        found = load_from_file(Path(module).expanduser(), name, f"env={env!r}")
    else:
        found = load_object(env, f"env={env!r}")
    if not callable(found):
        raise ConfigError(
            f"env={env!r} names {found!r}; it must be a task class, or a function that makes a task or handler"
        )
    return found


def _find_registered(name: str) -> Any:
    get_task_class = metasim_object("metasim.task.registry", "get_task_class")
    try:
        return get_task_class(name.removeprefix(PREFIX))
    except KeyError as error:
        raise ConfigError(f"env={name!r} is no task of MetaSim's here: {error.args[0]}") from error


def metasim_object(module: str, name: str) -> Any:
    """`name` of one of MetaSim's modules.

    Raises:
        ConfigError: MetaSim is not there, or of a version that lacks it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("metasim"):
            raise  # something that MetaSim needs
        raise ConfigError(f"simulator='metasim': {sys.executable} cannot import {error.name!r}. {INSTALL}") from error
    except AttributeError as error:
        raise ConfigError(f"simulator='metasim': {module} has no {name!r}; MetaSim 0.2.0 or later is needed") from error
