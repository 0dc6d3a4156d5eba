"""What runs our programs (`programs.py`): the shell of a login, or one behind a `launch=` prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from remote_env.transport import Buffer, Transport

Sent = Callable[[int], None]  # told how many bytes have gone out
Progress = Callable[[str, str], None]  # told a phase and a detail
Dial = Callable[[float], Transport]


class Command(Protocol):
    """A command whose input takes bytes and whose output gives them: a `RunningCommand`, or one through a relay."""

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """See `Transport.send_all`."""

    def finish_sending(self, deadline: float) -> None:
        """Tell it that no more bytes will come."""

    def read_some(self, deadline: float) -> bytes:
        """Whatever has come; b"" at its end."""

    def close(self) -> None:
        """Let go of it."""


class Running(Protocol):
    """A program that runs; a context manager that lets go of it."""

    def __enter__(self) -> Running: ...

    def __exit__(self, *_: object) -> None: ...

    def read_line(self, deadline: float) -> str | None:
        """The next line that it says, None when it has ended.

        Raises:
            DeadlineExceeded: it said nothing in time.
            ConnectionLost: the link to it broke.
        """

    def ending(self, deadline: float) -> tuple[int, str]:
        """The exit status of a program that has ended, -1 when unknown, and what it said on standard error."""


class Shell(Protocol):
    """A shell that runs our programs.

    Attributes:
        name: the host, for messages.
    """

    name: str

    @property
    def is_reachable(self) -> bool:
        """Whether programs can be tried, without a new login."""

    def enter(self, deadline: float, on_progress: Progress | None = None) -> None:
        """Have it run.

        Args:
            deadline: absolute `time.monotonic()` [s].
            on_progress: called with "starting" and what is said while it lets us wait.

        Raises:
            StartError: it cannot be had; the message has what was said.
            DeadlineExceeded, ConnectionLost: as `SshConnection.start_command`.
        """

    def start(
        self, program: str, variables: Mapping[str, object], data: bytes, deadline: float, sent: Sent | None = None
    ) -> Running:
        """Start `program` with `variables` set and `data` as its input.

        Args:
            program: one of `programs.py`, or written like them.
            variables: by name.
            data: it takes all of it.
            deadline: absolute `time.monotonic()` [s].
            sent: told how many bytes of `data` have gone out.

        Raises:
            StartError: the shell itself cannot be had.
            DeadlineExceeded, ConnectionLost: as `SshConnection.start_command`.
        """

    def revive(self, deadline: float) -> None:
        """Make sure that programs can be run: log in anew when the login has ended or does not answer.

        Raises:
            ConnectError, HostKeyError, AuthError: a new login failed.
            DeadlineExceeded, ConnectionLost: as `SshConnection.run`.
        """

    def dialer(self, pid: int, start_time: str, port: int, deadline: float) -> Dial | None:
        """How a server that listens on a port beside this shell is reached; None: like a port of the login's host.

        Args:
            pid: the server's process.
            start_time: when it started.
            port: where it listens.
            deadline: for trying the ways [s].

        Raises:
            StartError: there is no way.
            DeadlineExceeded, ConnectionLost: as `start`.
        """

    def close(self) -> None:
        """Let go of it; servers go on where that lets them. Never raises, and may be called again."""
