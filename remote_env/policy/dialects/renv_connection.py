"""A client of a policy server, over as many connections as it takes: docs/protocol.md, "Exactly once"."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from remote_env.errors import (
    AuthError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    PolicyError,
    ProtocolError,
    RemoteEnvError,
    VersionMismatch,
)
from remote_env.policy.dialects.renv_link import HANDSHAKE_TIMEOUT_S, Link, Welcome, open_link
from remote_env.protocol import codec, frames
from remote_env.protocol.frames import Buffer, FrameStream, Header

log = logging.getLogger("remote_env")

FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 2.0
CLOSE_TIMEOUT_S = 1.0
T = TypeVar("T")
Read = Callable[[Header, FrameStream, float], T]
Receive = Callable[[FrameStream, int, float], T]


class Sealable(Protocol):
    """A request that lacks its numbers yet."""

    @property
    def frame(self) -> bytearray:
        """Header and body."""

    @property
    def payload(self) -> Sequence[memoryview]:
        """Its large arrays."""

    def seal(self, kind: int, sequence: int, acknowledged: int) -> None:
        """Write type, numbers and CRC."""


class PolicyConnection:
    """Requests and replies, each answered once; one at a time.

    Args:
        host: of the server.
        port: of the server.
        token: to prove.
        timeout_s: for a call, to say when it is exceeded [s].
        reconnect_timeout_s: for how long a lost connection is tried again [s].
        on_forgotten: called when the server no longer knows this client.

    Attributes:
        welcome: what the server said when this client came first.
        link: the connection; None while there is none, as far as is known.
    """

    def __init__(
        self,
        host: str,
        port: int,
        token: str,
        *,
        timeout_s: float,
        reconnect_timeout_s: float,
        on_forgotten: Callable[[], None],
    ) -> None:
        self._host, self._port, self._token = host, port, token
        self._timeout_s, self._reconnect_timeout_s = timeout_s, reconnect_timeout_s
        self._on_forgotten = on_forgotten
        self._client = secrets.token_hex(16)
        self._sequence = self._acknowledged = 0
        self._closing = threading.Event()
        link = open_link(host, port, token, self._client, time.monotonic() + timeout_s)
        self.link: Link | None = link
        self.welcome: Welcome = link.welcome

    def reopen(self, deadline: float) -> None:
        """Have a connection again, so that what the server has forgotten is known before a request goes out."""
        self._reconnect(deadline, None)

    def ask(self, kind: int, request: Sealable, deadline: float, receive: Receive[T], *, repeatable: bool) -> T:
        """Send a request, if need be again over another connection, and receive its RESULT.

        Args:
            kind: INFER, POLICY_RESET or POLICY_INFO.
            request: ready to be sent, but for its numbers.
            deadline: monotonic [s].
            receive: takes the stream, the request's number and the deadline, and reads the reply: by `read_reply`,
                or faster; consumes all of it.
            repeatable: whether it may run a second time, on a server that does not know whether it ran.

        Raises:
            InputError: the server says that the request is not what its policy takes, or it is too large to be sent.
            PolicyError: the policy raised.
            DeadlineExceeded: no reply in time; the policy may still be at it.
            ConnectionLost: the connection broke and could not be made again, or not to a server that knows this client.
        """
        payload = request.payload
        if payload and (size := sum(map(len, payload))) > self.welcome.max_message_bytes:
            raise InputError(
                f"an observation of {size} bytes; this server takes {self.welcome.max_message_bytes}: send fewer rows "
                "at once, or smaller images"
            )
        self._sequence = number = self._sequence + 1
        request.seal(kind, number, self._acknowledged)
        buffers: Sequence[Buffer] = (request.frame, *payload)
        try:
            while True:
                link = self.link or self._reconnect(deadline, None)
                try:
                    link.transport.send_all(buffers, deadline)
                    result = receive(link.stream, number, deadline)
                    self._acknowledged = number
                    return result
                except ConnectionLost as lost:
                    self._resume(deadline, lost, repeatable=repeatable)
        except (InputError, PolicyError):  # is the reply
            self._acknowledged = number
            raise
        except DeadlineExceeded as error:
            self._drop()
            raise DeadlineExceeded(
                f"no reply to {frames.NAMES[kind]} from the policy server at {self.where} within "
                f"{self._timeout_s:g} s; the policy may still be at it: give it longer with timeout_s="
            ) from error
        except BaseException:
            self._drop()  # a reply may still come, or be here in part
            raise

    def _resume(self, deadline: float, lost: ConnectionLost, *, repeatable: bool) -> None:
        """After a connection broke under a request: have another one over which it may be sent again."""
        self._drop()
        link = self._reconnect(deadline, lost)
        if not link.welcome.resumed and not repeatable:
            raise ConnectionLost(
                f"the policy server at {self.where} was restarted, or has given this client up, while an inference was "
                "under way. Its policy has memory, so the request is not sent again: whether it ran is unknown, and "
                "what the policy remembered is gone; reset() and begin the episodes anew"
            ) from lost

    def _reconnect(self, deadline: float, lost: ConnectionLost | None) -> Link:
        """A new connection of the same client, tried with growing pauses."""
        log.info("the connection to the policy server at %s is made anew (%s)", self.where, lost or "it was given up")
        until = min(deadline, time.monotonic() + self._reconnect_timeout_s)
        pause = FIRST_PAUSE_S
        while True:
            try:
                patience = min(deadline, max(until, time.monotonic() + HANDSHAKE_TIMEOUT_S))
                link = open_link(self._host, self._port, self._token, self._client, patience)
                self._adopt(link)
                return link
            except (AuthError, VersionMismatch):
                raise
            except ConnectError as error:
                failure = error
            if time.monotonic() + pause >= until or self._closing.wait(pause * random.uniform(0.5, 1.0)):
                why = "this client was closed" if self._closing.is_set() else str(failure)
                raise ConnectionLost(
                    f"the connection to the policy server at {self.where} broke ({lost or 'it was given up'}) and "
                    f"could not be made again within {self._reconnect_timeout_s:g} s: {why}. Whether the request that "
                    "was under way ran is unknown"
                ) from failure
            pause = min(2 * pause, LAST_PAUSE_S)

    def _adopt(self, link: Link) -> None:
        """Go on with this connection."""
        served, begun = link.welcome.metadata, self.welcome.metadata
        if served != begun:
            link.transport.close()
            raise ConfigError(
                f"the policy server at {self.where} now serves {served.name!r}, which is not the policy {begun.name!r} "
                "that this client began with; connect anew"
            )
        self.link = link
        if self._closing.is_set():
            self._drop()
            raise ConnectionLost("this client was closed")
        if not link.welcome.resumed:
            self._on_forgotten()

    def _drop(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.transport.close()

    def close(self, *, politely: bool) -> None:
        """Leave for good: `politely`, with a CLOSE, when no request is under way. Never raises."""
        self._closing.set()
        link = self.link
        if link is not None and politely:
            with contextlib.suppress(RemoteEnvError):
                frame = frames.pack_frame(frames.CLOSE, b"", sequence=self._sequence + 1)
                link.stream.send(frame, time.monotonic() + CLOSE_TIMEOUT_S)
        self._drop()

    @property
    def where(self) -> str:
        """The server's address, to show."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"


def read_reply(stream: FrameStream, sequence: int, deadline: float, read: Read[T]) -> T:
    """What `read` makes of the RESULT of this number.

    Raises:
        InputError, PolicyError: it is an ERROR that says so.
        ProtocolError: it is something else.
    """
    header = stream.recv(deadline)
    if header.sequence != sequence:
        raise ProtocolError(f"a reply to request {header.sequence} where {sequence} is due")
    if header.type == frames.RESULT:
        return read(header, stream, deadline)
    if header.type == frames.ERROR:
        raise _error(read_value(header, stream, deadline))
    raise ProtocolError(f"expected RESULT, got {frames.NAMES.get(header.type, header.type)}")


def read_value(header: Header, stream: FrameStream, deadline: float) -> Any:
    """The MessagePack value of a reply; see `Read`."""
    value, views = codec.decode(stream.body_bytes(), header.payload_size)
    if views:
        stream.fill(views, deadline)
    return value


def _error(failure: Any) -> RemoteEnvError:
    """What an ERROR says."""
    if not isinstance(failure, dict):
        return ProtocolError(f"an ERROR that is a {type(failure).__name__}")
    message, far = str(failure.get("message")), str(failure.get("traceback", ""))
    if failure.get("kind") == "InputError":
        return InputError(message, remote_traceback=far)
    return PolicyError(message, remote_traceback=far)
