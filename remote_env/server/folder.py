"""What a server keeps on disk: its session folder and the record by which it is found again. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.private_files import check_private_folder, read_private_text, write_private_text
from remote_env.server.process import process_start_time

MIN_TOKEN_LENGTH = 32


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a session folder.

    Raises:
        ConfigError: others could get at the folder or the file, which hold the token; or what is there is no settings.
        OSError: there is none, or it cannot be read.
    """
    path = folder / "settings.json"
    check_private_folder(folder)
    try:
        settings = json.loads(read_private_text(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {type(error).__name__}") from None  # its words might show the token
    if not isinstance(settings, dict) or len(str(settings.get("token", ""))) < MIN_TOKEN_LENGTH:
        raise ConfigError(f"{path} has no token of at least {MIN_TOKEN_LENGTH} characters")
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
    """Write JSON for this user only, whole or not at all; OSError."""
    write_private_text(path, json.dumps(content))


def remove_folder(folder: Path) -> None:
    """Remove the session folder and what lies in it, as far as can be; it holds no folders of ours."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        folder.rmdir()
