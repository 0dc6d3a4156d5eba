"""What a file was made from, as a few letters: an unchanged one need not be made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from remote_env.state import SceneState

_PREFIX = "remote-env replay "


def mark_of(*parts: Any) -> str:
    """Letters that change with any of `parts`: bytes, arrays, or what JSON can hold."""
    digest = hashlib.sha256(mujoco.__version__.encode())
    for part in parts:
        data = _bytes(part)
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return _PREFIX + digest.hexdigest()[:32]


def states_digest(states: Sequence[SceneState]) -> str:
    """Letters that change with any number or name of `states`."""
    return mark_of(states[0].layout.to_plain(), np.stack([state.values for state in states]))


def model_digest(model: mujoco.MjModel) -> str:
    """Letters that change with anything in the compiled model."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return mark_of(buffer)


def _bytes(part: Any) -> bytes | memoryview:
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).data.cast("B")
    return part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
