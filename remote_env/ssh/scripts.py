"""Running one of our programs (`programs.py`) on the far end, and what its answers mean.

A program and its variables arrive on standard input, before its data: nothing but `dd` and a number stands on
a command line, where other users could read it, and no login shell (fish, csh) has to parse a script.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from remote_env.errors import ConnectionLost, StartError
from remote_env.ssh.command import RunningCommand
from remote_env.ssh.connection import SshConnection
from remote_env.ssh.programs import DATA_FOLLOWS, MARK, PRELUDE
from remote_env.ssh.shell import Command, Progress, Running, Sent, Shell

HEAD, TAIL = "# program of remote-env", "# end of program"  # which show that it has arrived whole
EATEN = (
    "our script did not arrive whole: a start-up file there (~/.bashrc, ~/.zshenv) or a forced command reads "
    "standard input; let it do so in interactive shells only, or from /dev/null"
)
FAILURES = ("failed", "refusal")
PIECE_BYTES = 256 * 2**10  # of data, between two reports of how much was sent


class Answer(NamedTuple):
    """What a program said: the word and the rest of its first marked line, and all lines after it."""

    word: str
    rest: str
    following: str


class SshShell:
    """The shell of a login. See `Shell`."""

    def __init__(self, connection: SshConnection) -> None:
        self.connection = connection
        self.name = connection.login.host

    @property
    def is_reachable(self) -> bool:
        """See `Shell.is_reachable`."""
        return self.connection.is_open

    def enter(self, deadline: float, on_progress: Progress | None = None) -> None:
        """See `Shell.enter`; there is nothing to do."""

    def start(
        self, program: str, variables: Mapping[str, object], data: bytes, deadline: float, sent: Sent | None = None
    ) -> RunningLines:
        """See `Shell.start`."""
        source = compose(program, variables, DATA_FOLLOWS)
        running = RunningLines(self.connection.start_command(read_and_run(source), stdin=None, deadline=deadline))
        try:
            running.feed(source, data, deadline, sent)
        except BaseException:
            running.close()
            raise
        return running

    def revive(self, deadline: float) -> None:
        """See `Shell.revive`."""
        self.connection.revive(deadline, trust_s=0.0)

    def dialer(self, pid: int, start_time: str, port: int, deadline: float) -> None:
        """See `Shell.dialer`."""

    def close(self) -> None:
        """See `Shell.close`; the login is the caller's."""


class RunningLines:
    """A command, line by line. See `Running`."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._lines = Lines()

    def __enter__(self) -> RunningLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its channel."""
        self._command.close()

    def feed(self, source: bytes, data: bytes, deadline: float, sent: Sent | None) -> None:
        """Send the program, its data and the end."""
        with contextlib.suppress(ConnectionLost):  # when it ended early, its last words say why
            self._command.send_all([source], deadline)
            for piece in pieces(data, sent):
                self._command.send_all([piece], deadline)
            self._command.finish_sending(deadline)

    def read_line(self, deadline: float) -> str | None:
        """See `Running.read_line`."""
        while (line := self._lines.take()) is None:
            data = self._command.read_some(deadline)
            if not data:
                return self._lines.take_rest()
            self._lines.add(data)
        return line

    def ending(self, deadline: float) -> tuple[int, str]:
        """See `Running.ending`."""
        if not isinstance(self._command, RunningCommand):
            return -1, ""
        done = self._command.finish(b"", deadline)
        return done.returncode, done.stderr.decode(errors="replace")


class Lines:
    """Bytes as they come, cut into lines."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def add(self, data: bytes) -> None:
        """Append what has come."""
        self._pending += data

    def take(self) -> str | None:
        """The next whole line; None when there is none yet."""
        end = self._pending.find(b"\n")
        if end < 0:
            return None
        line = self._pending[:end].decode(errors="replace")
        del self._pending[: end + 1]
        return line

    def take_rest(self) -> str | None:
        """At the end: a last line without its end, else None."""
        rest = self.take_bytes()
        return rest.decode(errors="replace") if rest else None

    def take_bytes(self) -> bytes:
        """All that has come and is no line yet."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest


def pieces(data: bytes, sent: Sent | None) -> Iterator[memoryview]:
    """`data` in pieces, `sent` being told of each that was taken."""
    for start in range(0, len(data), PIECE_BYTES):
        piece = memoryview(data)[start : start + PIECE_BYTES]
        yield piece
        if sent is not None:
            sent(start + len(piece))


def compose(program: str, variables: Mapping[str, object], data: str) -> bytes:
    """The whole source of a program."""
    settings = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    return "".join((HEAD, "\n", settings, PRELUDE, data, program, "\n", TAIL)).encode()


def read_and_run(source: bytes) -> str:
    """The command line that takes a program of this size from its standard input and runs it, when it is whole."""
    take = f"program=$(dd bs=1 count={len(source)} 2>/dev/null)"
    check = (
        f'case $program in "{HEAD}"*"{TAIL}") eval "$program";; *) printf "\\n{MARK} refusal %s\\n" "{EATEN}";; esac'
    )
    return f"exec sh -c '{take}; {check}'"


def as_shell(where: SshConnection | Shell) -> Shell:
    """The login's own shell, or `where` itself when it is one."""
    return SshShell(where) if isinstance(where, SshConnection) else where


def run_script(
    where: SshConnection | Shell,
    program: str,
    variables: Mapping[str, object],
    *,
    data: bytes = b"",
    deadline: float,
    sent: Sent | None = None,
) -> Answer:
    """Run `program` to its end and return its answer.

    Raises:
        StartError: it could not do its work; the message says what the host said.
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`.
    """
    shell = as_shell(where)
    with shell.start(program, variables, data, deadline, sent) as running:
        word, rest = _first_answer(shell, running, deadline)
        following = []
        while (line := running.read_line(deadline)) is not None:  # to its end, also when it failed: it cleans up
            following.append(line)
    if word in FAILURES:
        raise failure(shell, word, rest)
    return Answer(word, rest, "".join(f"{line}\n" for line in following))


def _first_answer(shell: Shell, running: Running, deadline: float) -> tuple[str, str]:
    while (line := running.read_line(deadline)) is not None:
        if answer := parse_answer(line):
            return answer
    raise no_answer(shell, *running.ending(deadline))


def parse_answer(line: str) -> tuple[str, str] | None:
    """The word and the rest of a marked line; None for another."""
    if not line.startswith(MARK + " "):
        return None
    word, _, rest = line[len(MARK) + 1 :].partition(" ")
    return word, rest


def no_answer(shell: Shell, returncode: int, stderr: str) -> StartError:
    """The error for a program that said nothing."""
    said = stderr.strip()[-500:] or "no message"
    return StartError(
        f"{shell.name} did not run our shell script (exit status {returncode}): {said}. It must be a Linux machine "
        "with a POSIX sh that accepts commands over SSH"
    )


def failure(shell: Shell, word: str, why: str) -> StartError:
    """The error for one of the answers in `FAILURES`."""
    if word == "refusal":
        return StartError(f"{shell.name}: {why}")
    return StartError(
        f"{shell.name} cannot take the far end's files: {why.strip() or 'no reason given'}. They go to "
        "${XDG_CACHE_HOME:-~/.cache}/remote-env there: free space or make that folder writable, or have ~/.bashrc "
        "there set XDG_CACHE_HOME to a folder that is"
    )
