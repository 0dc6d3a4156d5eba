"""Servers on this machine, and at a TCP address where one listens already."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remote_env.env.embedded import EmbeddedServer, StandingServer
from remote_env.env.processes import PS, Processes, read_processes
from remote_env.env.records import cache_folder, list_local_records, read_registered_token, stop_local
from remote_env.env.server import STOP_TIMEOUT_S, Progress, Server, ServerRecord
from remote_env.errors import ConfigError, Unsupported
from remote_env.session import Dial
from remote_env.transport import DEFAULT_SOCKET_OPTIONS, SocketOptions, connect_tcp, connect_unix

TAIL_BYTES = 1 << 20


class LocalPlace:
    """This machine.

    Args:
        python: the interpreter that serves; None for the client's own.
        sockets: how its connections are used.
        token: for servers found by port, when not in this user's registry.
    """

    name = "local"
    is_remote = False

    def __init__(
        self, *, python: str | None = None, token: str | None = None, sockets: SocketOptions = DEFAULT_SOCKET_OPTIONS
    ) -> None:
        self._python = python or sys.executable
        self._sockets = sockets
        self._token = token

    def find(self, port: int, deadline: float) -> Server | None:
        """See `Place.find`."""
        if not _listens("127.0.0.1", port, deadline):
            return None
        token = self._token or read_registered_token(port)
        dial = self._dial_tcp(port)
        return Server(dial, token, started=False, where=f"127.0.0.1:{port}", port=port, redial=dial)

    def _dial_tcp(self, port: int, host: str = "127.0.0.1") -> Dial:
        return lambda deadline: connect_tcp(host, port, deadline, self._sockets)

    def start(
        self, settings: dict[str, Any], deadline: float, on_progress: Progress, *, outlives: bool = False
    ) -> Server:
        """See `Place.start`."""
        on_progress("starting", "the embedded server")
        embedded = (StandingServer if outlives else EmbeddedServer)(self._python, settings)
        try:
            ready = embedded.wait_ready(deadline, on_progress)
        except BaseException:
            embedded.stop(time.monotonic() + STOP_TIMEOUT_S)
            raise
        dial, where = self._dial_listener(ready["listen"])
        return Server(
            dial,
            settings["token"],
            True,
            where,
            port=int(ready["listen"]["tcp"][1]) if "tcp" in ready["listen"] else 0,
            redial=dial,
            stop=embedded.stop,
            log_tail=embedded.log_tail,
            let_go=embedded.let_go,
            can_stay=outlives,
        )

    def _dial_listener(self, listen: dict[str, Any]) -> tuple[Dial, str]:
        if "unix" in listen:
            path = str(listen["unix"])
            return (lambda until: connect_unix(path, until, self._sockets)), path
        host, port = listen["tcp"]
        return self._dial_tcp(port, host), f"{host}:{port}"

    def send_folder(self, folder: Path, deadline: float) -> str:  # noqa: ARG002  nothing to wait for
        """See `Place.send_folder`; here it is where it is."""
        return str(folder)

    def send_bundle(self, paths: Sequence[Path], deadline: float) -> str:  # noqa: ARG002  nothing to wait for
        """See `Place.send_bundle`; here links do, unless all of them lie in one folder already."""
        if len({path.parent for path in paths}) == 1:
            return str(paths[0].parent)
        digest = hashlib.sha256("\0".join(sorted(map(str, paths))).encode()).hexdigest()[:32]
        folder = cache_folder() / "assets" / f"links-{digest}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in paths:
            if not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
        return str(folder)

    def list(self, deadline: float) -> list[ServerRecord]:  # noqa: ARG002  nothing to wait for
        """See `Place.list`."""
        return list_local_records()

    def attach(self, record: ServerRecord, deadline: float) -> Server:  # noqa: ARG002  nothing to wait for
        """See `Place.attach`."""
        dial = self._dial_tcp(record.port)
        where = f"127.0.0.1:{record.port}"
        return Server(dial, record.token, started=False, where=where, port=record.port, redial=dial)

    def stop(self, record: ServerRecord, deadline: float) -> None:
        """See `Place.stop`."""
        stop_local(record, deadline)

    def read_tail(self, path: str, lines: int, deadline: float) -> str:  # noqa: ARG002  nothing to wait for
        """See `Place.read_tail`."""
        try:
            with Path(path).expanduser().open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                return "\n".join(deque(file.read().decode(errors="replace").splitlines(), maxlen=lines))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read on this machine: {error.strerror or error}") from error

    def list_processes(self, name: str, deadline: float) -> Processes:
        """See `Place.list_processes`."""
        done = subprocess.run(  # noqa: S603  nothing of the caller's is on it
            [*PS, str(os.getuid())],
            capture_output=True,
            timeout=max(deadline - time.monotonic(), 0.1),
            check=False,
        )
        return read_processes(done.stdout.decode(errors="replace"), name)

    def close(self) -> None:
        """See `Place.close`."""


class AddressPlace(LocalPlace):
    """A server that listens at a TCP address already; nothing is started there."""

    def __init__(
        self, host: str, port: int, *, token: str | None = None, sockets: SocketOptions = DEFAULT_SOCKET_OPTIONS
    ) -> None:
        super().__init__(token=token, sockets=sockets)
        self.name = f"tcp://{host}:{port}"
        self._address = host, port

    def find(self, port: int, deadline: float) -> Server:
        """See `Place.find`; ConnectError when nothing listens."""
        host, port = self._address
        dial = self._dial_tcp(port, host)
        dial(deadline).close()
        token = self._token or read_registered_token(port)
        return Server(dial, token, started=False, where=f"{host}:{port}", port=port, redial=dial)

    def list(self, deadline: float) -> list[ServerRecord]:  # noqa: ARG002  there is nothing to ask
        """Nothing can be asked of the machine behind an address: Unsupported."""
        raise self._no_machine("its servers cannot be listed")

    def read_tail(self, path: str, lines: int, deadline: float) -> str:  # noqa: ARG002  as above
        """As `list`."""
        raise self._no_machine(f"{path} cannot be read there")

    def list_processes(self, name: str, deadline: float) -> Processes:  # noqa: ARG002  as above
        """As `list`."""
        raise self._no_machine(f"processes named {name!r} cannot be listed")

    def _no_machine(self, what: str) -> Unsupported:
        return Unsupported(f"{self.name} is an address, not a login: {what}; use host='user@box'")


def _listens(host: str, port: int, deadline: float) -> bool:
    with socket.socket() as sock:
        sock.settimeout(max(deadline - time.monotonic(), 0.1))
        return sock.connect_ex((host, port)) == 0
