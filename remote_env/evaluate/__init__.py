"""Evaluation: a policy, local or remote, on environments, over episodes whose seeds are known; results to disk.

    results = evaluate(EvaluationConfig(model="localhost:5000", envs=("aloha",), num_rollout=10))

`remote-env eval` and examples/eval_remote.py are this with flags.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_env.evaluate.config import EvaluationConfig
    from remote_env.evaluate.episodes import EpisodeResult
    from remote_env.evaluate.evaluation import evaluate
    from remote_env.evaluate.results import Results
    from remote_env.evaluate.statistics import wilson_interval

_HOMES = {
    "EpisodeResult": "episodes",
    "EvaluationConfig": "config",
    "Results": "results",
    "evaluate": "evaluation",
    "wilson_interval": "statistics",
}

__all__ = ["EpisodeResult", "EvaluationConfig", "Results", "evaluate", "wilson_interval"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remote_env.evaluate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"remote_env.evaluate.{_HOMES[name]}"), name)
