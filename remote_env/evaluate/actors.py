"""Which actor an evaluation takes, and the one that asks ahead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from remote_env.errors import ConfigError
from remote_env.evaluate.acting import Actor, ChunkActor, Row
from remote_env.evaluate.config import EvaluationConfig
from remote_env.policy.asynchronous import AsyncPolicy
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.policy import Chunk, ObservationBatch, Policy

COUNTED = ("actions", "inferences", "first_waits_s", "starved", "starved_s", "stale_actions")
KEPT = ("largest_jump_at_seams", "largest_jump_inside", "threshold_for_p99")


def make_actor(policy: Policy, mapping: ObservationMapping, config: EvaluationConfig) -> Actor:
    """The actor that `config` asks for.

    Raises:
        ConfigError: the policy cannot be asked ahead.
    """
    if not config.asynchronous:
        return ChunkActor(policy, mapping, config.chunk_size)
    if policy.metadata.extra.get("whole_chunks"):
        raise ConfigError(
            f"{policy.metadata.name} plays its chunks one after another and does not look at when it is asked, so it "
            "cannot be asked ahead; leave --asynchronous out"
        )
    return AsyncActor(policy, mapping, config)


class AsyncActor:
    """Asks for the next chunk while the present one is applied; see `AsyncPolicy`.

    Args:
        policy: who is asked, in a thread.
        mapping: from the task's observations to the policy's.
        config: chunk size, threshold, aggregate and rate.
    """

    def __init__(self, policy: Policy, mapping: ObservationMapping, config: EvaluationConfig) -> None:
        self._timed, self._mapping = _TimedPolicy(policy), mapping
        self._ahead = AsyncPolicy(
            self._timed,
            fps=config.fps,
            actions_per_chunk=config.chunk_size,
            chunk_size_threshold=config.chunk_size_threshold,
            aggregate=config.aggregate,
            timeout_s=config.timeout_s,
        )
        self._step = 0
        self._before: dict[str, Any] = {}

    def start(self, episode_id: str) -> None:
        """See `Actor.start`."""
        self._step, self._timed.latencies_ms = 0, []
        self._before = self._ahead.report()
        self._ahead.reset(episode_id)

    def act(self, observation: Any) -> Row:
        """See `Actor.act`."""
        action = self._ahead.select_action(lambda: self._mapping.batch([observation]), step=self._step)
        self._step += 1
        return action

    def finish(self) -> None:
        """See `Actor.finish`; an answer under way is dropped when the next episode starts."""

    def report(self) -> tuple[list[float], dict[str, Any]]:
        """See `Actor.report`; what AsyncPolicy counts, of this episode, and the largest jumps so far."""
        now = self._ahead.report()
        counted = {name: now[name] - self._before[name] for name in COUNTED}
        return list(self._timed.latencies_ms), {**counted, **{name: now[name] for name in KEPT}}

    def close(self) -> None:
        """See `Actor.close`."""
        self._ahead.close()


class _TimedPolicy(Policy):
    """A policy whose inferences are timed."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.metadata = policy, policy.metadata
        self.latencies_ms: list[float] = []

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        started, latencies_ms = time.perf_counter(), self.latencies_ms
        chunk = self._policy.infer(observation, episode_ids=episode_ids)
        latencies_ms.append(1e3 * (time.perf_counter() - started))
        return chunk

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        self._policy.reset(episode_ids)
