"""A policy that gives fewer actions at once than it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from remote_env.policy.policy import Chunk, ObservationBatch, Policy


class ShortenedPolicy(Policy):
    """The first actions of each chunk of another policy.

    Args:
        policy: owned from now on.
        chunk_size: the most actions of a chunk to give.
    """

    def __init__(self, policy: Policy, chunk_size: int) -> None:
        self._policy, self._chunk_size = policy, chunk_size
        self.metadata = replace(policy.metadata, chunk_size=min(policy.metadata.chunk_size, chunk_size))

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """See `Policy.infer`."""
        chunk = np.asarray(self._policy.infer(observation, episode_ids=episode_ids), np.float32)
        return np.ascontiguousarray(chunk[:, : self._chunk_size] if chunk.ndim > 1 else chunk)

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """See `Policy.reset`."""
        self._policy.reset(episode_ids)

    def close(self) -> None:
        """See `Policy.close`."""
        self._policy.close()
