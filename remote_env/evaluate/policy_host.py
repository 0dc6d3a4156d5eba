"""A local checkpoint, loaded once and served to the workers of an evaluation as a policy server would serve it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable

from remote_env.policy.dialects import load_dialect
from remote_env.policy.policy import Policy
from remote_env.policy.server.service import PolicyService, ServeContext

ENDING_S = 5.0  # for a connection's thread to notice that its socket is gone
IDLE_TIMEOUT_S = 7 * 86400.0  # workers may be in a long episode; they hang up when they end


class PolicyHost:
    """Serves one policy on a loopback port, behind a token that only the workers are given.

    Local and remote policies thereby take the same road, and give equal results.

    Args:
        policy: owned from now on.
        max_batch: rows of how many workers are inferred together.
        log: takes lines about connections.

    Attributes:
        address: for the workers: "127.0.0.1:port".
        token: for them.
    """

    def __init__(self, policy: Policy, *, max_batch: int, log: Callable[[str], None]) -> None:
        self.token = secrets.token_hex(32)
        self._service = PolicyService([policy], max_batch=max_batch, log=log)
        self._dialect = load_dialect("renv")
        self._stopping = threading.Event()
        self._context = ServeContext(
            token=self.token,
            require_token=True,
            log=log,
            stopping=self._stopping,
            idle_timeout_s=IDLE_TIMEOUT_S,
            model=policy.metadata.name,
        )
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="evaluation policy", daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            thread = threading.Thread(target=self._serve, args=(connection,), name="evaluation client", daemon=True)
            with self._mutex:
                self._sockets.add(connection)
                self._threads = [*(each for each in self._threads if each.is_alive()), thread]
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._dialect.serve(connection, self._service, self._context)
        finally:
            with self._mutex:
                self._sockets.discard(connection)
            connection.close()

    def close(self) -> None:
        """Hang up and free the policy; may be called again."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        self._listener.close()
        self._acceptor.join(ENDING_S)
        with self._mutex:
            sockets, threads = list(self._sockets), list(self._threads)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(ENDING_S)
        self._service.close()
