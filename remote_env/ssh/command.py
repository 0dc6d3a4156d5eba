"""A command on the remote machine: its streams while it runs, and what it left behind."""

from __future__ import annotations

import time
from dataclasses import dataclass

from remote_env.errors import ConnectionLost, DeadlineExceeded
from remote_env.ssh.channel import ChannelTransport

COMMAND_WINDOW_BYTES = 64 * 2**20  # a command may print so much before we have sent all of its input


@dataclass(frozen=True)
class CompletedCommand:
    """What a remote command left behind.

    Attributes:
        returncode: its exit status, -1 when a signal ended it.
        stdout: everything it wrote there.
        stderr: everything it wrote there.
    """

    returncode: int
    stdout: bytes
    stderr: bytes


class RunningCommand(ChannelTransport):
    """A remote command whose output can be read as it comes; a context manager that closes its channel."""

    def __enter__(self) -> RunningCommand:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send_input(self, data: bytes, deadline: float) -> None:
        """Send all of `data` and its end; a command that stops reading earlier is no error."""
        try:
            if data:
                self.send_all([data], deadline)
            self.finish_sending(deadline)
        except ConnectionLost:
            if not self._channel.eof_received:
                raise

    def take_stderr(self) -> bytes:
        """What has come on standard error since the last call; does not wait."""
        chunks = []
        while self._channel.recv_stderr_ready():
            chunks.append(self._channel.recv_stderr(COMMAND_WINDOW_BYTES))
        return b"".join(chunks)

    def finish(self, stdout: bytes, deadline: float) -> CompletedCommand:
        """The result of the ended command.

        Raises:
            DeadlineExceeded: it has closed its output and still runs.
        """
        channel = self._channel
        if not channel.status_event.wait(max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded("the command closed its output and was still running at the deadline")
        return CompletedCommand(channel.exit_status, stdout, self.take_stderr())
