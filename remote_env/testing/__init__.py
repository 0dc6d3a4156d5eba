"""What an implementation of your own can be checked with: a faulty link, a counting task, and the contracts themselves.

The names below load when they are used: the far end, which serves `CountingEnv`, has no more than that needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_env.testing.checks import CheckFailed
    from remote_env.testing.client_check import check_client
    from remote_env.testing.counting import CountingEnv
    from remote_env.testing.fault_proxy import FaultProxy
    from remote_env.testing.task_server_check import check_task_server
    from remote_env.testing.transport_check import check_transport

_HOMES = {
    "CheckFailed": "remote_env.testing.checks",
    "CountingEnv": "remote_env.testing.counting",
    "FaultProxy": "remote_env.testing.fault_proxy",
    "check_client": "remote_env.testing.client_check",
    "check_task_server": "remote_env.testing.task_server_check",
    "check_transport": "remote_env.testing.transport_check",
}

__all__ = ["CheckFailed", "CountingEnv", "FaultProxy", "check_client", "check_task_server", "check_transport"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'remote_env.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
