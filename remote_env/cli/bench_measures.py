"""Measuring a task on a host as its user meets it: steps one by one, ahead, in chunks, and the coding of images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.cli.bench_advice import PARTS, CoderCost, Measured
from remote_env.env import RemoteEnv
from remote_env.env.local_pixels import LocalPixels
from remote_env.errors import ConfigError, NotRun, ReplayError, Unsupported
from remote_env.protocol import codec
from remote_env.protocol.image_stream import ImageReceiver, ImageSender, available_codecs, image_paths

WARM_UP = 3  # steps, in which both ends do things for the first time
MAX_STEPS = 2000
CHUNKS = (16, 64)
AHEAD, BURST = 8, 32  # steps under way, and in one go
FRAMES = 12  # observations whose images are coded
DRAWN, LOCAL_TIMEOUT_S = 3, 60.0
SEED = 0
MAX_DECODED_BYTES = 1 << 30


@dataclass
class Run:
    """Steps in one way.

    Attributes:
        seconds: of each step, or of each call.
        steps: how many ran.
        parts_s: of each step, by name [s].
        observations: the last ones.
    """

    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    parts_s: list[dict[str, float]] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        """A step's share of the median call [s]."""
        return median(self.seconds) * len(self.seconds) / self.steps


class Bench:
    """Steps an environment by random actions.

    Args:
        env: made with `timing=True`; started.
        seconds: for each way of stepping.
    """

    def __init__(self, env: RemoteEnv, seconds: float) -> None:
        self._env, self._seconds = env, seconds
        env.action_space.seed(SEED)

    def measure(self, tell: Callable[[str], None]) -> tuple[Measured, Run]:
        """Everything, and the run of single steps.

        Args:
            tell: told what is measured next.
        """
        env = self._env
        tell("single steps")
        self._run(self._single, WARM_UP)
        single = self._run(self._single)
        others = {}
        fit = min(int(2 * self._seconds / single.step_s), MAX_STEPS)  # a slow task is not made to run long
        if fit >= BURST:
            tell("steps ahead")
            others[f"step_async, {AHEAD} ahead"] = self._run(self._ahead).step_s
        for count in (count for count in CHUNKS if count <= fit):
            tell(f"chunks of {count}")
            others[f"step_many, {count} at once"] = self._run(self._chunks(count)).step_s
        link = env.transport_info()
        tell("the coding of images")
        space = env.observation_space  # from which drawing here takes the images
        coders = list(cost_of_coders(space, single.observations))
        tell("drawing images here")
        measured = Measured(
            way=link["way"],
            round_trip_s=link["round_trip_s"] or 0.0,
            bytes_per_s=link["bytes_per_s"],
            step_s=median(single.seconds),
            parts_s=_medians(single.parts_s),
            others_s=others,
            image_bytes=image_sizes(space),
            coders=coders,
            draw_s=self._draw_s(),
        )
        return measured, single

    def _run(self, step: Callable[[Run], bool], most_steps: int = MAX_STEPS) -> Run:
        """Call `step`, which says whether the episode goes on, until the time is over or there were enough."""
        run, until = Run(), time.monotonic() + self._seconds
        self._env.reset(seed=SEED)
        while not run.steps or (run.steps < most_steps and time.monotonic() < until):
            if not step(run):
                self._env.reset()
        return run

    def _draw_s(self) -> float | None:
        """What drawing the images of an observation takes here [s]; None where it cannot. None are sent after that."""
        env = self._env
        seconds = []
        with contextlib.suppress(ConfigError, ReplayError, Unsupported):
            pixels = LocalPixels(replace(env._arguments, local_pixels=True))
            with contextlib.closing(pixels):
                pixels.begin(env._running(), env, LOCAL_TIMEOUT_S)
                observation, _ = env.reset(seed=SEED)
                for _ in range(DRAWN):
                    state = env.get_state()
                    began = time.perf_counter()
                    pixels.complete(observation, state)
                    seconds.append(time.perf_counter() - began)
        return median(seconds) if seconds else None

    def _single(self, run: Run) -> bool:
        action = self._env.action_space.sample()
        began = time.perf_counter()
        observation, _, terminated, truncated, info = self._env.step(action)
        run.seconds.append(time.perf_counter() - began)
        run.steps += 1
        run.parts_s.append(info.get("timing", {}))
        run.observations = [*run.observations[1 - FRAMES :], observation]
        return not (terminated or truncated)

    def _ahead(self, run: Run) -> bool:
        """A burst of steps, as many under way at once as may be."""
        env, sent, taken, goes_on = self._env, 0, 0, True
        ahead = min(AHEAD, env.step_window)
        began = time.perf_counter()
        while taken < sent or (goes_on and sent < BURST):
            while goes_on and sent < BURST and sent - taken < ahead:
                env.step_async(env.action_space.sample())
                sent += 1
            taken += 1
            try:
                _, _, terminated, truncated, _ = env.step_wait()
            except NotRun:  # behind the episode's end
                continue
            run.steps += 1
            goes_on = not (terminated or truncated)
        run.seconds.append(time.perf_counter() - began)
        return goes_on

    def _chunks(self, count: int) -> Callable[[Run], bool]:
        env = self._env

        def step(run: Run) -> bool:
            actions = [env.action_space.sample() for _ in range(count)]
            began = time.perf_counter()
            done = env.step_many(actions)
            run.seconds.append(time.perf_counter() - began)
            run.steps += done.ran
            return not (done.terminated[-1] or done.truncated[-1])

        return step


def _medians(parts_s: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: median([parts.get(f"{name}_s", 0.0) for parts in parts_s]) for name in PARTS}


# Images


def image_sizes(space: Any) -> dict[str, int]:
    """How many bytes the images of an observation have, by key; "" for an observation that is one."""
    return {path: int(np.prod(_box(space, path).shape)) for path in image_paths(space)}


def _box(space: Any, path: str) -> Any:
    for key in filter(None, path.split("/")):
        space = space[key] if key in getattr(space, "spaces", {}) else space[int(key)]
    return space


def cost_of_coders(space: Any, observations: Sequence[Any]) -> Iterator[CoderCost]:
    """What each lossless codec that this machine has costs for each key with images, on this machine's processor."""
    lossless = [name for name in available_codecs() if name != "jpeg"]
    for path in image_paths(space):
        box = _box(space, path)
        frames = [_array(observation, path) for observation in observations]
        for name in lossless:
            yield _cost(path, name, box, frames)


def _array(observation: Any, path: str) -> NDArray[np.uint8]:
    for key in filter(None, path.split("/")):
        observation = observation[key] if isinstance(observation, dict) else observation[int(key)]
    return observation  # type: ignore[no-any-return]


def _cost(path: str, name: str, box: Any, frames: Sequence[NDArray[np.uint8]]) -> CoderCost:
    sender, receiver = ImageSender(box, {"": name}), ImageReceiver(box, max_bytes=MAX_DECODED_BYTES)
    encode_s, decode_s, sizes = [], [], []
    for number, frame in enumerate(frames, 1):
        began = time.perf_counter()
        value = sender.encode(frame, number, is_key=number == 1)
        encoded = time.perf_counter()
        receiver.decode(value, number)
        decode_s.append(time.perf_counter() - encoded)
        encode_s.append(encoded - began)
        body, arrays = codec.encode(value, where="an image")
        sizes.append(len(body) + sum(map(len, arrays)))
    return CoderCost(path, name, median(sizes), median(encode_s), median(decode_s))
