"""A server that sends everything back, and the places that dial it through a real sshd by every kind of tunnel."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from ssh_server import SshServer

from remote_env.env.places import PlaceOptions, make_connection
from remote_env.env.server import Server, ServerRecord
from remote_env.env.ssh_place import SshPlace
from remote_env.errors import RemoteEnvError
from remote_env.transport import Transport


class Echo:
    """A TCP server that sends everything back."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionResetError):
            while data := connection.recv(2**18):
                connection.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Waiting:
    """A thread that waits in the receive of a stream; `error` is what it raised, `after_s` how long it waited [s]."""

    def __init__(self, stream: Transport) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self.error: RemoteEnvError | None = None
        self.after_s = 0.0
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self._stream.recv_exactly_into(memoryview(bytearray(1)), soon(60.0))
        except RemoteEnvError as error:
            self.error = error
        self.after_s = time.monotonic() - self._began

    def end(self) -> str:
        """Wait for it to end; what it raised."""
        self._thread.join(30.0)
        assert self.error is not None, "it still waits"
        return f"{type(self.error).__name__}: {self.error}"


def soon(seconds: float = 20.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def options(server: SshServer, kind: str, **more: Any) -> PlaceOptions:
    """How a place on `server` is reached by this kind of tunnel."""
    login = {"identity_file": str(server.identity_file), "known_hosts_file": str(server.known_hosts)}
    return PlaceOptions(**{"tunnel": kind, "ssh_config_file": str(server.config), **login, **more})


@contextlib.contextmanager
def place_on(server: SshServer, kind: str, host: str | None = None, **more: Any) -> Iterator[SshPlace]:
    """A place on `server`, logged in; closed at the end."""
    how = options(server, kind, **more)
    place = SshPlace(make_connection(host or server.target, how), how)
    try:
        place.list(soon())  # logs in
        yield place
    finally:
        place.close()


def server_at(place: SshPlace, port: int) -> Server:
    """What listens on a port there, as a server to dial."""
    record = ServerRecord(id="test", port=port, pid=1, start_time="1", token="-", session_folder="/")
    return place.attach(record, soon())


def talk(stream: Transport, data: bytes = b"x" * 200, seconds: float = 20.0) -> None:
    """A round trip."""
    stream.send_all([data], soon(seconds))
    back = bytearray(len(data))
    stream.recv_exactly_into(memoryview(back), soon(seconds))
    assert back == data


def logins(server: SshServer) -> int:
    """How many logins the server has let in."""
    return server.log().count("Accepted publickey")
