"""remote_env: a `gymnasium.Env` whose simulator runs on another machine, over SSH.

Importing it registers "Remote-v0", "Remote-Aloha-v0" and the ALOHA tasks themselves with Gymnasium. The names below
load when they are used, so that the far end, which has neither paramiko nor a renderer, can import this package too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from remote_env.registration import register_remote_envs

if TYPE_CHECKING:
    from remote_env.chunks import ChunkedActions
    from remote_env.env import LocalFolder, RemoteEnv, Rollout
    from remote_env.env.branches import Branches
    from remote_env.prediction import PredictiveEnv
    from remote_env.protocol.branching import Tried
    from remote_env.protocol.chunks import Transitions
    from remote_env.server.backend import Backend
    from remote_env.state import EntityLayout, EntityState, SceneDescription, SceneLayout, SceneState, Shape
    from remote_env.vector import RemoteVectorEnv, SpreadVectorEnv

__version__ = "0.1.0"

_HOMES = {
    "RemoteEnv": "remote_env.env",
    "RemoteVectorEnv": "remote_env.vector",
    "SpreadVectorEnv": "remote_env.vector",
    "ChunkedActions": "remote_env.chunks",
    "PredictiveEnv": "remote_env.prediction",
    "Transitions": "remote_env.protocol.chunks",
    "Branches": "remote_env.env.branches",
    "Tried": "remote_env.protocol.branching",
    "LocalFolder": "remote_env.env",
    "Rollout": "remote_env.env",
    "Backend": "remote_env.server.backend",
    "SceneDescription": "remote_env.state",
    "SceneState": "remote_env.state",
    "SceneLayout": "remote_env.state",
    "Shape": "remote_env.state",
    "EntityState": "remote_env.state",
    "EntityLayout": "remote_env.state",
}

__all__ = [
    "Backend",
    "Branches",
    "ChunkedActions",
    "EntityLayout",
    "EntityState",
    "LocalFolder",
    "PredictiveEnv",
    "RemoteEnv",
    "RemoteVectorEnv",
    "Rollout",
    "SceneDescription",
    "SceneLayout",
    "SceneState",
    "Shape",
    "SpreadVectorEnv",
    "Transitions",
    "Tried",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remote_env' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


register_remote_envs()
