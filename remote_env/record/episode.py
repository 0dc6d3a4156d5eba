"""One recorded episode in memory, and what makes it whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import CaptureError, InputError
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, Floats, SceneLayout, SceneState

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


def check_episode(episode: Episode, path: Path) -> None:
    """Raise CaptureError where the episode's parts do not belong together or a state is not one."""
    steps = len(episode.rewards)
    lengths = {"action": len(episode.actions), "terminated": len(episode.terminated)}
    lengths |= {"truncated": len(episode.truncated), "infos": len(episode.infos) - 1}
    lengths |= {f"observations/{key}": len(values) for key, values in episode.observations.items()}
    if episode.scene_values is not None:
        lengths["scene/values"] = len(episode.scene_values) - 1
    if episode.natives:
        lengths["scene/native"] = len(episode.natives) - 1
    wrong = {name: length for name, length in lengths.items() if length != steps}
    if wrong:
        raise CaptureError(f"{path} is damaged: /rewards has {steps} steps, but {wrong}")
    if not (np.isfinite(episode.info.rate_hz) and episode.info.rate_hz > 0):
        raise CaptureError(f"{path} is damaged: rate_hz is {episode.info.rate_hz}")
    _check_states(episode, path)


def _check_states(episode: Episode, path: Path) -> None:
    """As `SceneState.check` on every row, all rows at once."""
    layout, values = episode.layout, episode.scene_values
    if layout is None or values is None:
        return
    if values.ndim != 2 or values.shape[1] != layout.size or values.dtype != np.float64:
        raise CaptureError(
            f"{path} is damaged: /scene/values is {values.dtype} {values.shape}; its layout needs float64 "
            f"rows of {layout.size}"
        )
    norms = np.linalg.norm(values[:, quaternion_indices(layout)], axis=2)
    bad = ~np.isfinite(values).all(axis=1) | ~(np.abs(norms - 1.0) <= 1e-3).all(axis=1)
    if not bad.any():
        return
    step = int(np.argmax(bad))
    try:
        SceneState(layout, values[step]).check()
    except InputError as error:
        raise CaptureError(f"{path}: the scene state in row {step} is not one: {error}") from error
    raise CaptureError(f"{path}: the scene state in row {step} has the time {values[step, 0]}")


def quaternion_indices(layout: SceneLayout) -> NDArray[np.intp]:
    """(Q, 4) places of every quaternion in a state's vector."""
    starts = []
    for entity in layout.entities:
        start = layout.offsets[entity.name]
        links = start + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
        starts += [start, *range(links, links + POSE_SIZE * len(entity.link_names), POSE_SIZE)]
    return np.array(starts, np.intp)[:, None] + np.arange(3, 7)
