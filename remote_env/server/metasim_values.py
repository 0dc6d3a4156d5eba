"""Values that MetaSim gives, as arrays and spaces: tensors, observations, infos. Never run on a MetaSim of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def to_numpy(tensor: Any) -> Array:
    """A torch tensor of any device, or an array, as an array."""
    return np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)


def row_of(observation: Any, index: int) -> Any:
    """One environment's part of a batch of observations."""
    if isinstance(observation, Mapping):
        return {key: row_of(value, index) for key, value in observation.items()}
    return observation[index]


def only_where(mask: Array, observation: Any) -> Any:
    """A batch of observations with zeros where `mask` (N,) is false."""
    if isinstance(observation, Mapping):
        return {key: only_where(mask, value) for key, value in observation.items()}
    return np.where(mask.reshape(-1, *[1] * (observation.ndim - 1)), observation, np.zeros((), observation.dtype))


def space_of(observation: Any, declared: Any) -> gymnasium.Space[Any]:
    """The declared space where a real observation (N, …) obeys its shape and type, else one that it obeys."""
    if isinstance(observation, Mapping):
        inner = declared.spaces if isinstance(declared, gymnasium.spaces.Dict) else {}
        return gymnasium.spaces.Dict({key: space_of(value, inner.get(key)) for key, value in observation.items()})
    shape, dtype = observation.shape[1:], observation.dtype
    if isinstance(declared, gymnasium.spaces.Box) and declared.shape == shape and declared.dtype == dtype:
        return declared
    if dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, shape, dtype)


def plain_info(info: Mapping[str, Any] | None, single: bool) -> dict[str, Any]:
    """What of an info can cross: numbers, text, arrays and tensors; MetaSim's own objects are left out."""
    plain: dict[str, Any] = {}
    for key, value in (info or {}).items():
        if isinstance(value, Mapping):
            plain[str(key)] = plain_info(value, single)
        elif value is None or isinstance(value, (bool, int, float, str)):
            plain[str(key)] = value
        elif hasattr(value, "detach") or isinstance(value, np.ndarray):
            array = to_numpy(value)
            plain[str(key)] = array[0] if single and array.ndim and len(array) == 1 else array
    return plain
