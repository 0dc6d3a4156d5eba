"""Small episodes for tests: states, observations, and captures of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from remote_env.record import Recorder
from remote_env.state import EntityLayout, SceneLayout, SceneState

LAYOUT = SceneLayout((EntityLayout("arm", ("a", "b"), ("base", "tip")), EntityLayout("box")), "test 1")


def state_at(step: int, *, native: bytes | None = None) -> SceneState:
    values = np.random.default_rng(step).normal(size=LAYOUT.size)
    values[0] = step / 50.0
    for start in (4, 4 + 17, 4 + 24, LAYOUT.offsets["box"] + 3):
        values[start : start + 4] /= np.linalg.norm(values[start : start + 4])
    return SceneState(LAYOUT, values, native)


def observation_at(step: int, *, camera: bool = False) -> dict[str, object]:
    seen: dict[str, object] = {"agent_pos": np.full(14, float(step))}
    if camera:
        seen["pixels"] = {"top": np.full((4, 6, 3), step % 256, np.uint8)}
    return seen


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record_steps(recorder: Recorder, steps: int, *, camera: bool = False, native: bool = False) -> None:
    def state(step: int) -> SceneState:
        return state_at(step, native=bytes([step % 256] * step) if native else None)

    recorder.start(observation_at(0, camera=camera), {"start": True}, state=state(0), seed=7)
    for step in range(1, steps + 1):
        recorder.record(
            np.full(14, -step, np.float32),
            observation_at(step, camera=camera),
            step / 2,
            step == steps,
            False,
            {"touching": ["right"] * step, "at": np.float64(step)},
            state=state(step),
        )


def recorded(directory: Path, steps: int = 5, **options: bool) -> Path:
    with Recorder(directory, rate_hz=50.0, task="T-v0", env_kwargs={"a": 1}, host="box") as recorder:
        record_steps(recorder, steps, **options)
        return recorder.finish()
