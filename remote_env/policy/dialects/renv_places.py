"""What a policy server keeps of each client, over all its connections: docs/protocol.md, "Exactly once"."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Sequence

from remote_env.errors import PolicyError, ProtocolError
from remote_env.policy.server.service import PolicyService, ServedClient
from remote_env.protocol.frames import Buffer

KEEP_S = 60.0  # how long a client without a connection is kept
MAX_KEPT = 64
MAX_KEPT_BYTES = 64 << 20  # of the replies of those
TICK_S = 0.2  # how soon a wait notices that the server ends


class Place:
    """One client: its last request, and that request's reply.

    Attributes:
        served: its place at the policy.
    """

    def __init__(self, served: ServedClient) -> None:
        self.served = served
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._waiting = 0  # for the request that runs
        self._sock: socket.socket | None = None
        self._running = self._answered = 0  # numbers of requests
        self._reply: Sequence[Buffer] = ()

    def take(self, sock: socket.socket) -> None:
        """A new connection of this client takes over; the earlier one is shut down."""
        with self._mutex:
            earlier, self._sock = self._sock, sock
        if earlier is not None:
            # Not closed: its own thread does that.
            with contextlib.suppress(OSError):
                earlier.shutdown(socket.SHUT_RDWR)

    def claim(self, sequence: int, stopping: threading.Event) -> Sequence[Buffer] | None:
        """The reply to this request if it was answered already; None when the caller is to run it now.

        Raises:
            ProtocolError: a later request has been answered.
            PolicyError: the server ends while an earlier connection's request still runs.
        """
        with self._mutex:
            if self._running:
                self._wait(stopping)
            if sequence > self._answered:
                self._running, self._reply = sequence, ()
                return None
            if sequence < self._answered or not self._reply:
                raise ProtocolError(f"request {sequence} came after the reply to request {self._answered}")
            return self._reply

    def _wait(self, stopping: threading.Event) -> None:
        self._waiting += 1
        try:
            while self._running:
                self._changed.wait(TICK_S)
                if stopping.is_set():
                    raise PolicyError("the policy server ends")
        finally:
            self._waiting -= 1

    def answer(self, reply: Sequence[Buffer]) -> None:
        """Keep the reply to the request that was claimed; an empty one when it was not run to an end."""
        with self._mutex:
            if reply:
                self._answered, self._reply = self._running, reply
            self._running = 0
            if self._waiting:
                self._changed.notify_all()

    @property
    def kept_bytes(self) -> int:
        """Of the last reply."""
        return sum(map(len, self._reply))

    def has(self, sock: socket.socket) -> bool:
        """Whether this is still the connection of the client."""
        return self._sock is sock


class Places:
    """The clients of one policy service.

    Attributes:
        instance: a random name of this run of the server.
    """

    def __init__(self) -> None:
        self.instance = secrets.token_hex(16)
        self._mutex = threading.Lock()
        self._places: dict[str, Place] = {}
        self._kept: dict[str, float] = {}  # clients without a connection, until when [monotonic s]; the oldest first
        self._keeper: threading.Thread | None = None

    def open(self, client: str, service: PolicyService, sock: socket.socket, address: str) -> tuple[Place, bool]:
        """The client's place, now held by this connection, and whether it was known."""
        with self._mutex:
            place = self._places.get(client)
            resumed = place is not None
            if place is None:
                place = self._places[client] = Place(service.open_client(address, "renv"))
            self._kept.pop(client, None)
            place.take(sock)
            return place, resumed

    @property
    def connected(self) -> int:
        """How many clients have a connection."""
        return len(self._places) - len(self._kept)

    def leave(self, client: str, place: Place, sock: socket.socket, stopping: threading.Event) -> None:
        """The connection broke: keep the place for another one, for a while."""
        with self._mutex:
            if not place.has(sock):
                return
            self._kept[client] = time.monotonic() + KEEP_S
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep, args=(stopping,), name="places of lost clients", daemon=True
                )
                self._keeper.start()

    def close(self, client: str, place: Place, sock: socket.socket) -> None:
        """The client will not come back; nothing is done when another connection of it has come meanwhile."""
        with self._mutex:
            if not place.has(sock):
                return
            del self._places[client]
        place.served.close()

    def _keep(self, stopping: threading.Event) -> None:
        """Close the places whose client has stayed away for too long; lives as long as there are any to watch."""
        while True:
            with self._mutex:
                given_up = [self._places.pop(client) for client in self._overdue(all_of_them=stopping.is_set())]
                if not self._kept:
                    self._keeper = None
            for place in given_up:
                place.served.close()
            if self._keeper is not threading.current_thread():
                return
            stopping.wait(TICK_S)

    def _overdue(self, *, all_of_them: bool) -> list[str]:
        """Take out those that are kept no longer: the oldest while they are too many, and whose time is over."""
        now, overdue = time.monotonic(), []
        for client, until in list(self._kept.items()):
            if all_of_them or until <= now or self._are_too_many():
                del self._kept[client]
                overdue.append(client)
        return overdue

    def _are_too_many(self) -> bool:
        return len(self._kept) > MAX_KEPT or sum(self._places[name].kept_bytes for name in self._kept) > MAX_KEPT_BYTES


_places: weakref.WeakKeyDictionary[PolicyService, Places] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def places_of(service: PolicyService) -> Places:
    """The places of this service; the same ones for all its listeners."""
    with _making:
        return _places.setdefault(service, Places())
