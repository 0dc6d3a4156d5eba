"""Start a real policy server in a process of its own, with one of the policies for tests as its model."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leak_check import wait_until
from server_process import read_to_end

ROOT = Path(__file__).resolve().parents[2]
# The program itself; only the model comes from elsewhere: -m NAME is make_NAME of policies_for_tests.
_DRIVER = """
import functools, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({max_files}, {max_files}))
sys.modules.update(dict.fromkeys({missing!r}))
sys.path[:0] = [{root!r}, {tests!r}]
import policies_for_tests
from remote_env.policy.server import program
program.Listener = functools.partial(program.Listener, first_bytes_timeout_s={first_bytes_timeout_s})
program.CLOSE_TIMEOUT_S = {close_timeout_s}
sys.exit(program.main(load=lambda name, **options: getattr(policies_for_tests, "make_" + name)(**options)))
"""
START_TIMEOUT_S = 20.0


class PolicyServerProcess:
    """servers/start_policy_server.py with a policy of `policies_for_tests`.

    Args:
        model: its factory's name without make_.
        flags: of the program; without a --listen it takes any free port.
        first_bytes_timeout_s: how long a connection may stay silent.
        close_timeout_s: how long the end may wait for the model.
        missing: packages that are not installed there.
        max_files: descriptors that it may have.
    """

    def __init__(
        self,
        model: str,
        *flags: str,
        first_bytes_timeout_s: float = 10.0,
        close_timeout_s: float = 5.0,
        missing: Sequence[str] = (),
        max_files: int = 1024,
    ) -> None:
        driver = _DRIVER.format(
            root=str(ROOT),
            tests=str(ROOT / "tests" / "policy"),
            first_bytes_timeout_s=first_bytes_timeout_s,
            close_timeout_s=close_timeout_s,
            missing=list(missing),
            max_files=max_files,
        )
        places = () if "--listen" in flags else ("-p", "0")
        handle, path = tempfile.mkstemp(suffix=".log")
        self._log = Path(path)
        with os.fdopen(handle, "wb") as log:
            command = [sys.executable, "-W", "error", "-c", driver, "-m", model, *places, *flags]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        self._last_log = ""

    def read_log(self) -> str:
        """All that it has written; what was last known once it is stopped."""
        if self._log.exists():
            self._last_log = self._log.read_text()
        return self._last_log

    def wait_for(self, text: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """The log once it holds `text`; fails when the server ends before."""
        wait_until(
            lambda: text in self.read_log() or self.process.poll() is not None, f"the log has {text!r}", timeout_s
        )
        assert text in self.read_log(), self.read_log()
        return self.read_log()

    def wait_ready(self) -> PolicyServerProcess:
        """Return once it takes clients."""
        self.wait_for("waiting for clients")
        return self

    @property
    def ports(self) -> list[int]:
        """Where it listens for clients, in the order of its flags."""
        return [int(port) for port in re.findall(r"listening on \S+:(\d+) \(", self.read_log())]

    @property
    def port(self) -> int:
        return self.ports[0]

    def connect(self, port: int | None = None) -> socket.socket:
        """A bare connection with a time-out."""
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=8)

    def http(self, path: str, method: str = "GET", port: int | None = None) -> str:
        """The whole response to one request."""
        with self.connect(port) as sock:
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return read_to_end(sock).decode()

    def wait_exit(self, timeout_s: float = 15.0) -> int:
        """Its exit status."""
        status = self.process.wait(timeout_s)
        self.read_log()
        return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; its exit status."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(number)
            return self.wait_exit()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.read_log()
            self._log.unlink(missing_ok=True)


@contextmanager
def policy_server(model: str, *flags: str, **options: Any) -> Iterator[PolicyServerProcess]:
    """A policy server that takes clients, and is stopped at the end."""
    server = PolicyServerProcess(model, *flags, **options)
    try:
        yield server.wait_ready()
    finally:
        server.stop()
