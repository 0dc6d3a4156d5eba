"""Starting a task server on the far end, and what is told when it does not start."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_env.errors import DeadlineExceeded, RemoteEnvError, StartError
from remote_env.protocol.log_text import clean, last_line
from remote_env.ssh.connection import SshConnection
from remote_env.ssh.far_end import ship_far_end
from remote_env.ssh.launch import LaunchedShell
from remote_env.ssh.pack import pack_far_end
from remote_env.ssh.programs import START
from remote_env.ssh.scripts import FAILURES, SshShell, as_shell, failure, no_answer, parse_answer
from remote_env.ssh.server import ServerHandle, stop_start
from remote_env.ssh.shell import Progress, Running, Shell

CLEAN_UP_S = 8.0  # how long we try to end a server whose start was given up
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # a POSIX shell's exit statuses
SIGNALLED = 128  # and what it adds to a signal's number
_NAMES = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM"
LINUX_SIGNALS = {number: f"SIG{name}" for number, name in enumerate(_NAMES.split(), start=1)}  # ours may differ


def start_server(
    connection: SshConnection | Shell,
    settings: Mapping[str, Any],
    *,
    python: str = "python3",
    deadline: float,
    on_progress: Progress | None = None,
    source: Path | None = None,
    launch: str | None = None,
    launch_host: str | None = None,
) -> ServerHandle:
    """Start a task server on the far end and return once it listens.

    Args:
        connection: logged in.
        settings: what the far end's settings.json holds; a random `token` and `listen` on any loopback
            port are added when missing.
        python: the interpreter's command line there, such as "~/isaaclab/isaaclab.sh -p" or
            ". ./env.sh && python".
        deadline: absolute `time.monotonic()` [s].
        on_progress: called with a phase and a detail: "uploading" and how much of how much, "starting" and, about
            once a second, the last line of the far end's log.
        source: the package folder to ship; default this package.
        launch: a prefix behind which it is started; see `LaunchedShell`.
        launch_host: the address by which the host reaches it there; it listens on that, which it refuses beyond
            loopback unless the settings have `insecure`: who is on that network can see and change the data.

    Raises:
        StartError: the interpreter is missing or too old, the server died or cannot listen, or the host
            takes no files; `log_tail` has its last words, `kind` why it refused ("port-in-use",
            "python-too-old", …), `exit_status` or `signal` how it ended. Nothing runs on.
        DeadlineExceeded: it was not ready in time; it was ended.
        ConnectionLost: the link broke; the far end ends what it started within a second or two.
    """
    settings = {"token": secrets.token_hex(32), "listen": {"tcp": ["127.0.0.1", 0]}, **settings}
    if launch is not None and isinstance(connection, SshConnection):
        connection = LaunchedShell(connection, launch, launch_host)
    shell = as_shell(connection)
    if isinstance(shell, LaunchedShell) and shell.launch_host is not None:
        settings["listen"] = {"tcp": [shell.launch_host, settings["listen"]["tcp"][1]]}
    shell.enter(deadline, on_progress)
    starter = _Starter(shell, settings, python, deadline, on_progress)
    digest = pack_far_end(source).digest
    try:
        handle = starter.try_start(digest)
        if handle is None:
            ship_far_end(shell, deadline, source=source, on_progress=on_progress)
            handle = starter.try_start(digest)
    except BaseException:
        shell.close()
        raise
    if handle is None:
        raise StartError(f"the far end's files vanished from {shell.name} while it was started; try again")
    return handle


@dataclass
class _Starter:
    shell: Shell
    settings: Mapping[str, Any]
    python: str
    deadline: float
    on_progress: Progress | None
    folder: str = ""  # of the session, as soon as it has been started
    may_run: bool = False  # something of ours, on the far end
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    last_line: str = ""

    def try_start(self, digest: str) -> ServerHandle | None:
        """The ready server; None when the far end's files are not there."""
        data = json.dumps(dict(self.settings)).encode()
        variables = {
            "digest": digest,
            "session": self.session,
            "python": self.python.strip(),  # a line end would end the command
            "size": len(data),
        }
        began = time.monotonic()
        self.may_run = True
        try:
            with self.shell.start(START, variables, data, self.deadline) as running:
                ready = self._follow(running)
                self._read_rest(running)
            return None if ready is None else self._handle(ready)
        except DeadlineExceeded as error:
            self._end_started()
            raise DeadlineExceeded(
                f"starting on {self.shell.name}: not ready after "
                f"{time.monotonic() - began:.0f} s; last log line: {self.last_line or '(none)'}"
            ) from error
        except BaseException:
            self._end_started()
            raise

    def _follow(self, running: Running) -> Mapping[str, Any] | None:
        """What the ready server says; None when the far end's files are not there."""
        while (line := running.read_line(self.deadline)) is not None:
            word, rest = parse_answer(line) or ("", "")
            if word == "absent":
                self.may_run = False
                return None
            if word in FAILURES:
                self.may_run = False
                raise failure(self.shell, word, rest)
            if word == "started":
                self.folder = rest.split(" ", 2)[2]
            elif word == "progress":
                self._report(rest)
            elif word == "ready" and self.folder:
                return dict(json.loads(rest))
            elif word in ("refused", "died"):
                raise self._ended(word, rest, self._read_log(running))
        raise no_answer(self.shell, *running.ending(self.deadline))

    def _read_rest(self, running: Running) -> list[str]:
        lines = []
        while (line := running.read_line(self.deadline)) is not None:
            lines.append(line)
        return lines

    def _read_log(self, running: Running) -> str:
        _, _, log = "\n".join(self._read_rest(running)).partition("@remote-env log\n")
        return clean(log).strip("\n")

    def _report(self, line: str) -> None:
        self.last_line = last_line(line) or self.last_line
        if self.on_progress is not None:
            self.on_progress("starting", self.last_line)

    def _handle(self, ready: Mapping[str, Any]) -> ServerHandle:
        pid, start_time, port = int(ready["pid"]), str(ready["start_time"]), int(ready["listen"]["tcp"][1])
        return ServerHandle(
            connection=self.shell.connection if isinstance(self.shell, SshShell) else self.shell,
            session_folder=self.folder,
            pid=pid,
            start_time=start_time,
            port=port,
            token=str(self.settings["token"]),
            python=str(ready.get("python", "")),
            dial=self.shell.dialer(pid, start_time, port, self.deadline),
        )

    def _ended(self, word: str, detail: str, log: str) -> StartError:
        self.may_run = False  # the script has ended it and removed its folder
        if word == "refused":
            return _refused(self.shell.name, json.loads(detail), log)
        if detail == "unknown":
            return _outlived(self.shell.name, self.python, log)
        return _died(self.shell.name, self.python, int(detail), log)

    def _end_started(self) -> None:
        """Best effort: the far end's own script ends what it started once its client is gone.

        Not so one that had already said that the server is ready.
        """
        if not (self.may_run and self.shell.is_reachable):
            return
        with contextlib.suppress(RemoteEnvError):
            stop_start(self.shell, self.session, time.monotonic() + CLEAN_UP_S)


def _refused(host: str, failed: Mapping[str, str], log: str) -> StartError:
    is_told = "pass python=" in failed["message"]
    hint = "; pass python=…" if failed["kind"] == "python-too-old" and not is_told else ""
    return StartError(
        f"the task server on {host} did not start: {failed['message']}{hint}",
        log_tail=log,
        kind=failed["kind"],
        phase="starting",
    )


def _outlived(host: str, python: str, log: str) -> StartError:
    """The error for a far end whose Python ended while the command line around it ran on."""
    return StartError(
        f"the task server on {host} ended while it started, and what {python!r} runs beside it did not; that was "
        f"ended too. Last log lines:\n{log.strip()[-1500:] or '(none)'}",
        log_tail=log,
        phase="starting",
    )


def _died(host: str, python: str, status: int, log: str) -> StartError:
    """The error for a far end whose command ended with this status of a shell."""
    name = LINUX_SIGNALS.get(status - SIGNALLED)
    how = {"log_tail": log, "phase": "starting", "signal": name, "exit_status": None if name else status}
    if status in (NOT_FOUND, NOT_EXECUTABLE):
        what = "was not found" if status == NOT_FOUND else "cannot be executed"
        return StartError(
            f"{python} {what} on {host}; pass python=… (a command line there). It said: {log.strip()[-300:]}", **how
        )
    ended = f"killed by signal {status - SIGNALLED} ({name})" if name else f"exit status {status}"
    return StartError(
        f"the task server on {host} ended while it started: {ended}; last log lines:\n"
        f"{log.strip()[-1500:] or '(none)'}\nIs {python!r} a Python of 3.10 or later?",
        **how,
    )
