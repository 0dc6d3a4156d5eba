"""This user's servers on this machine: the records that they keep, and how one is ended by its record."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remote_env.env.server import ServerRecord
from remote_env.errors import AuthError, ConfigError
from remote_env.private_files import read_private_text

log = logging.getLogger("remote_env")

POLL_S = 0.01
RECORD_WAIT_S = 0.5  # a server listens a moment before its record is there
GRACE_S = 8.0  # how long a server may take to end its simulators before it is killed


def cache_folder() -> Path:
    """Where this user's files of ours live on this machine; ConfigError when there is neither a cache nor a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "remote-env"
    except RuntimeError as error:
        raise ConfigError(
            "this account has no home folder: set HOME, or XDG_CACHE_HOME to a folder of yours"
        ) from error


def record_path(port: int) -> Path:
    """The record of the server on `port`; by machine, since a home may be shared between several."""
    return cache_folder() / "servers" / platform.node() / f"{port}.json"


def find_record(port: int) -> dict[str, Any] | None:
    """What the server on `port` wrote about itself.

    Of servers of several network namespaces, which may have one port, the one of ours; the second one to come has
    `<port>.<pid>.json`.

    Raises:
        ConfigError: others could read or replace it, so that it cannot be believed.
    """
    found = [plain for _, plain in _read_records(f"{port}.json", f"{port}.*.json", is_strict=True)]
    return next((plain for plain in found if _is_near(plain)), found[0] if found else None)


def _is_near(plain: dict[str, Any]) -> bool:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        pid = int(plain["pid"])
        return is_running(pid, str(plain["start_time"])) and _shares_network(pid)
    return False


def _shares_network(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        return True  # where nothing tells


def list_local_records() -> list[ServerRecord]:
    """The living servers of this user on this machine, oldest first; what dead ones left behind is removed."""
    found = []
    for path, plain in _read_records("*.json"):
        try:
            record = ServerRecord.from_plain({**plain, "port": path.name.partition(".")[0]})
        except (KeyError, TypeError, ValueError):
            continue  # not one of ours
        if is_running(record.pid, record.start_time):
            found.append(record)
        else:
            _remove_leftovers(path, record)
    return sorted(found, key=lambda record: record.started)


def _read_records(*patterns: str, is_strict: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = record_path(0).parent
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        try:
            yield path, dict(json.loads(read_private_text(path)))
        except ConfigError as error:
            if is_strict:
                raise
            log.warning("%s", error)
        except (OSError, ValueError):
            continue  # it ended meanwhile


def _remove_leftovers(path: Path, record: ServerRecord) -> None:
    path.unlink(missing_ok=True)
    folder = Path(record.session_folder)
    _kill_groups(folder)
    if folder.parent == cache_folder() / "sessions":
        shutil.rmtree(folder, ignore_errors=True)


def stop_local(record: ServerRecord, deadline: float) -> None:
    """End exactly this server and its simulators, and remove its folder; it may have ended already."""
    grace = min(deadline, time.monotonic() + GRACE_S)
    for number, until in ((signal.SIGTERM, grace), (getattr(signal, "SIGKILL", signal.SIGTERM), deadline)):
        if not is_running(record.pid, record.start_time):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
        wait_gone(record.pid, record.start_time, until)
    for path, plain in _read_records(f"{record.port}.json", f"{record.port}.*.json"):
        if plain.get("pid") == record.pid:
            path.unlink(missing_ok=True)
    _kill_groups(Path(record.session_folder))
    shutil.rmtree(record.session_folder, ignore_errors=True)


def _kill_groups(folder: Path) -> None:
    """End what is left of a server's simulators, each verified by its start time."""
    try:
        lines = (folder / "simulators").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        pid, _, start_time = line.partition(" ")
        if pid.isdecimal() and is_running(int(pid), start_time):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(pid), signal.SIGKILL)


def wait_gone(pid: int, start_time: str, deadline: float) -> bool:
    """Whether that process has ended by `deadline`."""
    while is_running(pid, start_time):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def is_running(pid: int, start_time: str) -> bool:
    """Whether this very process lives; a zombie does not. Where there is no /proc the process id has to do."""
    try:
        state, started = read_stat(pid)
        return state not in "ZX" and (not start_time or started == start_time)
    except (OSError, IndexError):
        return not Path("/proc/self").exists() and _exists(pid)


def read_stat(pid: int) -> tuple[str, str]:
    """A process's state and start time, as the kernel has them; OSError or IndexError when it does not say."""
    # The name in parentheses may itself hold spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def read_registered_token(port: int) -> str:
    """The token of this user's server on a port of this machine: of the record that it keeps, else of the environment.

    Raises:
        AuthError: neither is there.
    """
    from_environment = os.environ.get("REMOTE_ENV_TOKEN")
    record = find_record(port)
    if from_environment and record is None:
        return from_environment
    until = time.monotonic() + RECORD_WAIT_S
    while record is None and time.monotonic() < until:
        time.sleep(POLL_S)
        record = find_record(port)
    if record is not None and "token" in record:
        return str(record["token"])
    raise AuthError(
        f"something listens on port {port}, but its token is unknown: there is no {record_path(port)}, and "
        "REMOTE_ENV_TOKEN is not set; is that a task server of yours? Pass token= or set REMOTE_ENV_TOKEN"
    )
