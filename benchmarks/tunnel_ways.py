"""What bench_tunnel compares: an answering server, and one client for each way to its bytes."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from remote_env.ssh import SshConnection
from remote_env.ssh.tunnel import open_tunnel

REQUEST_BYTES = 200
DIAL_TIMEOUT_S = 30.0
_SPAWN = multiprocessing.get_context("spawn")

Ask = Callable[[int], None]


def _receive_into(sock: socket.socket, view: memoryview) -> bool:
    while view:
        count = sock.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


def _answer(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = memoryview(bytearray(REQUEST_BYTES))
    replies: dict[int, bytes] = {}
    with contextlib.suppress(ConnectionError):
        while _receive_into(sock, request):
            size = int.from_bytes(request[:4], "big")
            sock.sendall(replies.setdefault(size, bytes(size)))


def _serve(address: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address.send(listener.getsockname()[1])
    while True:
        threading.Thread(target=_answer, args=(listener.accept()[0],), daemon=True).start()


class AnsweringServer:
    """A process that answers each 200-byte request with as many bytes as its first four say.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self) -> None:
        receiver, sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=_serve, args=(sender,), daemon=True)
        self._process.start()
        sender.close()  # so that a server that dies is noticed
        self.port: int = receiver.recv()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()


class RawSocket:
    """A plain socket, as the least that a client in Python can do."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), DIAL_TIMEOUT_S)
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reply = memoryview(bytearray(2_000_000))

    def ask(self, size: int) -> None:
        """One round trip with a reply of `size` bytes."""
        self._sock.sendall(size.to_bytes(4, "big") + bytes(REQUEST_BYTES - 4))
        _receive_into(self._sock, self._reply[:size])

    def close(self) -> None:
        """Close it."""
        self._sock.close()


class PlainForward(RawSocket):
    """The same through `ssh -L` as people start it by hand."""

    def __init__(self, login: list[str], port: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            local = probe.getsockname()[1]
        command = ["ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}", *login]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        until = time.monotonic() + DIAL_TIMEOUT_S
        while True:
            try:
                super().__init__(local)
                break
            except ConnectionRefusedError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        """Close it and end ssh."""
        super().close()
        self._process.terminate()
        self._process.wait()


class ThroughTunnel:
    """Our own transport through one kind of tunnel."""

    def __init__(self, kind: str, connection: SshConnection, port: int) -> None:
        self._tunnel = open_tunnel(kind, connection)
        self._transport = self._tunnel.dial(port, time.monotonic() + DIAL_TIMEOUT_S)
        self._reply = memoryview(bytearray(2_000_000))

    def ask(self, size: int) -> None:
        """One round trip with a reply of `size` bytes."""
        deadline = time.monotonic() + DIAL_TIMEOUT_S
        self._transport.send_all([size.to_bytes(4, "big") + bytes(REQUEST_BYTES - 4)], deadline)
        self._transport.recv_exactly_into(self._reply[:size], deadline)

    def close(self) -> None:
        """Close both."""
        self._transport.close()
        self._tunnel.close()
