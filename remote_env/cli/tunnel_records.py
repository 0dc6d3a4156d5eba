"""The tunnels that run in the background on this machine: their records, and ending one by pid and start time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from remote_env.env.records import cache_folder, is_running, wait_gone
from remote_env.errors import ConfigError

GRACE_S = 5.0  # how long a tunnel may take to close before it is killed
KILL_S = 5.0
STARTING_S = 3600.0  # a log without a record that is older was left by a start that was killed


@dataclass(frozen=True)
class TunnelRecord:
    """One tunnel in the background.

    Attributes:
        id: names it.
        host: as the user wrote it.
        kind: see `remote_env.ssh.tunnel.KINDS`.
        remote_port: of the host's 127.0.0.1.
        local_port: of this machine's 127.0.0.1.
        pid: the process that holds it.
        start_time: that process's, by which a reused pid is told apart.
        node: this machine's name, since a home may be shared between several.
        started: when it was opened (unix) [s].
    """

    id: str
    host: str
    kind: str
    remote_port: int
    local_port: int
    pid: int
    start_time: str
    node: str
    started: float


def tunnels_folder() -> Path:
    """Where the records and logs lie, once one has been made."""
    return cache_folder() / "tunnels"


def new_id() -> str:
    """A name that no other tunnel has."""
    return secrets.token_hex(3)


def create_log(name: str) -> BinaryIO:
    """The new log of a tunnel, readable by its owner alone; ConfigError when no file can be made there."""
    try:
        tunnels_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.fdopen(os.open(log_path(name), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
    except OSError as error:
        raise _no_file(error) from error


def _no_file(error: OSError) -> ConfigError:
    return ConfigError(
        f"a tunnel in the background needs files in {tunnels_folder()}, where none can be written: {error.strerror}; "
        "free space, set XDG_CACHE_HOME to a folder that can be written, or leave out --background"
    )


def log_path(name: str) -> Path:
    """The log of the tunnel of this id."""
    return tunnels_folder() / f"{name}.log"


def write_record(record: TunnelRecord) -> None:
    """Write it, readable by its owner alone, whole or not at all; ConfigError when it cannot be."""
    path = _record_path(record.id)
    partial = path.with_suffix(".partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(record), file)
        partial.replace(path)
    except OSError as error:
        raise _no_file(error) from error


def list_records() -> list[TunnelRecord]:
    """This machine's living tunnels, oldest first; what dead ones left behind is removed."""
    _remove_old_logs()
    living = []
    for record in _read_records():
        if is_running(record.pid, record.start_time):
            living.append(record)
        else:
            remove_record(record.id)
    return sorted(living, key=lambda record: record.started)


def _read_records() -> Iterator[TunnelRecord]:
    for path in sorted(tunnels_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # it ended meanwhile, or is none of ours
            record = TunnelRecord(**json.loads(path.read_text()))
            if _is_ours(record, path.stem):
                yield record


def _is_ours(record: TunnelRecord, name: str) -> bool:
    """Whether it can have been written here: each value of its type, under its name, on this machine."""
    if not isinstance(record.pid, int) or record.pid <= 1:  # which would be more than one process
        return False
    values = [(type(getattr(record, field.name)).__name__, field.type) for field in fields(record)]
    return all(got == wanted for got, wanted in values) and (record.id, record.node) == (name, platform.node())


def _record_path(name: str) -> Path:
    return tunnels_folder() / f"{name}.json"


def _remove_old_logs() -> None:
    for path in tunnels_folder().glob("*.log"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            is_old = path.stat().st_mtime < time.time() - STARTING_S
            if is_old and not _record_path(path.stem).exists():
                path.unlink()


def remove_record(name: str) -> None:
    """Remove the record and the log of the tunnel of this id."""
    record = _record_path(name)
    for path in (record, record.with_suffix(".partial"), log_path(name)):
        with contextlib.suppress(OSError):  # a folder that cannot be written: its process has ended all the same
            path.unlink()


def find_record(name: str) -> TunnelRecord:
    """The living tunnel of this id.

    Raises:
        ConfigError: there is none; the message names those that run.
    """
    records = list_records()
    for record in records:
        if record.id == name:
            return record
    running = ", ".join(record.id for record in records) or "none"
    raise ConfigError(f"no tunnel {name!r} runs in the background on this machine; running: {running}")


def stop_tunnel(record: TunnelRecord) -> None:
    """End exactly this tunnel, and remove its record; it may have ended already."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, KILL_S)):
        if not is_running(record.pid, record.start_time):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
        wait_gone(record.pid, record.start_time, time.monotonic() + patience_s)
    remove_record(record.id)
