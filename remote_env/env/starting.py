"""Find the task server that a RemoteEnv asks for, or start it: what a server is told, and by whom it is held."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import logging
import os
import platform
import site
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import gymnasium
import numpy as np

from remote_env.env.places import Place
from remote_env.env.server import Progress, Server
from remote_env.env.task import LocalFolder, TaskChoice
from remote_env.errors import ConfigError, StartError
from remote_env.protocol.handshake import new_token

log = logging.getLogger("remote_env")


def find_or_start(
    place: Place, task: TaskChoice, arguments: Mapping[str, Any], deadline: float, on_progress: Progress
) -> Server:
    """The server at the port that the arguments name, or a new one.

    Args:
        place: where it runs.
        task: what it serves.
        arguments: of `RemoteEnv`.
        deadline: monotonic [s].
        on_progress: told what happens.

    Raises:
        ConfigError: nothing listens there, and no task is named to start.
        ConnectError: the place cannot be reached, or the server does not come up (StartError).
    """
    server = _find(place, task, arguments["port"], deadline)
    if server is not None:
        return server
    settings = _make_settings(place, task, arguments, deadline)
    try:
        return place.start(settings, deadline, on_progress)
    except StartError as error:
        # Binding the port is the lock: another client may have started one there since we looked.
        if getattr(error, "kind", "") == "port-in-use":
            server = _find(place, task, arguments["port"], deadline)
        if server is None:
            raise
        return server


def _find(place: Place, task: TaskChoice, port: int | None, deadline: float) -> Server | None:
    if port is None and not place.name.startswith("tcp://"):
        return None
    server = place.find(port or 0, deadline)
    if server is None and task.env is None:
        raise ConfigError(
            f"no task server of yours listens on port {port} of {place.name}; name the task with env= to start one "
            "there (REMOTE_ENV_TASK may set a default)"
        )
    return server


def _make_settings(place: Place, task: TaskChoice, arguments: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    specified = task.specify(place, deadline, allow_calls=arguments["allow_calls"])
    uploaded = [_upload_importable(place, LocalFolder(item).resolved(), deadline) for item in arguments["upload"]]
    is_local, port = place.name == "local", arguments["port"]
    return {
        "token": new_token(),
        "listen": {"tcp": ["127.0.0.1", port]} if port else None,
        "task": specified.to_plain(),
        "digest": specified.digest,
        "max_sessions": arguments["max_sessions"],
        "idle_timeout_s": 0.0 if is_local and not port else arguments["idle_timeout_s"],
        "env": dict(arguments["server_env"] or {}),
        "cwd": arguments["cwd"],
        "python_path": [*uploaded, *(_import_folders(own=arguments["python"] is None) if is_local else ())],
    }


def _upload_importable(place: Place, path: Path, deadline: float) -> str:
    """Send a module, a package or a folder of them; what the far end needs on its `sys.path` to import them."""
    sent = place.send_folder(path, deadline)
    is_module = path.is_file() or (path / "__init__.py").exists()
    return str(PurePosixPath(sent).parent) if is_module else sent


def _import_folders(*, own: bool) -> list[str]:
    """What a local server is to find too, so that a task beside the caller's script works.

    Args:
        own: with our own interpreter's packages; those of another one are its own.
    """
    folders = [str(Path(item).absolute()) for item in sys.path]
    libraries = [Path(prefix) / "lib" for prefix in (sys.prefix, sys.base_prefix)]
    ours = [*map(str, libraries), *site.getsitepackages(), site.getusersitepackages()]
    return [folder for folder in folders if own or not any(Path(folder).is_relative_to(home) for home in ours)]


def log_differences(theirs: Mapping[str, str]) -> None:
    """Log where the far interpreter's versions or machine differ from ours: bit-equality is promised for equal ones."""
    ours = {"numpy": np.__version__, "gymnasium": gymnasium.__version__, "machine": platform.machine()}
    if "mujoco" in theirs:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            ours["mujoco"] = importlib.metadata.version("mujoco")
    for name, version in ours.items():
        if theirs.get(name) != version:
            # Physics differ between versions of MuJoCo; the others hardly ever show.
            level = logging.WARNING if name == "mujoco" else logging.INFO
            log.log(level, "%s differs: %s here, %s on the far end", name, version, theirs.get(name))


def describe_client() -> str:
    """How a server may name us to others."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}" if hasattr(os, "getuid") else "somebody"
    return f"{user}@{platform.node()} pid {os.getpid()}"
