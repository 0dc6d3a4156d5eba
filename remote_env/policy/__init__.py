"""Policies: local checkpoints, servers of them, and clients of anybody's. Names load when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_env.policy.loading import load_policy
    from remote_env.policy.meta import MetaAction, MetaObs
    from remote_env.policy.policy import Feature, Policy, PolicyMetadata

_HOMES = {
    "Feature": "policy",
    "Policy": "policy",
    "PolicyMetadata": "policy",
    "MetaAction": "meta",
    "MetaObs": "meta",
    "load_policy": "loading",
}

__all__ = ["Feature", "MetaAction", "MetaObs", "Policy", "PolicyMetadata", "load_policy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remote_env.policy' has no attribute {name!r}")
    return getattr(importlib.import_module(f"remote_env.policy.{_HOMES[name]}"), name)
