"""A POSIX shell on the machine that is looked at, whose output is read line by line: here, or over a login."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Protocol

from remote_env.errors import DeadlineExceeded

READ_BYTES = 65536


class Running(Protocol):
    """A program that runs; a context manager that ends it, or lets go of it where it is another machine's."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def read_line(self, deadline: float) -> str | None:
        """The next line that it writes, None when it has ended.

        Raises:
            DeadlineExceeded: it wrote nothing in time.
            ConnectionLost: the link to it broke.
        """

    def ending(self, deadline: float) -> tuple[int, str]:
        """The exit status of a program that has ended, and what it said on standard error."""


class Shell(Protocol):
    """Something that runs programs for `sh`."""

    def start(self, program: str, variables: Mapping[str, str], deadline: float) -> Running:
        """Start a program with `variables` set; raises as `SshConnection.start_command`."""


# program. It ends, with all that it started, when nobody is left to read it: our end of its input closes then.
_WATCHED = r"""
exec 3<&0
session=
command -v setsid >/dev/null 2>&1 && session=setsid
$session sh -c "$program" </dev/null 3<&- &
job=$!
(while read -r _ <&3; do :; done; kill -s KILL -- "-$job" || kill -s KILL "$job") >/dev/null 2>&1 &
watch=$!
wait "$job"
status=$?
kill -s KILL "$watch" 2>/dev/null
exit "$status"
"""


def _compose(program: str, variables: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()) + program


class FarShell:
    """The shell of a login; the program arrives on its standard input, so any login shell will do.

    Args:
        connection: a `remote_env.ssh.SshConnection`, logged in.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def start(self, program: str, variables: Mapping[str, str], deadline: float) -> Running:
        """See `Shell.start`."""
        from remote_env.ssh.scripts import RunningLines

        source = _compose(_WATCHED, {"program": _compose(program, variables)}).encode()
        command = self._connection.start_command("exec sh -s", stdin=None, deadline=deadline)
        try:
            command.send_all([source], deadline)
        except BaseException:
            command.close()
            raise
        return RunningLines(command)


class OwnShell:
    """This machine's shell."""

    def start(self, program: str, variables: Mapping[str, str], deadline: float) -> Running:  # noqa: ARG002
        """See `Shell.start`."""
        return _OwnProcess(_compose(program, variables))


class _OwnProcess:
    def __init__(self, source: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603  what the caller wants run
            ["/bin/sh", "-c", source],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self._pending = b""

    def __enter__(self) -> _OwnProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None  # noqa: S101  asked for
        self._process.stdout.close()

    def read_line(self, deadline: float) -> str | None:
        while b"\n" not in self._pending:
            data = self._read(deadline)
            if not data:
                rest, self._pending = self._pending, b""
                return rest.decode(errors="replace") or None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace")

    def _read(self, deadline: float) -> bytes:
        assert self._process.stdout is not None  # noqa: S101  asked for
        readable, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0.0))
        if not readable:
            raise DeadlineExceeded("the program said nothing in time")
        return os.read(self._process.stdout.fileno(), READ_BYTES)

    def ending(self, deadline: float) -> tuple[int, str]:
        try:
            return self._process.wait(max(deadline - time.monotonic(), 0.0)), ""
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded("the program closed its output and runs on") from error
