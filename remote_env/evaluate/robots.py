"""Robots with LeRobot's interface: finding their class, and their observations and actions as named vectors.

What is used of it: `connect()`, `get_observation()`, `send_action(action)`, `disconnect()`, `observation_features` and
`action_features`; a feature is `float` for a number and (height, width, 3) for an image. Two more are used where a
robot has them: `reset(seed=…)`, which brings the scene into its start pose, and `is_success()`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from remote_env.errors import ConfigError, TaskError
from remote_env.evaluate.config import check_names, positive_number, read_yaml

ROBOT_KEYS = ("robot", "kwargs", "max_action_jump", "settle_s")
TASK_KEYS = ("name", "instruction", "episode_s", "mapping", "pause_s")
POSITION = ".pos"  # LeRobot's names of joints end with it; policies' do not


class Robot(Protocol):
    """LeRobot's robot interface, as far as it is used."""

    observation_features: Mapping[str, Any]
    action_features: Mapping[str, Any]

    def connect(self) -> None:
        """Make the robot ready."""

    def get_observation(self) -> Mapping[str, Any]:
        """What it senses now."""

    def send_action(self, action: Mapping[str, float]) -> Any:
        """Give it targets."""

    def disconnect(self) -> None:
        """Leave it in a safe state."""


@dataclass(frozen=True)
class RobotConfig:
    """A robot to make.

    Attributes:
        target: "module:Class".
        kwargs: for it.
        max_action_jump: the most that a number of an action may differ from the one before; None for no limit.
        settle_s: how long the robot is left alone after its reset [s].
        folder: of the file that says so; modules beside it are found.
    """

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_action_jump: float | None = None
    settle_s: float = 0.0
    folder: Path = Path()


@dataclass(frozen=True)
class RobotTask:
    """What the robot is to do.

    Attributes:
        name: in results.
        instruction: for policies that take a text.
        episode_s: how long an episode lasts at most [s].
        mapping: of observations and actions, where it does not go by itself.
        pause_s: between episodes [s].
    """

    name: str
    instruction: str = ""
    episode_s: float = 10.0
    mapping: Mapping[str, Any] = field(default_factory=dict)
    pause_s: float = 0.0


def find_file(name: str, folders: tuple[Path, ...]) -> Path:
    """The YAML file that `name` is, or that lies as `<name>.yaml` in one of the folders.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    found = [folder / f"{name}.yaml" for folder in folders]
    for each in found:
        if each.is_file():
            return each
    there = sorted({file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")})
    raise ConfigError(f"no file {name!r}, nor {' or '.join(map(str, found))}; there are {', '.join(there) or 'none'}")


def read_robot(path: Path) -> RobotConfig:
    """The robot that a YAML file describes; ConfigError when it describes none."""
    given = read_yaml(path)
    check_names(given, ROBOT_KEYS, str(path))
    if ":" not in str(given.get("robot", "")):
        raise ConfigError(
            f"{path}: robot: {given.get('robot')!r} must be 'module:Class', with LeRobot's robot interface"
        )
    jump = given.get("max_action_jump")
    return RobotConfig(
        str(given["robot"]),
        dict(given.get("kwargs") or {}),
        None if jump is None else positive_number("max_action_jump", jump),
        float(given.get("settle_s") or 0.0),
        path.resolve().parent,
    )


def read_task(path: Path) -> RobotTask:
    """The task that a YAML file describes; ConfigError when it describes none."""
    given = read_yaml(path)
    check_names(given, TASK_KEYS, str(path))
    mapping = dict(given.get("mapping") or {})
    check_names(mapping, ("observation", "action"), f"{path}: mapping")
    return RobotTask(
        str(given.get("name") or path.stem),
        str(given.get("instruction") or ""),
        positive_number("episode_s", given.get("episode_s", 10.0)),
        mapping,
        float(given.get("pause_s") or 0.0),
    )


def make_robot(config: RobotConfig, folders: tuple[Path, ...] = ()) -> Robot:
    """The robot, not connected yet.

    Raises:
        ConfigError: its class cannot be imported or made, or lacks a part of the interface.
    """
    for folder in (config.folder, *folders):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # the last place: nothing installed is hidden
    module, _, name = config.target.partition(":")
    try:
        robot: Robot = getattr(importlib.import_module(module), name)(**config.kwargs)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"robot: {config.target} cannot be made: {type(error).__name__}: {error}") from error
    parts = ("connect", "get_observation", "send_action", "disconnect", "observation_features", "action_features")
    missing = [part for part in parts if not hasattr(robot, part)]
    if missing:
        raise ConfigError(f"robot: {config.target} lacks {', '.join(missing)} of LeRobot's robot interface")
    return robot


class RobotSpaces:
    """A robot's observations and actions as Gymnasium spaces, and the way between.

    Numbers become one vector "state" in the order of the features, each image an entry of its own name.

    Args:
        robot: whose features are read once.

    Attributes:
        observation: the space of observations.
        action: the space of actions.
        state_names: of the vector's numbers, without LeRobot's ".pos".
        action_names: likewise.

    Raises:
        ConfigError: a feature is neither a number nor an image.
    """

    def __init__(self, robot: Robot) -> None:
        self._numbers, self._images = _sorted_features(robot.observation_features)
        self._action_keys = tuple(robot.action_features)
        found: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0, 255, shape, np.uint8) for name, shape in self._images.items()
        }
        if self._numbers:
            found["state"] = spaces.Box(-np.inf, np.inf, (len(self._numbers),), np.float64)
        self.observation = spaces.Dict(found)
        self.action = spaces.Box(-np.inf, np.inf, (len(self._action_keys),), np.float32)
        self.state_names = tuple(name.removesuffix(POSITION) for name in self._numbers)
        self.action_names = tuple(name.removesuffix(POSITION) for name in self._action_keys)

    def gather(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """The robot's observation as one of the space.

        Raises:
            TaskError: it lacks a feature that the robot said it has.
        """
        try:
            observation: dict[str, Any] = {name: np.asarray(seen[name]) for name in self._images}
            if self._numbers:
                observation["state"] = np.array([float(seen[name]) for name in self._numbers])
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(
                f"the robot's observation lacks what it said it has: {error!r}; nothing was sent"
            ) from error
        return observation

    def name_action(self, action: Any) -> dict[str, float]:
        """An action of the space as the robot takes it."""
        return {name: float(value) for name, value in zip(self._action_keys, action, strict=True)}


def _sorted_features(features: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    numbers = tuple(name for name, kind in features.items() if kind is float or kind is int)
    images = {name: tuple(kind) for name, kind in features.items() if isinstance(kind, tuple) and len(kind) == 3}
    other = [name for name in features if name not in numbers and name not in images]
    if other:
        raise ConfigError(f"the robot's features {other} are neither numbers (float) nor images (height, width, 3)")
    return numbers, images
