"""What an implementation of your own can be checked with: a faulty link, a counting task, and the contracts themselves.

The names below load when they are used: the far end, which serves `CountingEnv`, has no more than that needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_env.testing.counting import CountingEnv
    from remote_env.testing.fault_proxy import FaultProxy

_HOMES = {
    "CountingEnv": "remote_env.testing.counting",
    "FaultProxy": "remote_env.testing.fault_proxy",
}

__all__ = ["CountingEnv", "FaultProxy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remote_env.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
