"""What LeRobot's async inference pickles, read and written without LeRobot, torch or a call of what a pickle names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from remote_env.errors import ProtocolError
from remote_env.policy.dialects.foreign_pickle import Instance, Name, foreign_dumps
from remote_env.policy.dialects.restricted_pickle import DEFAULT_LIMITS, PickleLimits, Record, restricted_loads
from remote_env.policy.dialects.torch_pickle import TensorReader, write_rows
from remote_env.policy.policy import Array, Chunk

HELPERS = "lerobot.async_inference.helpers"
OLD_HELPERS = "lerobot.scripts.server.helpers"  # before 0.4.0
_TYPES = ("lerobot.configs.types", "lerobot.configs")
MAX_ACTIONS = 10_000
T = TypeVar("T")


@dataclass(frozen=True)
class RemotePolicyConfig:
    """What a robot client asks of a policy server.

    Attributes:
        policy_type: "act", "smolvla", …
        pretrained_name_or_path: which policy.
        lerobot_features: of the robot: "observation.state" and "observation.images.<camera>" -> dtype, shape, names.
        actions_per_chunk: how many actions it wants at most.
        device: where the policy is to run.
        rename_map: feature of the robot -> feature of the policy.
        module: of the peer's class, to answer by.
    """

    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: Mapping[str, Any]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: Mapping[str, str] = field(default_factory=dict)
    module: str = HELPERS


@dataclass(frozen=True)
class TimedObservation:
    """One observation of a robot.

    Attributes:
        timestamp: seconds since 1970, by the robot's clock.
        timestep: the robot's step.
        observation: "<motor>.pos" -> float, "<camera>" -> (H, W, 3) uint8, "task" -> text.
        must_go: the robot has no action left.
    """

    timestamp: float
    timestep: int
    observation: Mapping[str, Any]
    must_go: bool = False


@dataclass(frozen=True)
class TimedAction:
    """One action of a chunk.

    Attributes:
        timestamp: when it is meant to be applied.
        timestep: at which of the robot's steps.
        action: (D,) numbers.
    """

    timestamp: float
    timestep: int
    action: Array


def load_setup(data: bytes) -> RemotePolicyConfig:
    """The instructions in a `PolicySetup`.

    Raises:
        ProtocolError: it is no pickle of just that.
    """
    return _load(data, RemotePolicyConfig)


def load_observation(data: bytes, limits: PickleLimits = DEFAULT_LIMITS) -> TimedObservation:
    """The observation that a stream of `Observation`s carried.

    Raises:
        ProtocolError: it is no pickle of just that.
    """
    return _load(data, TimedObservation, limits)


def load_actions(data: bytes, limits: PickleLimits = DEFAULT_LIMITS) -> list[TimedAction]:
    """The chunk in an `Actions`.

    Raises:
        ProtocolError: it is no pickle of just that.
    """
    value = _load(data, list, limits)
    if len(value) > MAX_ACTIONS or not all(isinstance(action, TimedAction) for action in value):
        raise ProtocolError(f"a chunk is a list of at most {MAX_ACTIONS} TimedAction")
    return value


def dump_setup(setup: RemotePolicyConfig) -> bytes:
    """The pickle that a policy server reads as its RemotePolicyConfig."""
    names = ("policy_type", "pretrained_name_or_path", "actions_per_chunk", "device")
    fields: dict[str, Any] = {name: getattr(setup, name) for name in names}
    fields |= {"lerobot_features": dict(setup.lerobot_features), "rename_map": dict(setup.rename_map)}
    return foreign_dumps(Instance(Name(setup.module, "RemotePolicyConfig"), fields))


def dump_observation(observation: TimedObservation, module: str = HELPERS) -> bytes:
    """The pickle that a policy server reads as its TimedObservation."""
    fields = {**vars(observation), "observation": dict(observation.observation)}
    return foreign_dumps(Instance(Name(module, "TimedObservation"), fields))


def dump_actions(chunk: Chunk, *, timestamp: float, timestep: int, dt_s: float, module: str = HELPERS) -> bytes:
    """The pickle that a robot client reads as its list of TimedAction with tensors.

    Args:
        chunk: (K, D).
        timestamp: of the observation [s].
        timestep: of the observation.
        dt_s: from one action to the next [s].
        module: where the client's class lies.
    """
    kind = Name(module, "TimedAction")
    return foreign_dumps(
        [
            Instance(kind, {"timestamp": timestamp + index * dt_s, "timestep": timestep + index, "action": row})
            for index, row in enumerate(write_rows(chunk))
        ]
    )


def _load(data: bytes, kind: type[T], limits: PickleLimits = DEFAULT_LIMITS) -> T:
    value = restricted_loads(data, allowed=_RECORDS | TensorReader(2 * len(data)).allowed(), limits=limits)
    if not isinstance(value, kind):
        raise ProtocolError(f"expected a {kind.__name__}; got a {type(value).__name__}")
    return value


def _setup(module: str, fields: Mapping[str, Any]) -> RemotePolicyConfig:
    fields = {"device": "cpu", "rename_map": {}, **fields}
    count = _typed(fields, "actions_per_chunk", int)
    if not 0 < count <= MAX_ACTIONS:
        raise ValueError(f"actions_per_chunk is {count}; 1 to {MAX_ACTIONS} are allowed")
    rename = _typed(fields, "rename_map", dict)
    features = _typed(fields, "lerobot_features", dict)
    if not all(isinstance(name, str) for name in (*features, *rename, *rename.values())):
        raise ValueError("a feature whose name is no text")
    texts = [_typed(fields, name, str) for name in ("policy_type", "pretrained_name_or_path", "device")]
    return RemotePolicyConfig(texts[0], texts[1], features, count, texts[2], rename, module)


def _observation(_module: str, fields: Mapping[str, Any]) -> TimedObservation:
    observation = _typed(fields, "observation", dict)
    if not all(isinstance(name, str) for name in observation):
        raise ValueError("a part of an observation whose name is no text")
    return TimedObservation(*_time(fields), observation, bool(_typed(fields, "must_go", bool)))


def _action(_module: str, fields: Mapping[str, Any]) -> TimedAction:
    action = _typed(fields, "action", np.ndarray)
    if action.ndim != 1 or action.dtype.kind not in "fiu":
        raise ValueError(f"an action is one row of numbers; got shape {action.shape} of {action.dtype}")
    return TimedAction(*_time(fields), action)


def _time(fields: Mapping[str, Any]) -> tuple[float, int]:
    timestamp, timestep = fields.get("timestamp"), _typed(fields, "timestep", int)
    if not isinstance(timestamp, (int, float)) or not math.isfinite(timestamp) or not 0 <= timestep < 1 << 53:
        raise ValueError(f"timestamp {timestamp!r:.100}, timestep {timestep}: times are finite, steps count from 0")
    return float(timestamp), timestep


def _typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _feature(_module: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields.get(name) for name in ("type", "shape")}


def _feature_type(name: Any) -> str:
    return str(_typed({"FeatureType": name}, "FeatureType", str))


def _records() -> dict[tuple[str | None, str], Record | Callable[..., Any]]:
    makers: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
        "RemotePolicyConfig": _setup,
        "TimedObservation": _observation,
        "TimedAction": _action,
    }
    table: dict[tuple[str | None, str], Record | Callable[..., Any]] = {
        (module, name): Record(build) for module in (HELPERS, OLD_HELPERS) for name, build in makers.items()
    }
    for module in _TYPES:
        table[module, "PolicyFeature"] = Record(_feature)
        table[module, "FeatureType"] = _feature_type
    return table


_RECORDS = _records()
