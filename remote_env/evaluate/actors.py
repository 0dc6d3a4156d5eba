"""Which actor an evaluation takes."""

from __future__ import annotations

from remote_env.evaluate.acting import Actor, ChunkActor
from remote_env.evaluate.config import EvaluationConfig
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.policy import Policy


def make_actor(policy: Policy, mapping: ObservationMapping, config: EvaluationConfig) -> Actor:
    """The actor that `config` asks for."""
    return ChunkActor(policy, mapping, config.chunk_size)
