"""Batches of environments on other machines."""

from __future__ import annotations

from remote_env.vector.remote_vector_env import RemoteVectorEnv
from remote_env.vector.spread import SpreadVectorEnv

__all__ = ["RemoteVectorEnv", "SpreadVectorEnv"]
