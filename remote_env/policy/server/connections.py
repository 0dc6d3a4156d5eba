"""The connections that are open, over all listeners: how many, and their end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

MAX_CLIENTS = 64
MAX_STRANGERS = 32  # connections beside them that have not said what they want or proved the token, or ask for health
MAX_LEAVING = 16  # strangers that were sent away and whose threads have not ended yet
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 30, 10, 3


class Connections:
    """Sockets and the threads that serve them.

    Args:
        max_clients: connections that may speak a dialect at once.
    """

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        self.max_clients = max_clients
        self._mutex = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}  # oldest first
        self._clients: set[socket.socket] = set()
        self._leaving: set[socket.socket] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sock: socket.socket, thread: threading.Thread) -> bool:
        """Note a connection and start its thread; the oldest stranger goes for it when there are too many.

        Returns:
            False when none can go: they come faster than they leave.
        """
        with self._mutex:
            if len(self._open) >= self.max_clients + MAX_STRANGERS and not self._send_one_away():
                return False
            self._open[sock] = thread
        thread.start()
        return True

    def _send_one_away(self) -> bool:
        """End the connection of whoever has been a stranger for longest: who knows the token is through in a moment."""
        strangers = (sock for sock in self._open if sock not in self._clients and sock not in self._leaving)
        oldest = next(strangers, None)
        if oldest is None or len(self._leaving) >= MAX_LEAVING:
            return False
        self._leaving.add(oldest)
        with contextlib.suppress(OSError):  # the peer was faster
            oldest.shutdown(socket.SHUT_RDWR)
        return True

    def remove(self, sock: socket.socket) -> None:
        """Its thread is done with it; closes it."""
        with self._mutex:
            self._open.pop(sock, None)
            self._leaving.discard(sock)
        sock.close()

    @contextlib.contextmanager
    def client(self, sock: socket.socket) -> Iterator[bool]:
        """A place for a connection that speaks a dialect; False when all are taken."""
        with self._mutex:
            is_free = len(self._clients) < self.max_clients
            if is_free:
                self._clients.add(sock)
        try:
            yield is_free
        finally:
            with self._mutex:
                self._clients.discard(sock)

    def stop_reading(self) -> None:
        """No connection takes another request: its thread sends what it has to say yet, and leaves."""
        self._shut_down(socket.SHUT_RD)

    def shut_down(self) -> None:
        """End every connection, whatever its thread is at."""
        self._shut_down(socket.SHUT_RDWR)

    def _shut_down(self, how: int) -> None:
        with self._mutex:
            for sock in self._open:
                with contextlib.suppress(OSError):  # the peer was faster
                    sock.shutdown(how)

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads; False when one is left, in the model say."""
        deadline = time.monotonic() + timeout_s
        with self._mutex:
            threads = list(self._open.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


def tune(sock: socket.socket) -> None:
    """Send at once, and notice within a minute that the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
