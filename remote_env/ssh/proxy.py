"""The way to a host through the process of a ProxyCommand."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from typing import IO, cast

from remote_env.errors import ConnectError, Unsupported
from remote_env.ssh.ways import SocketWay

GRACE_S = 1.0  # it has so long to end after SIGTERM
LAST_WORDS_S = 0.2  # a message about a broken way waits so long for how it ended
STDERR_LINES, LINE_BYTES = 5, 500  # of what it says, in an error


class ProxyWay(SocketWay):
    """A proxy command's process, whose standard input and output are one socket; it ends with the way.

    Args:
        command: a shell command, its tokens replaced.

    Raises:
        ConnectError: it cannot be started.
        Unsupported: not on this system.
    """

    def __init__(self, command: str) -> None:
        if os.name == "nt":
            raise Unsupported("ProxyCommand does not run on Windows; use ProxyJump")
        self._command = command
        self._reading = threading.Lock()
        self._lines: collections.deque[bytes] = collections.deque([b""], STDERR_LINES + 1)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # A session of its own: no terminal to ask at, no Ctrl-C that is meant for us, and one group to end.
                self._process = subprocess.Popen(  # noqa: S603  # what the user's configuration says
                    [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"],  # as OpenSSH does
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError):
                    raise ConnectError(f"the ProxyCommand {command!r} cannot be started: {error}") from error
                raise
        self._stderr = cast("IO[bytes]", self._process.stderr)
        os.set_blocking(self._stderr.fileno(), False)
        super().__init__(ours)

    def poll(self) -> None:
        """Take what the process has written to its standard error, so that it never blocks there."""
        if self._reading.acquire(blocking=False):
            try:
                self._read_stderr()
            finally:
                self._reading.release()

    def _read_stderr(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while not self._stderr.closed and (data := os.read(self._stderr.fileno(), 65536)):
                first, *more = data.split(b"\n")
                self._lines[-1] = (self._lines[-1] + first)[-LINE_BYTES:]
                self._lines.extend(line[-LINE_BYTES:] for line in more)

    def trouble(self) -> str:
        """How the process ended and its last lines; "" when it ended well and said nothing."""
        self._wait(LAST_WORDS_S)
        with self._reading:
            self._read_stderr()
        status = self._status()
        said = b" | ".join(line.strip() for line in self._lines if line.strip()).decode(errors="replace")
        if not status and not said:
            return ""
        how = "" if status is None else f" ended with status {status}"
        return f"the ProxyCommand {self._command!r}{how}" + (f"; it said: {said}" if said else "")

    def close(self) -> None:
        """See `Way.close`; whatever the command has started in its process group ends too."""
        super().close()
        self._signal_group(signal.SIGTERM)
        self._wait(GRACE_S)
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        with self._reading:
            self._read_stderr()
            self._stderr.close()

    def _wait(self, timeout_s: float) -> None:
        """Wait until the process has ended, or not longer than `timeout_s` [s]."""
        deadline = time.monotonic() + timeout_s
        while self._status() is None and time.monotonic() < deadline:
            self.poll()
            time.sleep(0.005)

    def _status(self) -> int | None:
        """Its exit status, None while it runs; it is not reaped, so that the group's number stays its own."""
        if self._process.returncode is not None or not hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            return self._process.poll()
        try:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # another thread is just closing the way
            return self._process.returncode
        if ended is None:
            return None
        return int(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def abandon(self) -> None:
        """See `Way.abandon`."""
        super().abandon()
        self._stderr.close()
        self._process.returncode = 0  # it is not this process's child: nothing to wait for or to warn of
