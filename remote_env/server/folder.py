"""What a server keeps on disk: its session folder and the record by which it is found again. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.server.process import process_start_time


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a session folder.

    Raises:
        ConfigError: others could read the folder or the file, which hold the token.
    """
    for path in (folder, folder / "settings.json"):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others and holds the token; make it private: chmod go-rwx {path}")
    settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    if len(settings.get("token", "")) < 32:
        raise ConfigError(f"{folder / 'settings.json'} has no token of at least 32 characters")
    return settings


def cache_folder() -> Path:
    """Where this user's remote_env files live on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "remote-env"


def record_path(port: int) -> Path:
    """Where the server that listens on `port` of this machine keeps its record; homes are shared between machines."""
    return cache_folder() / "servers" / os.uname().nodename / f"{port}.json"


def free_record_path(port: int) -> Path:
    """`record_path`, or a name beside it when that is a living server's: one in another network namespace."""
    path = record_path(port)
    return path.with_name(f"{port}.{os.getpid()}.json") if _is_of_a_living(path) else path


def _is_of_a_living(record: Path) -> bool:
    try:
        other = json.loads(record.read_text())
        return process_start_time(int(other["pid"])) == str(other["start_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for this user only, whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
        partial.rename(path)
    except BaseException:
        partial.unlink()
        raise


def remove_folder(folder: Path) -> None:
    """Remove the session folder and what lies in it, as far as can be; it holds no folders of ours."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        folder.rmdir()
