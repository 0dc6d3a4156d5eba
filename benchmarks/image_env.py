"""The environment that bench_images serves: it plays frames made before, so that only their way is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

CAMERA = "top"
FRAMES = 48
FIRST_STEP = 60  # of the expert's: the arms are on their way
NOISE = 2.5  # standard deviation of a camera's, in a byte's steps

Frames = NDArray[np.uint8]


def render_frames(count: int = FRAMES) -> Frames:
    """(count, 480, 640, 3): ALOHA's transfer by its expert, one frame a step, as the model is shipped."""
    from remote_env.tasks.aloha import AlohaEnv
    from remote_env.tasks.aloha_expert import make_expert

    env, expert = AlohaEnv("transfer_cube", obs_type="agent_pos", render_mode="rgb_array"), make_expert("transfer_cube")
    env.reset(seed=0)
    expert.reset(env.get_scene_state())
    frames = []
    for step in range(FIRST_STEP + count):
        env.step(expert.action(step))
        if step >= FIRST_STEP:
            frames.append(env.render())
    env.close()
    return np.stack(frames)


def add_noise(frames: Frames) -> Frames:
    """The same as a camera would see them: each item off by a normal deviate of its own."""
    noise = np.random.default_rng(0).normal(0, NOISE, frames.shape)
    return np.clip(frames + np.rint(noise), 0, 255).astype(np.uint8)


def save_frames(folder: Path, count: int = FRAMES) -> dict[str, str]:
    """Make the frames, and write each kind to a file.

    Returns:
        kind -> path, as `ImageEnv` takes it.
    """
    rendered = render_frames(count)
    paths = {}
    for kind, frames in (("rendered", rendered), ("camera", add_noise(rendered))):
        paths[kind] = str(folder / f"{kind}.npy")
        np.save(paths[kind], frames)
    return paths


class ImageEnv(gymnasium.Env[Any, Any]):
    """Plays frames forth and back for ever; `reset(options={"kind": …})` says which.

    Args:
        paths: of (N, 480, 640, 3) uint8 arrays by kind.
    """

    def __init__(self, *, paths: dict[str, str]) -> None:
        self._frames = {kind: np.load(path, mmap_mode="r") for kind, path in paths.items()}
        self._kind, self._step = next(iter(paths)), 0
        image = gymnasium.spaces.Box(0, 255, self._frames[self._kind].shape[1:], np.uint8)
        self.observation_space = gymnasium.spaces.Dict({CAMERA: image})
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start from the first frame of a kind."""
        super().reset(seed=seed)
        self._kind, self._step = (options or {}).get("kind", self._kind), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show the next frame."""
        self._step += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> dict[str, Frames]:
        frames = self._frames[self._kind]
        last = len(frames) - 1
        at = self._step % (2 * last)
        return {CAMERA: np.array(frames[min(at, 2 * last - at)])}
