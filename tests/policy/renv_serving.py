"""A policy server that speaks renv, or another dialect, in this process, on a real port, for tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from remote_env.policy.dialects import load_dialect, renv
from remote_env.policy.dialects.renv import RenvPolicy
from remote_env.policy.policy import Policy
from remote_env.policy.server.connections import Connections
from remote_env.policy.server.listener import Listener
from remote_env.policy.server.service import PolicyService, ServeContext

TOKEN = "0123456789abcdef" * 4


class RenvServer:
    """A server of one policy.

    Attributes:
        port: that it listens on.
        service: what it serves.
        lines: of its log.
    """

    def __init__(
        self, policy: Policy, *, port: int = 0, max_clients: int = 64, dialect: str = "renv", **context: Any
    ) -> None:
        self.lines: list[str] = []
        self.policy = policy
        self.service = PolicyService([policy], log=self.lines.append)
        self._stopping = threading.Event()
        self._connections = Connections(max_clients)
        settings = {"token": TOKEN, **context}
        place = ServeContext(log=self.lines.append, stopping=self._stopping, **settings)
        self._listener = Listener(
            "127.0.0.1",
            port,
            {dialect: load_dialect(dialect)},
            connections=self._connections,
            context=place,
            answer=lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        )
        self._listener.start(self.service)
        self.port = self._listener.address[1]

    def connect(self, **options: Any) -> RenvPolicy:
        """A client of it."""
        settings: dict[str, Any] = {"token": TOKEN, "timeout_s": 20.0, "reconnect_timeout_s": 10.0, **options}
        return renv.connect("127.0.0.1", settings.pop("port", self.port), **settings)

    def cut_all(self) -> None:
        """End every connection, as a network would."""
        self._connections.shut_down()

    def close(self) -> None:
        """End, as a server's program does."""
        self._stopping.set()
        self._listener.close()
        self._connections.shut_down()
        self.service.close()
        assert self._connections.join(10.0)


@contextlib.contextmanager
def serving(policy: Policy, **options: Any) -> Iterator[RenvServer]:
    server = RenvServer(policy, **options)
    try:
        yield server
    finally:
        server.close()
