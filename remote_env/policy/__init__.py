"""Policies: local checkpoints, servers of them, and clients of anybody's. Names load when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_env.policy.address import open_policy, parse_policy
    from remote_env.policy.asynchronous import AsyncPolicy
    from remote_env.policy.client import PolicyClient, RemotePolicyClient
    from remote_env.policy.loading import load_policy
    from remote_env.policy.meta import MetaAction, MetaObs, split_observation, stack_observations
    from remote_env.policy.observation import ActionMapping, ObservationMapping
    from remote_env.policy.policy import Feature, Policy, PolicyMetadata

_HOMES = {
    "ActionMapping": "observation",
    "AsyncPolicy": "asynchronous",
    "Feature": "policy",
    "MetaAction": "meta",
    "MetaObs": "meta",
    "ObservationMapping": "observation",
    "Policy": "policy",
    "PolicyClient": "client",
    "PolicyMetadata": "policy",
    "RemotePolicyClient": "client",
    "load_policy": "loading",
    "open_policy": "address",
    "parse_policy": "address",
    "split_observation": "meta",
    "stack_observations": "meta",
}

__all__ = [
    "ActionMapping",
    "AsyncPolicy",
    "Feature",
    "MetaAction",
    "MetaObs",
    "ObservationMapping",
    "Policy",
    "PolicyClient",
    "PolicyMetadata",
    "RemotePolicyClient",
    "load_policy",
    "open_policy",
    "parse_policy",
    "split_observation",
    "stack_observations",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remote_env.policy' has no attribute {name!r}")
    return getattr(importlib.import_module(f"remote_env.policy.{_HOMES[name]}"), name)
