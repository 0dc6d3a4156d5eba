"""A LeRobot robot's observations as a policy's batches, and a policy's batches as a robot's observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from remote_env.errors import ConfigError, InputError
from remote_env.policy.dialects.lerobot_pickle import RemotePolicyConfig
from remote_env.policy.images import cast_image, layout_of, to_layout
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.policy import Array, Feature, ObservationBatch, PolicyMetadata

STATE = "observation.state"
IMAGES = "observation.images."
TASK = "task"
SUFFIX = ".pos"
MAX_FEATURES = 64
MAX_NUMBERS = 4096
MAX_SIDE = 8192


class RobotMapping:
    """How the observations of one robot feed a policy; made and checked once.

    The robot says in its instructions which numbers and cameras it has. Its state is matched to the policy's by the
    numbers' names, with or without ".pos", and where the policy knows none of them, number by number; cameras by name,
    and in the policy's own size; the text is the robot's task.

    Args:
        setup: the robot's instructions.
        metadata: of the policy.

    Raises:
        ConfigError: the instructions describe no robot, or one whose observations do not fit; both sides are listed.
    """

    def __init__(self, setup: RemotePolicyConfig, metadata: PolicyMetadata) -> None:
        features = {name: value for name, value in setup.lerobot_features.items() if name.startswith("observation.")}
        if len(features) > MAX_FEATURES:
            raise ConfigError(f"the robot has {len(features)} features; at most {MAX_FEATURES} are taken")
        self._names = _state_names(features.get(STATE))
        self._cameras = {name: _image_shape(name, value) for name, value in features.items() if name.startswith(IMAGES)}
        names, given = _match_names(self._names, metadata)
        given |= _renamed(setup.rename_map, metadata, features)
        self._mapping = ObservationMapping.between(self._space(), metadata, given=given, state_names=names)

    def _space(self) -> spaces.Dict:
        parts: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0, 255, shape, np.uint8) for name, shape in self._cameras.items()
        }
        if self._names:
            parts[STATE] = spaces.Box(-np.inf, np.inf, (len(self._names),), np.float64)
        return spaces.Dict({**parts, TASK: spaces.Text(1)})

    def batch(self, observation: Mapping[str, Any]) -> ObservationBatch:
        """One raw observation as a batch of one.

        Raises:
            InputError: a number or camera is missing, or is not what the instructions said.
        """
        frame: dict[str, Any] = {name: _image(observation, name, shape) for name, shape in self._cameras.items()}
        if self._names:
            frame[STATE] = np.array([_number(observation, name) for name in self._names])
        task = observation.get(TASK, "")
        frame[TASK] = task if isinstance(task, str) else ""
        return self._mapping.batch([frame])

    def describe(self) -> str:
        """One line per feature of the policy: from where it is taken."""
        return self._mapping.describe()


def robot_features(metadata: PolicyMetadata) -> dict[str, dict[str, Any]]:
    """The features of a robot that gives just what the policy takes, as a robot's instructions hold them.

    Raises:
        ConfigError: the policy takes more than one state, which no LeRobot robot sends.
    """
    features: dict[str, dict[str, Any]] = {}
    for name, feature in metadata.observation.items():
        if feature.kind == "image":
            shape = _hwc(feature)
            features[IMAGES + camera_name(name)] = {
                "dtype": "image",
                "shape": shape,
                "names": ["height", "width", "channels"],
            }
        elif feature.kind == "state" and STATE in features:
            raise ConfigError(f"the policy {metadata.name!r} takes several states; a LeRobot robot sends one")
        elif feature.kind == "state":
            features[STATE] = {"dtype": "float32", "shape": feature.shape, "names": motor_names(feature)}
    return features


def guess_features(observation: ObservationBatch) -> dict[str, Feature]:
    """The features of a batch, told apart by what they are; InputError for what is none."""
    return {name: _guess(name, value) for name, value in observation.items()}


def robot_observation(observation: ObservationBatch, metadata: PolicyMetadata, row: int, task: str) -> dict[str, Any]:
    """One row of a batch as a robot sends it: a float per number, (H, W, 3) uint8 per camera, the task."""
    raw: dict[str, Any] = {TASK: task}
    for name, feature in metadata.observation.items():
        if feature.kind == "text":
            raw[TASK] = observation[name][row]
        elif feature.kind == "image":
            raw[camera_name(name)] = _camera_image(observation[name][row : row + 1], feature)
        else:
            raw |= dict(zip(motor_names(feature), observation[name][row].tolist(), strict=True))
    return raw


def _guess(name: str, value: Any) -> Feature:
    if isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
        return Feature("text", dtype="")
    shape = np.shape(value)[1:]
    if layout := layout_of(shape):
        return Feature("image", shape, str(np.asarray(value).dtype), layout=layout)
    if len(shape) == 1:
        return Feature("state", shape, str(np.asarray(value).dtype))
    raise InputError(f"{name!r} of shape {np.shape(value)} is no state (B, D), no images and no texts")


def _camera_image(images: Array, feature: Feature) -> Array:
    return cast_image(to_layout(images, feature.layout or "HWC", "HWC")[0], "uint8")


def camera_name(feature_name: str) -> str:
    """What a robot calls the camera behind an image feature: the last part of its name."""
    return feature_name.replace("/", ".").rpartition(".")[2]


def motor_names(feature: Feature) -> list[str]:
    """What a robot calls a state's numbers."""
    names = feature.names or [f"motor_{index}" for index in range(feature.shape[0])]
    return [name if name.endswith(SUFFIX) else f"{name}{SUFFIX}" for name in names]


def _hwc(feature: Feature) -> tuple[int, ...]:
    return (*feature.shape[1:], feature.shape[0]) if feature.layout == "CHW" else feature.shape


def _state_names(feature: Any) -> tuple[str, ...]:
    if feature is None:
        return ()
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{STATE!r} names its numbers in 'names'; got {feature!r:.200}")
    if not 0 < len(names) <= MAX_NUMBERS or len(set(names)) != len(names):
        raise ConfigError(f"{STATE!r} has {len(names)} names; 1 to {MAX_NUMBERS} different ones are taken")
    return tuple(names)


def _image_shape(name: str, feature: Any) -> tuple[int, int, int]:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or not all(type(size) is int for size in shape):
        raise ConfigError(f"{name!r} has the 'shape' (height, width, channels); got {feature!r:.200}")
    if not all(0 < size <= MAX_SIDE for size in shape):
        raise ConfigError(f"{name!r} has the shape {tuple(shape)}; sides of 1 to {MAX_SIDE} are taken")
    return (shape[0], shape[1], shape[2])


def _match_names(names: Sequence[str], metadata: PolicyMetadata) -> tuple[Sequence[str], dict[str, Any]]:
    """What to call the robot's numbers, and what has to be said about their order."""
    states = [(name, feature) for name, feature in metadata.observation.items() if feature.kind == "state"]
    wanted = {name for _, feature in states for name in feature.names}
    bare = [name.removesuffix(SUFFIX) for name in names]
    if wanted & set(names) or not wanted:
        return names, {}
    if wanted & set(bare) and len(set(bare)) == len(bare):
        return bare, {}
    return names, {states[0][0]: {"from": STATE, "order": "as is"}} if len(states) == 1 and names else {}


def _renamed(
    rename_map: Mapping[str, str], metadata: PolicyMetadata, features: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    return {
        wanted: {"from": offered}
        for offered, wanted in rename_map.items()
        if wanted in metadata.observation and offered in features
    }


def _number(observation: Mapping[str, Any], name: str) -> float:
    value = observation.get(name)
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiub":
        return float(value.ravel()[0])
    if isinstance(value, (int, float, np.floating, np.integer)):
        return float(value)
    raise InputError(f"the robot's observation holds no number {name!r}, which its instructions promised")


def _image(observation: Mapping[str, Any], name: str, shape: tuple[int, int, int]) -> Array:
    camera = name.removeprefix(IMAGES)
    value = observation.get(camera)
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.uint8:
        got = f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"camera {camera!r} gives {got}; the robot's instructions promised {shape} uint8")
    return value
