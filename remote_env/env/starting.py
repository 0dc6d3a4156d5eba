"""Find the task server that a RemoteEnv asks for, or start it: what a server is told, and by whom it is held."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import site
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import gymnasium
import numpy as np

from remote_env.env.arguments import Arguments
from remote_env.env.choosing import attach_by_id, end_old, find_warm
from remote_env.env.places import Place
from remote_env.env.progress import StartProgress
from remote_env.env.server import Server
from remote_env.env.task import LocalFolder, PolicyChoice, TaskChoice
from remote_env.errors import ConfigError, StartError
from remote_env.protocol.handshake import new_token

log = logging.getLogger("remote_env")

NEVER_S = 1e9  # for servers that end with their starter, whoever comes and goes meanwhile


def choose_task(arguments: Arguments, num_envs: int | None = None) -> TaskChoice:
    """What these arguments ask to run; with `num_envs` a batch of so many.

    Raises:
        ConfigError: they contradict each other.
    """
    kwargs = dict(arguments.env_kwargs or {})
    if arguments.render_mode is not None and arguments.render is None:
        kwargs["render_mode"] = arguments.render_mode
    policy = PolicyChoice.of(arguments.policy, arguments.policy_kwargs)
    chosen = TaskChoice(None, kwargs, arguments.simulator, policy=policy, num_envs=num_envs)
    if arguments.server_script is None:
        return chosen.replaced(arguments.env or os.environ.get("REMOTE_ENV_TASK"), None)  # type: ignore[arg-type]
    if arguments.env is not None:
        raise ConfigError("server_script= makes the environment with its make_env, so leave env= out")
    return chosen.served_by(arguments.server_script, arguments.upload)


class Search:
    """Finds the server that the arguments name, or starts one.

    Args:
        place: where it runs.
        task: what it serves.
        arguments: of `RemoteEnv`.
        progress: told what happens; has the deadline.
        besides: ports of servers that have no session free.
    """

    def __init__(
        self,
        place: Place,
        task: TaskChoice,
        arguments: Arguments,
        progress: StartProgress,
        besides: frozenset[int] = frozenset(),
    ) -> None:
        self._place, self._task, self._arguments = place, task, arguments
        self._deadline, self._progress, self._besides = progress.deadline, progress, besides

    def find_or_start(self, *, cleanup_old: bool) -> Server:
        """The server, running.

        Args:
            cleanup_old: first end this user's servers there that nobody holds.

        Raises:
            ConfigError: no such server runs there, and no task is named to start.
            ConnectError: the place cannot be reached, or the server does not come up (StartError).
        """
        self._progress.report("connecting", self._place.name)
        server = self._find()
        if cleanup_old:
            besides = () if server is None else (server.port,)
            end_old(self._place, self._deadline, self._tell_ended, besides)
        return server or self._start()

    def _tell_ended(self, what: str) -> None:
        log.warning("%s on %s", what, self._place.name)

    def _find(self) -> Server | None:
        arguments = self._arguments
        if arguments.session is not None:
            return attach_by_id(self._place, arguments.session, self._deadline)
        if arguments.port is not None or self._place.name.startswith("tcp://"):
            return self._find_by_port()
        if arguments.reuse:
            digest, setup = self._settings["digest"], self._settings["setup"]
            return find_warm(self._place, digest, setup, self._deadline, self._besides)
        return None

    def _find_by_port(self) -> Server | None:
        port = self._arguments.port
        server = self._place.find(port or 0, self._deadline)
        if server is None and self._task.env is None:
            raise ConfigError(
                f"no task server of yours listens on port {port} of {self._place.name}; name the task with env= to "
                "start one there (REMOTE_ENV_TASK may set a default)"
            )
        return server

    def _start(self) -> Server:
        outlives = self._arguments.keep or self._arguments.reuse
        settings = self._settings
        self._progress.report("starting")
        try:
            return self._place.start(settings, self._deadline, self._progress.report, outlives=outlives)
        except StartError as error:
            # Binding the port is the lock: another client may have started one there since we looked.
            server = self._find() if getattr(error, "kind", "") == "port-in-use" else None
            if server is None:
                raise
            return server

    @cached_property
    def _settings(self) -> dict[str, Any]:
        self._progress.report("uploading")
        return make_settings(self._place, self._task, self._arguments, self._deadline)


def make_settings(place: Place, task: TaskChoice, arguments: Arguments, deadline: float) -> dict[str, Any]:
    """What the server is told, with everything sent there that it needs."""
    specified = task.specify(place, deadline, allow_calls=arguments.allow_calls)
    if task.beside is not None:  # sent already, into the script's own folder
        uploaded = [str(PurePosixPath(specified.env.rpartition(":")[0]).parent)]
    else:
        uploaded = [_upload_importable(place, LocalFolder(item).resolved(), deadline) for item in arguments.upload]
    is_local, port = not place.is_remote, arguments.port
    ends_with_us = is_local and not port and not arguments.keep and not arguments.reuse
    return {
        "token": new_token(),
        "listen": {"tcp": ["127.0.0.1", port]} if port else None,
        "task": specified.to_plain(),
        "digest": specified.digest,
        **({} if task.policy is None or task.policy.token is None else {"policy_token": task.policy.token}),
        "setup": describe_setup(arguments, uploaded),
        "insecure": arguments.insecure,
        "max_sessions": arguments.max_sessions,
        "idle_timeout_s": NEVER_S if ends_with_us else arguments.idle_timeout_s,
        "requirements": list(arguments.requirements),
        "env": dict(arguments.server_env or {}),
        "cwd": arguments.cwd,
        "python_path": [*uploaded, *(_import_folders(own=arguments.python is None) if is_local else ())],
    }


def describe_setup(arguments: Arguments, uploaded: list[str]) -> str:
    """Names what a server is started with besides its task; two with the same can stand in for each other."""
    what = {
        "python": arguments.python,
        "server_env": dict(arguments.server_env or {}),
        "cwd": arguments.cwd,
        "uploaded": uploaded,
        "requirements": list(arguments.requirements),
        "launch": arguments.launch,
        "allow_calls": sorted(arguments.allow_calls),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


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
