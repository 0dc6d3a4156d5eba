"""A TCP proxy that cuts each connection after some number of bytes, wherever in a message that falls."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class CuttingProxy:
    """Passes bytes on between clients and `port`.

    Args:
        port: of the server, on this machine.
        next_budget: how many bytes the next connection may carry, both directions together.

    Attributes:
        port: that clients connect to.
        cuts: how many connections it has cut.
    """

    def __init__(self, port: int, next_budget: Callable[[], int]) -> None:
        self._server_port, self._next_budget = port, next_budget
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts = 0
        self._mutex = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept_all)]
        self._threads[0].start()

    def _accept_all(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                _Pair(self, client, self._server_port, self._next_budget())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10.0)
        with self._mutex:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10.0)

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pair:
    """One connection through the proxy."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server_port: int, budget: int) -> None:
        self._proxy, self._budget, self._mutex = proxy, budget, threading.Lock()
        self._ends = 0
        self._socks = (client, socket.create_connection(("127.0.0.1", server_port), timeout=10.0))
        for sock in self._socks:
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with proxy._mutex:
            proxy._open.update(self._socks)
        for source, sink in (self._socks, self._socks[::-1]):
            thread = threading.Thread(target=self._pump, args=(source, sink))
            proxy._threads.append(thread)
            thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                with self._mutex:
                    allowed = data[: self._budget]
                    self._budget -= len(allowed)
                sink.sendall(allowed)
                if len(allowed) < len(data):
                    self._proxy.cuts += 1
                    break
        except OSError:
            pass  # the other direction was cut
        finally:
            self._end()

    def _end(self) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._mutex:
            self._ends += 1
            if self._ends < 2:
                return
        for sock in self._socks:
            with self._proxy._mutex:
                self._proxy._open.discard(sock)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
