"""Task servers on the far end: find, list and stop them. `starting.py` starts them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_env.ssh.connection import SshConnection
from remote_env.ssh.programs import FIND, LIST, LOG_TAIL, STOP
from remote_env.ssh.scripts import as_shell, parse_answer, run_script
from remote_env.ssh.shell import Dial, Shell

STOP_GRACE_S = 8.0  # how long a server may take to end its simulators before it is killed


@dataclass(frozen=True)
class ServerHandle:
    """A task server on the far end.

    Attributes:
        connection: the login or the shell that reaches it.
        session_folder: its folder there.
        pid: the supervisor's process id.
        start_time: when it started, as /proc has it; tells it from a later process of the same pid.
        port: where it listens on the far end's 127.0.0.1.
        token: what clients authenticate with.
        python: the version of its interpreter, such as "3.11.7"; "" when unknown.
        dial: makes a transport to it when the login's own way to `port` does not lead there, else None.
    """

    connection: SshConnection | Shell
    session_folder: str
    pid: int
    start_time: str
    port: int
    token: str = field(repr=False)  # it would end up in logs
    python: str = ""
    dial: Dial | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_record(cls, connection: SshConnection | Shell, port: int, record: Mapping[str, Any]) -> ServerHandle:
        """The handle of a server that `find_server` or `list_servers` found."""
        return cls(
            connection,
            record["session_folder"],
            int(record["pid"]),
            str(record["start_time"]),
            port,
            record["token"],
            str(record.get("python", "")),
        )

    def log_tail(self, lines: int, deadline: float) -> str:
        """The last `lines` lines of the server's log, "" when it has none; raises as `SshConnection.run`."""
        variables = {"folder": self.session_folder, "lines": lines}
        return run_script(self.connection, LOG_TAIL, variables, deadline=deadline).following

    def stop(self, deadline: float) -> None:
        """End exactly this server and its simulators, and remove its folder; it may have ended already.

        A login that has ended, or on which nothing answers for a third of the time, is first made anew.

        Raises:
            StartError: the folder could not be removed.
            ConnectError, HostKeyError, AuthError: the login is gone and a new one failed; the server may run on.
            DeadlineExceeded, ConnectionLost: as `SshConnection.run`; the server may run on.
        """
        shell = as_shell(self.connection)
        try:
            shell.revive(deadline)
            _stop(shell, deadline, pid=self.pid, start=self.start_time, folder=self.session_folder, port=self.port)
        finally:
            shell.close()


def stop_start(shell: Shell, session: str, deadline: float) -> None:
    """End whatever was started for `session`, and remove its folder; raises as `run_script`."""
    _stop(shell, deadline, session=session)


def _stop(shell: Shell, deadline: float, **given: object) -> None:
    grace_s = min(STOP_GRACE_S, max(deadline - time.monotonic() - 2.0, 0.0))
    variables = {"session": "", "pid": "", "start": "", "folder": "", "port": 0, "tenths": round(grace_s * 10)}
    run_script(shell, STOP, {**variables, **given}, deadline=deadline)


def find_server(where: SshConnection | Shell, port: int, deadline: float) -> dict[str, Any] | None:
    """What this user's server on `port` of the far end wrote about itself; None without a live one.

    Returns:
        `pid`, `start_time`, `token`, `session_folder`, `task_label` and more.

    Raises:
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`.
    """
    answer = run_script(where, FIND, {"port": int(port)}, deadline=deadline)
    match = re.fullmatch(r"(\d+):(\d*) (.*)", answer.rest)
    record = _parse_record(match[3]) if match is not None and answer.word == "found" else None
    if match is None or record is None:
        return None
    alive = str(record.get("pid")) == match[1] and str(record.get("start_time")) == match[2]
    return record if alive else None


def list_servers(where: SshConnection | Shell, deadline: float) -> list[dict[str, Any]]:
    """What each live server of this user there wrote about itself, and `alive`: True.

    What dead ones left behind, records and session folders, is removed; a start in progress is left alone.

    Raises:
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`.
    """
    answer = run_script(where, LIST, {}, deadline=deadline)
    said = (parse_answer(line) for line in answer.following.splitlines())
    records = [_parse_record(found[1]) for found in said if found and found[0] == "server"]
    return [{**record, "alive": True} for record in records if record is not None]


def _parse_record(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:
        return None  # half-written by something else; ours are renamed into place
    return record if isinstance(record, dict) else None
