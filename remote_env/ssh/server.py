"""Starting, finding and stopping a task server on the far end."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_env.errors import DeadlineExceeded, RemoteEnvError, StartError
from remote_env.ssh.connection import RunningCommand, SshConnection
from remote_env.ssh.far_end import ship_far_end
from remote_env.ssh.pack import pack_far_end
from remote_env.ssh.scripts import (
    FAILURES,
    FIND,
    LOG_TAIL,
    START,
    STOP,
    answers,
    failure,
    no_answer,
    run_script,
    start_script,
)

STOP_GRACE_S = 8.0  # how long a server may take to end its simulators before it is killed
LOGIN_SHARE = 1 / 3  # of the time to stop a server: how much a login gets to show that it is alive
CLEAN_UP_S = 8.0  # how long we try to end a server whose start was given up
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # a POSIX shell's exit statuses


@dataclass(frozen=True)
class ServerHandle:
    """A task server on the far end.

    Attributes:
        connection: the login that reaches it.
        session_folder: its folder there.
        pid: the supervisor's process id.
        start_time: when it started, as /proc has it; tells it from a later process of the same pid.
        port: where it listens on the far end's 127.0.0.1.
        token: what clients authenticate with.
        python: the version of its interpreter, such as "3.11.7"; "" when unknown.
    """

    connection: SshConnection
    session_folder: str
    pid: int
    start_time: str
    port: int
    token: str = field(repr=False)  # it would end up in logs
    python: str = ""

    @classmethod
    def from_record(cls, connection: SshConnection, port: int, record: Mapping[str, Any]) -> ServerHandle:
        """The handle of a server that `find_server` found."""
        return cls(
            connection,
            record["session_folder"],
            int(record["pid"]),
            str(record["start_time"]),
            port,
            record["token"],
        )

    def log_tail(self, lines: int, deadline: float) -> str:
        """The last `lines` lines of the server's log, "" when it has none; raises as `SshConnection.run`."""
        variables = {"folder": self.session_folder, "lines": lines}
        return run_script(self.connection, LOG_TAIL, variables, deadline=deadline).following

    def stop(self, deadline: float) -> None:
        """End exactly this server and its simulators, and remove its folder; it may have ended already.

        A login that has ended, or on which nothing answers for `LOGIN_SHARE` of the time, is first made anew.

        Raises:
            StartError: the folder could not be removed.
            ConnectError, HostKeyError, AuthError: the login is gone and a new one failed; the server may run on.
            DeadlineExceeded, ConnectionLost: as `SshConnection.run`; the server may run on.
        """
        now = time.monotonic()
        if not self.connection.is_answering(now + LOGIN_SHARE * (deadline - now)):
            self.connection.connect(deadline)
        _stop(self.connection, self.pid, self.start_time, self.session_folder, deadline, port=self.port)


def _stop(
    connection: SshConnection,
    pid: int,
    start_time: str,
    folder: str,
    deadline: float,
    *,
    port: int = 0,
    group: bool = False,
) -> None:
    grace_s = min(STOP_GRACE_S, max(deadline - time.monotonic() - 2.0, 0.0))
    variables = {
        "pid": pid,
        "start": start_time,
        "folder": folder,
        "port": port,
        "tenths": round(grace_s * 10),
        "group": "yes" if group else "no",
    }
    run_script(connection, STOP, variables, deadline=deadline)


def start_server(
    connection: SshConnection,
    settings: Mapping[str, Any],
    *,
    python: str = "python3",
    deadline: float,
    on_progress: Callable[[str], None] | None = None,
    source: Path | None = None,
) -> ServerHandle:
    """Start a task server on the far end and return once it listens.

    Args:
        connection: logged in.
        settings: what the far end's settings.json holds; a random `token` and `listen` on any loopback
            port are added when missing.
        python: the interpreter's command line there, such as "~/isaaclab/isaaclab.sh -p" or
            ". ./env.sh && python".
        deadline: absolute `time.monotonic()` [s].
        on_progress: called about once a second with the last line of the far end's log.
        source: the package folder to ship; default this package.

    Raises:
        StartError: the interpreter is missing or too old, the server died or cannot listen, or the host
            takes no files; `log_tail` has its last words, `kind` why it refused ("port-in-use",
            "python-too-old", …). Nothing runs on.
        DeadlineExceeded: it was not ready in time; it was ended.
        ConnectionLost: the link broke; the far end ends what it started within a second or two.
    """
    settings = {"token": secrets.token_hex(32), "listen": {"tcp": ["127.0.0.1", 0]}, **settings}
    starter = _Starter(connection, settings, python, deadline, on_progress)
    digest = pack_far_end(source).digest
    handle = starter.try_start(digest)
    if handle is None:
        ship_far_end(connection, deadline, source=source)
        handle = starter.try_start(digest)
    if handle is None:
        raise StartError(f"the far end's files vanished from {connection.login.host} while it was started; try again")
    return handle


@dataclass
class _Starter:
    connection: SshConnection
    settings: Mapping[str, Any]
    python: str
    deadline: float
    on_progress: Callable[[str], None] | None
    started: tuple[int, str, str] | None = None  # pid, start time, folder
    last_line: str = ""

    def try_start(self, digest: str) -> ServerHandle | None:
        """The ready server; None when the far end's files are not there."""
        data = json.dumps(dict(self.settings)).encode()
        variables = {
            "digest": digest,
            "session": secrets.token_hex(8),
            "python": self.python,
            "size": len(data),
        }
        began = time.monotonic()
        try:
            with start_script(self.connection, START, variables, data=data, deadline=self.deadline) as running:
                return self._follow(running)
        except DeadlineExceeded as error:
            self._end_started()
            raise DeadlineExceeded(
                f"starting on {self.connection.login.host}: not ready after "
                f"{time.monotonic() - began:.0f} s; last log line: {self.last_line or '(none)'}"
            ) from error
        except BaseException:
            self._end_started()
            raise

    def _follow(self, running: RunningCommand) -> ServerHandle | None:
        lines = answers(running, self.deadline)
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "absent":
                return None
            if word in FAILURES:
                raise failure(self.connection, word, rest)
            if word == "started":
                pid, start_time, folder = rest.split(" ", 2)
                self.started = int(pid), start_time, folder
            elif word == "progress":
                self._report(rest)
            elif word == "ready" and self.started:
                return self._ready(json.loads(rest), self.started[2])
            elif word in ("refused", "died"):
                raise self._ended(word, rest, _log_of(lines))
        done = running.finish(b"", self.deadline)
        raise no_answer(self.connection, done.returncode, done.stderr)

    def _report(self, line: str) -> None:
        self.last_line = line
        if self.on_progress is not None:
            self.on_progress(line)

    def _ready(self, ready: Mapping[str, Any], folder: str) -> ServerHandle:
        return ServerHandle(
            connection=self.connection,
            session_folder=folder,
            pid=int(ready["pid"]),
            start_time=str(ready["start_time"]),
            port=int(ready["listen"]["tcp"][1]),
            token=str(self.settings["token"]),
            python=str(ready.get("python", "")),
        )

    def _ended(self, word: str, detail: str, log: str) -> StartError:
        self.started = None  # the script has ended it and removed its folder
        host = self.connection.login.host
        if word == "refused":
            failed = json.loads(detail)
            is_told = "pass python=" in failed["message"]
            hint = "; pass python=…" if failed["kind"] == "python-too-old" and not is_told else ""
            return StartError(
                f"the task server on {host} did not start: {failed['message']}{hint}",
                log_tail=log,
                kind=failed["kind"],
            )
        status = int(detail)
        if status in (NOT_FOUND, NOT_EXECUTABLE):
            what = "was not found" if status == NOT_FOUND else "cannot be executed"
            return StartError(
                f"{self.python} {what} on {host}; pass python=… (a command line there). It said: {log.strip()[-300:]}",
                log_tail=log,
            )
        return StartError(
            f"the task server on {host} ended while it started: {_status(status)}; last log lines:\n"
            f"{log.strip()[-1500:] or '(none)'}\nIs {self.python!r} a Python of 3.10 or later?",
            log_tail=log,
        )

    def _end_started(self) -> None:
        """Best effort: the far end's own script ends what it started once its client is gone."""
        if self.started is None or not self.connection.is_open:
            return
        with contextlib.suppress(RemoteEnvError):
            _stop(self.connection, *self.started, time.monotonic() + CLEAN_UP_S, group=True)


def _log_of(lines: Iterator[str]) -> str:
    return "\n".join(line.removeprefix("| ") for line in lines if line.startswith("| "))


def _status(status: int) -> str:
    return f"killed by signal {status - 128}" if status > 128 else f"exit status {status}"


def find_server(connection: SshConnection, port: int, deadline: float) -> dict[str, Any] | None:
    """What this user's server on `port` of the far end wrote about itself; None without a live one.

    Returns:
        `pid`, `start_time`, `token`, `session_folder`, `task_label`.

    Raises:
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`.
    """
    answer = run_script(connection, FIND, {"port": int(port)}, deadline=deadline)
    match = re.fullmatch(r"(\d+):(\d*) (.*)", answer.rest)
    if answer.word != "found" or match is None:
        return None
    try:
        record = json.loads(match[3])
    except ValueError:
        return None  # half-written by something else; ours are renamed into place
    alive = str(record.get("pid")) == match[1] and str(record.get("start_time")) == match[2]
    return record if alive else None
