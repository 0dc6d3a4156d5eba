"""The keyword arguments that the Isaac Lab backend takes, checked before anything slow starts. No Isaac here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError

_TYPES: dict[str, tuple[type, ...]] = {
    "device": (str,),
    "headless": (bool,),
    "enable_cameras": (bool,),
    "cfg": (Mapping,),
    "cfg_class": (str, type(None)),
    "observation": (str,),
    "physics": (str, type(None)),
    "seed": (int, type(None)),
    "arguments": (list, tuple),
    "task_kwargs": (Mapping,),
    "render_mode": (str, type(None)),
    "camera": (str, type(None)),
}


def present_device(gpus: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """Where a task runs that does not say it: told without torch, which 2.x must not import before Isaac Sim runs."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda:0" if not is_hidden and gpus.is_dir() and any(gpus.iterdir()) else "cpu"


@dataclass(frozen=True)
class Options:
    """What `env_kwargs` may hold.

    Attributes:
        device: where physics and tensors live: "cpu", "cuda:0"; by default the first GPU, else the CPU.
        headless: no window; Isaac Sim only, Newton has none.
        enable_cameras: start what cameras need; Isaac Sim only, Newton's renderer needs nothing started.
        cfg: overrides of the task's configuration, by dotted path: {"sim.dt": 0.005, "scene.cube.spawn.size": […]}.
        cfg_class: of a class of one's own: the name of its configuration's class, in the same file or "module:Class".
        observation: "policy", or another group's name: that group alone; "all": a dict of all groups.
        physics: a preset of the task, such as "newton_mjwarp"; None for the task's own. 3.x only.
        seed: of the configuration, for what is drawn while the scene is built.
        arguments: of Isaac Lab's launcher, as on a command line: ["--kit_args", "--/log/level=warn"].
        task_kwargs: keyword arguments for the environment's class itself.
        render_mode: "rgb_array": `render()` shows what `camera` sees.
        camera: the name of the scene's camera for `render()`; None for its first.
    """

    device: str = field(default_factory=present_device)
    headless: bool = True
    enable_cameras: bool = False
    cfg: Mapping[str, Any] = field(default_factory=dict)
    cfg_class: str | None = None
    observation: str = "policy"
    physics: str | None = None
    seed: int | None = None
    arguments: tuple[str, ...] = ()
    task_kwargs: Mapping[str, Any] = field(default_factory=dict)
    render_mode: str | None = None
    camera: str | None = None

    @classmethod
    def parse(cls, kwargs: Mapping[str, Any]) -> Options:
        """The options in a task's keyword arguments.

        Raises:
            ConfigError: one is unknown or of the wrong type; the message lists the known ones.
        """
        known = [item.name for item in fields(cls)]
        for name, value in kwargs.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                meant = f"; did you mean {close[0]!r}?" if close else "."
                meant = "; how many is said by RemoteVectorEnv(num_envs=…)." if name == "num_envs" else meant
                raise ConfigError(
                    f"the isaaclab backend has no keyword argument {name!r}{meant} Known are {', '.join(known)}; what "
                    "the task's configuration holds goes into cfg={'dotted.path': value}, what its class takes into "
                    "task_kwargs={…}"
                )
            if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and bool not in _TYPES[name]):
                allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in _TYPES[name])
                raise ConfigError(f"{name}={value!r} is a {type(value).__name__}; the isaaclab backend takes {allowed}")
        given = dict(kwargs)
        given["arguments"] = tuple(map(str, given.get("arguments", ())))
        return cls(**given)


def apply_overrides(cfg: Any, overrides: Mapping[str, Any]) -> None:
    """Set parts of a task's configuration by dotted path, as its own code would.

    Raises:
        ConfigError: a path leads nowhere; the message lists what is there instead.
    """
    for path, value in overrides.items():
        *parts, last = path.split(".")
        place = cfg
        for depth, part in enumerate(parts):
            place = _descend(place, part, path, ".".join(parts[:depth]))
        _descend(place, last, path, ".".join(parts))
        if isinstance(place, dict):
            place[last] = value
        else:
            current = getattr(place, last)
            setattr(place, last, tuple(value) if isinstance(current, tuple) and isinstance(value, list) else value)


def _descend(place: Any, part: str, path: str, where: str) -> Any:
    if isinstance(place, dict) and part in place:
        return place[part]
    if not isinstance(place, dict) and hasattr(place, part):
        return getattr(place, part)
    there = sorted(place) if isinstance(place, dict) else sorted(vars(place)) if hasattr(place, "__dict__") else []
    shown = [str(name) for name in there if not str(name).startswith("_")]
    raise ConfigError(
        f"cfg={{{path!r}: …}}: {where or 'the configuration'} ({type(place).__name__}) has no {part!r}; it has "
        f"{', '.join(shown) or 'nothing'}"
    )
