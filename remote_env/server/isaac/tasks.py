"""Which environment a name means: a registered id, a class, or a function that makes one."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from remote_env.errors import ConfigError
from remote_env.server.backend import load_from_file, load_object

TASK_PACKAGES = ("isaaclab_tasks", "isaaclab_contrib", "isaaclab_tasks_experimental")


@dataclass(frozen=True)
class Task:
    """An environment to make.

    Attributes:
        name: as the client named it.
        task_id: of Gymnasium's registry; None otherwise.
        factory: a class that takes `cfg`, or a function that makes the whole environment.
        cfg_class: of the class's configuration; None for a function or an id.
    """

    name: str
    task_id: str | None = None
    factory: Callable[..., Any] = gymnasium.make
    cfg_class: Callable[[], Any] | None = None


def find_task(env: Any, cfg_class: str | None) -> Task:
    """The environment that `env` names.

    Args:
        env: "Isaac-Cartpole-Direct", "module:Id", "module:Class", "file.py:Class", or a callable.
        cfg_class: "Class" in the same module, or "module:Class"; None: the annotation of the class's `cfg`.

    Raises:
        ConfigError: there is none of that name here, or no configuration for it.
    """
    if callable(env):
        return _task_of(env, getattr(env, "__qualname__", repr(env)), cfg_class)
    name = str(env)
    module, colon, part = name.rpartition(":")
    if colon and module.endswith(".py"):
        return _task_of(load_from_file(Path(module).expanduser(), part, f"env={name!r}"), name, cfg_class)
    if not colon:
        _import_tasks()
        return Task(name, task_id=_registered(name))
    load_object(f"{module}:__name__", f"env={name!r}")
    loaded = sys.modules[module]
    if part in gymnasium.registry:
        return Task(name, task_id=part)
    if not hasattr(loaded, part):
        raise ConfigError(
            f"env={name!r}: {module} ({getattr(loaded, '__file__', '')}) neither registers an id {part!r} nor has a "
            f"class of that name{_near(part)}"
        )
    return _task_of(getattr(loaded, part), name, cfg_class)


def _task_of(factory: Any, name: str, cfg_class: str | None) -> Task:
    if not callable(factory):
        raise ConfigError(f"env={name!r} names {factory!r}; it must be an environment's class or a function")
    if not isinstance(factory, type):
        if cfg_class is not None:
            raise ConfigError(
                f"cfg_class={cfg_class!r} is for a class; {name} is a function that makes the environment"
            )
        return Task(name, factory=factory)
    return Task(name, factory=factory, cfg_class=_cfg_class(factory, name, cfg_class))


def _cfg_class(kind: type, name: str, cfg_class: str | None) -> Callable[[], Any]:
    module = importlib.import_module(kind.__module__)
    if cfg_class is not None:
        found = (
            load_object(cfg_class, f"cfg_class={cfg_class!r}") if ":" in cfg_class else getattr(module, cfg_class, None)
        )
        if not callable(found):
            raise ConfigError(f"cfg_class={cfg_class!r}: {kind.__module__} has no such class")
        return found  # type: ignore[no-any-return]
    found = _annotation(kind)
    if not isinstance(found, type):
        raise ConfigError(
            f"env={name!r}: {kind.__name__} does not say what its configuration's class is; annotate it "
            "(`cfg: MyEnvCfg`) or pass cfg_class='MyEnvCfg'"
        )
    return found


def _annotation(kind: type) -> Any:
    """What the annotation of `cfg` names, in the class or a base of its that is not Isaac Lab's own."""
    for base in kind.__mro__:
        if base.__module__.startswith("isaaclab.envs"):
            return None
        named = inspect.get_annotations(base).get("cfg")
        if named is not None:
            return vars(sys.modules[base.__module__]).get(named) if isinstance(named, str) else named
    return None


def _import_tasks() -> None:
    """Have Isaac Lab's own packages register their tasks, those that are installed."""
    for package in TASK_PACKAGES:
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(package)


def _registered(name: str) -> str:
    if name in gymnasium.registry:
        return name
    raise ConfigError(
        f"there is no task {name!r} among the {len(isaac_ids())} of Isaac Lab here{_near(name)} A task of your own: "
        "env='module:Id' (the module registers it), 'module:Class' or 'file.py:Class'"
    )


def isaac_ids() -> list[str]:
    """The registered tasks that have an Isaac Lab configuration."""
    return sorted(name for name, spec in gymnasium.registry.items() if "env_cfg_entry_point" in (spec.kwargs or {}))


def _near(name: str) -> str:
    lower = {known.lower(): known for known in isaac_ids()}
    close = difflib.get_close_matches(name.lower(), lower, 5, 0.5)
    return f"; near it: {', '.join(lower[item] for item in close)}." if close else "."
