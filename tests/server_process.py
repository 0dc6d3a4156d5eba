"""Start a real supervisor in a process of its own, and speak to it byte by byte."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leak_check import wait_until

from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, new_token, pack_link, parse_link
from remote_env.protocol.task import TaskSpec
from remote_env.server.folder import record_path
from remote_env.server.process import LAUNCHER

ROOT = Path(__file__).resolve().parents[1]
# As launch.py starts it, without the package's `__init__`, which takes longer to import than all else together.
_DRIVER = """
import sys
sys.path.insert(0, sys.argv[3])
import launch
launch._set_path()
launch._enter_package()
from remote_env.server import supervisor
supervisor.HANDSHAKE_TIMEOUT_S = float(sys.argv[2])
sys.exit(supervisor.main(sys.argv[1]))
"""


class ServerProcess:
    """A supervisor on a free TCP port of loopback, from a session folder of its own.

    Args:
        env: the task, as RemoteEnv's `env=`.
        kwargs: the task's arguments.
        handshake_timeout_s: how long a connection may take to prove itself.
        wrapper: a command line that runs the one behind it.
        pass_fds: descriptors that it inherits.
        settings: what differs from the usual settings.
    """

    def __init__(
        self,
        env: str = "CartPole-v1",
        kwargs: dict[str, Any] | None = None,
        *,
        simulator: str = "gymnasium",
        handshake_timeout_s: float = 10.0,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="remote-env-"))
        self.token = new_token()
        task = TaskSpec(env, kwargs or {}, simulator)
        content = {
            "token": self.token,
            "listen": {"tcp": ["127.0.0.1", 0]},
            "task": task.to_plain(),
            "digest": task.digest,
            "max_sessions": 1,
            "idle_timeout_s": 60.0,
            "python_path": [str(ROOT), str(ROOT / "tests")],
            **settings,
        }
        path = self.folder / "settings.json"
        path.touch(0o600)
        path.write_text(json.dumps(content))
        with (self.folder / "log").open("wb") as log:
            arguments = (str(self.folder), str(handshake_timeout_s), str(LAUNCHER.parent))
            command = [*wrapper, sys.executable, "-c", _DRIVER, *arguments]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, pass_fds=tuple(pass_fds)
            )
        self.log = ""

    def wait_listening(self) -> ServerProcess:
        """Return once it listens; its port is then known."""
        wait_until(lambda: self._read("ready.json") or self.process.poll() is not None, "the server listens")
        self.port = int(json.loads(self._read("ready.json"))["listen"]["tcp"][1])
        return self

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except OSError:
            return ""

    def wait_ready(self) -> ServerProcess:
        """Return once its simulator is ready."""
        wait_until(lambda: self.http("/healthz").startswith("HTTP/1.1 200"), "the simulator is ready", 20)
        return self

    def read_log(self) -> str:
        """What it has written so far; the last known text once its folder is gone."""
        self.log = self._read("log") or self.log
        return self.log

    def open_socket(self) -> socket.socket:
        """A bare connection with a time-out."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=8)

    def http(self, path: str, method: str = "GET") -> str:
        """The whole response to one request."""
        with self.open_socket() as sock:
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return read_to_end(sock).decode()

    def stop(self) -> int:
        """End it as a terminal's Ctrl-C would; its exit status."""
        self.read_log()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(15)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


@contextmanager
def serving(*args: Any, **kwargs: Any) -> Iterator[ServerProcess]:
    """A server that is ready, and is stopped at the end."""
    server = ServerProcess(*args, **kwargs)
    try:
        yield server.wait_listening().wait_ready()
    finally:
        server.stop()


class HandServer:
    """One of our programs in a terminal, on a free port.

    Args:
        arguments: of the command line.
        program: a file of servers/.
        environment: what differs from ours.
    """

    def __init__(self, *arguments: str, program: str = "task_server.py", **environment: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self._is_recorded = program == "task_server.py"
        self.process = subprocess.Popen(
            [sys.executable, f"servers/{program}", "--port", str(self.port), *arguments],
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT / "tests")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> HandServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.output = self.process.communicate(timeout=15)[0]

    def wait_listening(self) -> HandServer:
        """Return once somebody listens at its port; a task server's clients find its token then, too."""

        def answers() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            with socket.socket() as sock:
                is_there = sock.connect_ex(("127.0.0.1", self.port)) == 0
            return is_there and (not self._is_recorded or record_path(self.port).exists())

        wait_until(answers, "the program listens", 20)
        return self


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes; EOFError when the other side closes before."""
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError("the server closed the connection")
        data += chunk
    return data


def read_to_end(sock: socket.socket) -> bytes:
    """Everything until the other side closes; what came before a reset counts."""
    received = b""
    try:
        while chunk := sock.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


class BareClient:
    """A connection on which a test sends what it likes."""

    def __init__(self, server: ServerProcess) -> None:
        self.sock = server.open_socket()
        self._token = server.token

    def __enter__(self) -> BareClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, frame: bytes | bytearray) -> None:
        """Send these bytes."""
        self.sock.sendall(frame)

    def recv(self) -> tuple[frames.Header, dict[str, Any]]:
        """The next link message."""
        header = frames.parse_header(read_exactly(self.sock, frames.HEADER_SIZE))
        return header, parse_link(read_exactly(self.sock, header.body_size))

    def shake_hands(self, role: str = "control", **fields: Any) -> dict[str, Any]:
        """Authenticate; the answer's fields, with its type under "type"."""
        self.handshake = handshake = ClientHandshake(self._token, role, **fields)
        self.send(handshake.hello())
        header, message = self.recv()
        self.send(handshake.answer(header.type, message))
        header, message = self.recv()
        return {**message, "type": header.type}

    def ask(self, kind: int, **fields: Any) -> dict[str, Any]:
        """The answer to a link message; events that come before it are skipped."""
        self.send(pack_link(kind, fields, sequence=7))
        while True:
            header, message = self.recv()
            if header.type == frames.REPLY:
                assert header.sequence == 7
                return message
            assert header.type == frames.EVENT, message

    def wait_event(self, state: str) -> dict[str, Any]:
        """The event that says `state`."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            header, message = self.recv()
            if header.type == frames.EVENT and message["state"] == state:
                return message
        raise AssertionError(f"no event {state!r}")
