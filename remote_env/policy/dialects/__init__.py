"""The protocols of policy servers, one file each: ours and those of the systems that people already have."""

from __future__ import annotations

import importlib
from typing import Any

from remote_env.errors import ConfigError

# Dialect -> the extra of remote-env that holds what it needs, "" when nothing.
DIALECTS = {"renv": "", "ilstudio": "", "openpi": "policy", "lerobot": "lerobot"}
DEFAULT_PORTS = {"renv": 5000, "ilstudio": 5000, "openpi": 8000, "lerobot": 8080}


def load_dialect(name: str) -> Any:
    """The dialect's module: `connect` for clients, and what the server calls.

    Raises:
        ConfigError: there is no such dialect, or a package that it needs is missing here.
    """
    if name not in DIALECTS:
        raise ConfigError(f"unknown dialect {name!r}; there are {', '.join(DIALECTS)}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        extra = DIALECTS[name]
        if not extra or (error.name or "").startswith("remote_env"):
            raise
        raise ConfigError(
            f"the dialect {name!r} needs {error.name!r}, which is not installed here: pip install 'remote-env[{extra}]'"
        ) from error
