"""Policies that do one thing each, for tests of servers and clients; each factory is loadable as module:function.

A factory takes what a `module:function` of a checkpoint is given and ignores what it does not need.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from remote_env.policy.policy import Chunk, Feature, ObservationBatch, Policy, PolicyMetadata

STATE_SIZE = 14
ACTION_SIZE = 14
CHUNK_SIZE = 4


def describe(
    name: str,
    *,
    images: int = 0,
    image_shape: tuple[int, int, int] = (48, 64, 3),
    text: bool = False,
    chunk_size: int = CHUNK_SIZE,
    **fields: Any,
) -> PolicyMetadata:
    """Metadata: a state of 14 numbers named s0…s13, images image0…, perhaps a text."""
    state = Feature("state", (STATE_SIZE,), names=tuple(f"s{i}" for i in range(STATE_SIZE)))
    observation = {"state": state}
    for index in range(images):
        observation[f"image{index}"] = Feature("image", image_shape, "uint8", layout="HWC")
    if text:
        observation["instruction"] = Feature("text", dtype="")
    actions = tuple(f"a{i}" for i in range(ACTION_SIZE))
    return PolicyMetadata(name, observation, actions, chunk_size=chunk_size, **fields)


def observe(value: float = 0.0, metadata: PolicyMetadata | None = None, rows: int = 1) -> dict[str, Any]:
    """An observation whose first number is `value`, the rest zeros, of the features of `metadata`."""
    features = (metadata or describe("")).observation
    batch: dict[str, Any] = {
        name: [""] * rows if feature.kind == "text" else np.zeros((rows, *feature.shape), feature.dtype)
        for name, feature in features.items()
    }
    batch["state"][:, 0] = value
    return batch


class NullPolicy(Policy):
    """Zeros, the same array's copy each time."""

    def __init__(self, **fields: Any) -> None:
        self.metadata = describe("null", **fields)
        self._zeros = np.zeros((1, self.metadata.chunk_size, ACTION_SIZE), np.float32)

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        return np.repeat(self._zeros, len(episode_ids), axis=0)


class EchoPolicy(Policy):
    """Action k of a row is its state plus k, so that a reply that went to the wrong client is seen.

    Attributes:
        sizes: rows of each call.
        overlaps: how often a call began while another ran.
        closed: how often it was closed.

    Args:
        delay_s: how long each call takes.
    """

    def __init__(self, *, delay_s: float = 0.0, **fields: Any) -> None:
        self.metadata = describe("echo", **fields)
        self.sizes: list[int] = []
        self.overlaps = self.closed = 0
        self._running = threading.Lock()
        self._delay_s = delay_s

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        if not self._running.acquire(blocking=False):
            self.overlaps += 1
            raise RuntimeError("two calls at once")
        try:
            self.sizes.append(len(episode_ids))
            if self._delay_s:
                time.sleep(self._delay_s)
            steps = np.arange(self.metadata.chunk_size, dtype=np.float32)
            return np.asarray(observation["state"], np.float32)[:, None, :] + steps[None, :, None]
        finally:
            self._running.release()

    def close(self) -> None:
        self.closed += 1


class CountingPolicy(Policy):
    """Every action is how many observations of that episode have come since its reset: 1, 2, 3, …

    Attributes:
        counts: episode -> observations.
    """

    def __init__(self, **fields: Any) -> None:
        self.metadata = describe("counting", has_memory=True, **fields)
        self.counts: dict[str, int] = {}

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        for name in episode_ids:
            self.counts[name] = self.counts.get(name, 0) + 1
        counts = np.array([self.counts[name] for name in episode_ids], np.float32)
        return np.broadcast_to(counts[:, None, None], (len(counts), self.metadata.chunk_size, ACTION_SIZE)).copy()

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        for name in list(self.counts) if episode_ids is None else episode_ids:
            self.counts.pop(name, None)


class FailingPolicy(EchoPolicy):
    """Raises when a row's first number is negative: -1 ValueError, -2 SystemExit, -3 NaN actions; else echoes."""

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        worst = float(np.min(observation["state"][:, 0]))
        chunk = super().infer(observation, episode_ids=episode_ids)
        if worst == -1:
            raise ValueError("the model chokes on a negative number")
        if worst == -2:
            raise SystemExit("the model wants to leave")
        if worst == -3:
            chunk[...] = np.nan
        return chunk


class GatedPolicy(EchoPolicy):
    """Each call waits until the test releases `gate` once; `entered` counts those that have begun."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.gate, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        self.entered.release()
        if not self.gate.acquire(timeout=20):
            raise TimeoutError("nobody opened the gate")
        return super().infer(observation, episode_ids=episode_ids)


def make_null(**_: Any) -> Policy:
    return NullPolicy()


def make_null_images(**_: Any) -> Policy:
    return NullPolicy(images=3, image_shape=(480, 640, 3))


def make_echo(**_: Any) -> Policy:
    return EchoPolicy()


def make_slow_echo(**_: Any) -> Policy:
    return EchoPolicy(delay_s=0.05)


def make_counting(**_: Any) -> Policy:
    return CountingPolicy()


def make_failing(**_: Any) -> Policy:
    return FailingPolicy()


def make_broken(**_: Any) -> Policy:
    raise RuntimeError("these weights are of another model")


class SlowPolicy(EchoPolicy):
    """Says when it begins, and takes its time."""

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        if self.sizes:
            print("the model computes", flush=True)
        return super().infer(observation, episode_ids=episode_ids)


def make_slow(**_: Any) -> Policy:
    return SlowPolicy(delay_s=0.4)


class StuckPolicy(EchoPolicy):
    """The first call is the warm-up's; each that follows never ends."""

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        while self.sizes:
            print("the model is stuck", flush=True)
            time.sleep(60)
        return super().infer(observation, episode_ids=episode_ids)


def make_stuck(**_: Any) -> Policy:
    return StuckPolicy()


def _wait_for_a_signal() -> None:
    print("the loading waits", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(60)


def make_making_an_error_of_a_signal(**_: Any) -> Policy:
    _wait_for_a_signal()
    raise ImportError("something was interrupted")


def make_swallowing_a_signal(**_: Any) -> Policy:
    _wait_for_a_signal()
    return EchoPolicy()


def make_loading_forever(**_: Any) -> Policy:
    while True:
        time.sleep(60)
