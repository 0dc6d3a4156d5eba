"""One recorded episode in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState

Array = NDArray[Any]
Frames = Any  # (T, …) array, or a sequence of T arrays


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of a whole episode.

    Attributes:
        rate_hz: steps per simulated second.
        task: the environment's id ("" when unknown).
        env_kwargs: what it was made with.
        seed: what it was reset with, or None.
        host: where the simulator ran ("" when unknown).
        versions: package -> version, of the machine that recorded.
        created_s: Unix time of the start [s].
        extra: whatever else the recorder was given.
    """

    rate_hz: float
    task: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    host: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    created_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Episode:
    """An episode of T steps.

    Attributes:
        info: what is known of the whole.
        actions: (T, …) as they were sent.
        rewards: (T,) float64.
        terminated: (T,) bool.
        truncated: (T,) bool.
        infos: T + 1 plain dicts; the first is reset's.
        observations: "qpos", "qvel" and "images/<camera>" -> (T, …), before each action; each only where
            known.
        final_observation: the same keys, after the last action, without the leading axis.
        layout: what `scene_values` mean, or None when no states were recorded.
        scene_values: (T + 1, layout.size) float64, row 0 after reset, or None.
        natives: T + 1 opaque states of the backend, or empty.
        dropped_bytes: what recovering a `.part` had to leave behind: a torn last record.
        description: what the scene looks like, as far as its simulator told, or None.
    """

    info: EpisodeInfo
    actions: Array
    rewards: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    infos: Sequence[dict[str, Any]]
    observations: Mapping[str, Frames]
    final_observation: Mapping[str, Array]
    layout: SceneLayout | None = None
    scene_values: Floats | None = None
    natives: Sequence[bytes] = ()
    dropped_bytes: int = 0
    description: SceneDescription | None = None

    def __len__(self) -> int:
        """How many steps, T."""
        return len(self.rewards)

    @property
    def complete(self) -> bool:
        """Whether the environment itself ended the episode."""
        return bool(len(self) and (self.terminated[-1] or self.truncated[-1]))

    @property
    def states(self) -> list[SceneState]:
        """T + 1 scene states that view `scene_values`, the first after reset; empty when there are none."""
        if self.layout is None or self.scene_values is None:
            return []
        natives = self.natives or [b""] * len(self.scene_values)
        return [
            SceneState(self.layout, values, native or None)
            for values, native in zip(self.scene_values, natives, strict=True)
        ]
