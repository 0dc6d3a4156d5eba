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
from dataclasses import asdict, dataclass
from pathlib import Path

from remote_env.env.records import cache_folder, is_running, wait_gone
from remote_env.errors import ConfigError

GRACE_S = 5.0  # how long a tunnel may take to close before it is killed
KILL_S = 5.0


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
    """Where the records and logs lie; made when it is not there."""
    folder = cache_folder() / "tunnels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def new_id() -> str:
    """A name that no other tunnel has."""
    return secrets.token_hex(3)


def log_path(name: str) -> Path:
    """The log of the tunnel of this id."""
    return tunnels_folder() / f"{name}.log"


def write_record(record: TunnelRecord) -> None:
    """Write it, readable by its owner alone, whole or not at all."""
    path = tunnels_folder() / f"{record.id}.json"
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(record), file)
    partial.replace(path)


def list_records() -> list[TunnelRecord]:
    """This machine's living tunnels, oldest first; what dead ones left behind is removed."""
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
            if record.node == platform.node():
                yield record


def remove_record(name: str) -> None:
    """Remove the record and the log of the tunnel of this id."""
    for path in (tunnels_folder() / f"{name}.json", log_path(name)):
        path.unlink(missing_ok=True)


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
