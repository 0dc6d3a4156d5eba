"""What a capture of the ALOHA tasks holds: the 14 numbers per arm pair that ACT's own recordings have."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.record.recorder import Seen, observe
from remote_env.state import SceneLayout, SceneState
from remote_env.tasks.aloha_model import AGENT_QPOS_INDEX, agent_scale

ARMS = ("vx300s_left", "vx300s_right")
_SCALE = agent_scale()[1]


def observe_aloha(observation: Any, state: SceneState | None) -> Seen:
    """As `observe`, with (14,) qpos and qvel in the meaning of an ALOHA action: radians, and grippers 0 to 1.

    qpos is the observation's `agent_pos`, also where the observation is only that (`obs_type="agent_pos"`) or
    begins with it (`obs_type="state"`). qvel comes from the scene state [rad/s, 1/s].
    """
    qvel = state.values[_velocity_index(state.layout)] / _SCALE if state is not None else None
    if isinstance(observation, Mapping):
        seen = observe(observation, None)
        return Seen(seen.qpos, qvel, seen.images)
    return Seen(np.asarray(observation, np.float64)[:14], qvel, {})


@functools.lru_cache(maxsize=8)
def _velocity_index(layout: SceneLayout) -> NDArray[np.intp]:
    """Where the 14 velocities lie in a state's values."""
    places = SceneState(layout, np.arange(layout.size, dtype=np.float64))
    velocities = np.concatenate([places[arm].joint_velocities for arm in ARMS])
    return np.asarray(velocities[AGENT_QPOS_INDEX], np.intp)
