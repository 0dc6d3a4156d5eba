"""From chunks to single actions: who asks the policy, and when."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import PolicyError
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.policy import Policy

Row = NDArray[np.float32]


class Actor(Protocol):
    """Gives an action for each observation of one episode at a time."""

    def start(self, episode_id: str) -> None:
        """An episode begins; what is left of the one before is forgotten, by the policy too."""

    def act(self, observation: Any) -> Row:
        """The (D,) action for the task's observation."""

    def finish(self) -> None:
        """The episode has ended: nothing more is asked of the policy for it."""

    def report(self) -> tuple[list[float], dict[str, Any]]:
        """Of this episode: the latency of each inference [ms], and what else was measured."""

    def close(self) -> None:
        """Free what it holds, but for the policy."""


class ChunkActor:
    """Applies the first `chunk_size` actions of a chunk, then asks again and waits.

    Args:
        policy: who is asked.
        mapping: from the task's observations to the policy's.
        chunk_size: how many actions of a chunk are applied.
    """

    def __init__(self, policy: Policy, mapping: ObservationMapping, chunk_size: int) -> None:
        self._policy, self._mapping, self._chunk_size = policy, mapping, chunk_size
        self._queue: deque[Row] = deque()
        self._latencies_ms: list[float] = []
        self._episode_id = ""

    def start(self, episode_id: str) -> None:
        """See `Actor.start`."""
        self._queue.clear()
        self._latencies_ms = []
        self._episode_id = episode_id
        self._policy.reset([episode_id])

    def act(self, observation: Any) -> Row:
        """See `Actor.act`."""
        if not self._queue:
            self._ask(observation)
        return self._queue.popleft()

    def _ask(self, observation: Any) -> None:
        batch = self._mapping.batch([observation])
        started = time.perf_counter()
        chunk = self._policy.infer(batch, episode_ids=[self._episode_id])
        self._latencies_ms.append(1e3 * (time.perf_counter() - started))
        self._queue.extend(check_chunk(chunk)[: self._chunk_size])

    def finish(self) -> None:
        """See `Actor.finish`."""
        self._queue.clear()

    def report(self) -> tuple[list[float], dict[str, Any]]:
        """See `Actor.report`."""
        return self._latencies_ms, {}

    def close(self) -> None:
        """See `Actor.close`."""


def check_chunk(chunk: Any) -> NDArray[np.float32]:
    """The (K, D) actions of the only row of a chunk, K ≥ 1.

    Raises:
        PolicyError: there is none, or it holds numbers that are not finite.
    """
    if np.ndim(chunk) != 3 or len(chunk) != 1 or not chunk.shape[1]:
        raise PolicyError(f"the policy gave actions of shape {np.shape(chunk)}; one row wants (1, K, D) with K from 1")
    if not np.isfinite(chunk).all():
        raise PolicyError("the policy gave actions that are not finite (NaN or infinity); nothing was applied")
    rows: NDArray[np.float32] = chunk[0]
    return rows
