"""A stream dialect served on a real socket by real threads of this process, and peers that say what they are told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from remote_env.policy.policy import Policy
from remote_env.policy.server.service import PolicyService, ServeContext

PATIENCE_S = 10.0


class DialectServer:
    """Accepts connections and hands each to the dialect's `serve`, in a thread of its own.

    Attributes:
        port: on loopback.
        lines: what was logged.
    """

    def __init__(self, serve: Callable[..., None], policy: Policy, **context: Any) -> None:
        self.lines: list[str] = []
        self.service = PolicyService([policy], log=self.lines.append)
        self.context = ServeContext(log=self.lines.append, **context)
        self._serve, self._socks, self._threads = serve, [], []
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="acceptor")
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock, self.service, self.context), name="connection")
            with self._changed:
                self._socks.append(sock)
                self._threads.append(thread)
                thread.start()
                self._changed.notify_all()

    def cut(self) -> None:
        """Break every connection there is."""
        with self._changed:
            socks = list(self._socks)
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def join(self, connections: int = 0) -> None:
        """Wait until at least so many connections have come, and every one so far has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._threads) >= connections, PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def close(self) -> None:
        self.context.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(PATIENCE_S)
        self.cut()
        self.join()
        self.service.close()


@contextlib.contextmanager
def serving(serve: Callable[..., None], policy: Policy, **context: Any) -> Iterator[DialectServer]:
    server = DialectServer(serve, policy, **context)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def answering(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of the test's own: `handle` gets each connection, one after the other; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError, EOFError):
                sock.settimeout(PATIENCE_S)
                handle(sock)

    thread = threading.Thread(target=accept, name="answerer")
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"the stream ended after {len(data)} of {size} bytes")
        data += piece
    return data
