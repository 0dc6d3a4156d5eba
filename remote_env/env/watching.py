"""What a RemoteEnv tells of its server at any time: what it does, what it writes, and what runs beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from remote_env.env.life import Life
from remote_env.env.processes import Processes
from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, RemoteEnvError
from remote_env.protocol.log_text import Problem, find_problems
from remote_env.session import ControlLink, TaskSession, follow_log

ASK_TIMEOUT_S = 2.0  # a supervisor answers at once
READ_TIMEOUT_S = 30.0


class RemoteLog(str):
    """The last lines of a log, to print, and what in them a user should see.

    Attributes:
        problems: tracebacks, CUDA and Vulkan errors, out-of-memory kills and segmentation faults, in order; each with
            its `kind` and its `text`.
    """

    problems: Sequence[Problem]

    def __new__(cls, text: str = "") -> RemoteLog:
        """The log that says `text`."""
        log = super().__new__(cls, text)
        log.problems = tuple(find_problems(text.splitlines()))
        return log

    @property
    def text(self) -> str:
        """The lines as a plain string."""
        return str.__str__(self)


class Watch:
    """Asks about the server of a `Life`, and remembers since when it has not answered."""

    def __init__(self, life: Life[Any]) -> None:
        self._life = life
        self._silent_since: float | None = None

    def status(self) -> dict[str, Any]:
        """See `RemoteEnv.status`."""
        life = self._life
        if life.is_closed:
            return {"state": "closed"}
        progress = life.progress
        session: TaskSession | None = life.session
        if progress is not None:
            return {
                "state": "starting",
                "phase": progress.phase,
                "since_s": progress.elapsed_s,
                "last_line": progress.detail,
            }
        if session is None:
            return {"state": "not started" if life.server is None else "not connected"}
        try:
            status = session.control.status(ASK_TIMEOUT_S)
        except (RemoteEnvError, OSError) as error:
            return self._without_link(error)
        self._silent_since = None
        return status

    def _without_link(self, error: Exception) -> dict[str, Any]:
        """What a link of its own tells, when the session's is gone or silent."""
        server, monitor = self._life.server, self._life.monitor
        if server is not None and not isinstance(error, DeadlineExceeded):
            try:
                link = ControlLink(
                    server.redial or server.dial,
                    server.token,
                    time.monotonic() + ASK_TIMEOUT_S,
                    session=None,
                    client="",
                )
                with contextlib.closing(link):
                    return {**link.status(ASK_TIMEOUT_S), "lost": str(error)}
            except ConnectError as refused:
                error = refused
            except (RemoteEnvError, OSError):
                pass  # the first failure says it
        now = time.monotonic()
        silent_s, why = (0.0, "") if monitor is None else monitor.silence
        self._silent_since = min(now - silent_s, self._silent_since or now)
        return {"state": "unreachable", "since_s": now - self._silent_since, "why": why or str(error)}

    def log_tail(self, lines: int) -> str:
        """The last lines of the server's log; also when its links are gone."""
        session: TaskSession | None = self._life.session  # which another thread may end meanwhile
        server = self._life.server
        if session is not None:
            with contextlib.suppress(RemoteEnvError):
                return session.control.logs(lines)
        return server.log_tail(lines) if server is not None else ""

    def follow(self, lines: int) -> Iterator[str]:
        """The log's lines as they come, over a link of its own."""
        life = self._life
        server = life.server
        if server is None:
            return iter(())

        def open_link() -> ControlLink:
            if life.server is not server:  # else this would log in anew, and nobody would log out
                raise ConnectionLost("the environment was closed before its log was read")
            return ControlLink(
                server.dial, server.token, time.monotonic() + READ_TIMEOUT_S, session=None, client="a reader of logs"
            )

        return follow_log(open_link, lines=lines)

    def read_log(self, path: str | None, lines: int) -> RemoteLog:
        """See `RemoteEnv.check_remote_log`."""
        if path is None:
            return RemoteLog(self.log_tail(lines))
        return RemoteLog(self._life.prepare_way().read_tail(path, lines, time.monotonic() + READ_TIMEOUT_S))

    def list_processes(self, name: str) -> Processes:
        """See `RemoteEnv.check_remote_process`."""
        return self._life.prepare_way().list_processes(name, time.monotonic() + READ_TIMEOUT_S)
