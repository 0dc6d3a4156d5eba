"""One connection at the supervisor: it reads exactly its own bytes, and never blocks. Standard library only."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from remote_env.errors import MessageTooBig, ProtocolError
from remote_env.protocol import frames
from remote_env.protocol.handshake import ServerHandshake, parse_link

HANDSHAKE_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 10.0  # a client that takes nothing of what it is sent for so long is dropped
MESSAGE_TIMEOUT_S = 10.0  # for the whole of a message that has begun, also when its bytes come one by one
MAX_UNSENT_SIZE = 4 << 20  # of answers that a client asked for and does not take
MAX_MESSAGES_AT_ONCE = 32  # then the others have their turn
MAX_TURN_S = 0.005  # the same, when it asks for much
MAX_STRANGER_BODY_SIZE = 16 << 10  # a HELLO is some hundred bytes
MAX_REQUEST_BODY_SIZE = 64 << 10  # what a client asks is as short; the limit of link messages is for the answers
MAX_HTTP_SIZE = 8 << 10


class Peer:
    """A connection that has not been passed on.

    Attributes:
        sock: None once closed or passed on.
        deadline: monotonic time by which it must have authenticated; infinite from then on.
        message_deadline: monotonic time by which the message that has begun must be whole; infinite between messages.
        send_deadline: monotonic time by which it must have taken some of what it is sent; infinite when it has all.
        is_closing: it is to be closed once it has taken what it is sent.
        http_request: the bytes of a whole HTTP request, when that is what came instead of frames.
        ended: the other side closed.
    """

    def __init__(self, sock: socket.socket, handshake: ServerHandshake, deadline: float) -> None:
        sock.settimeout(0.0)
        self.sock: socket.socket | None = sock
        self.handshake = handshake
        self.deadline = deadline
        self.message_deadline = self.send_deadline = float("inf")
        self.is_closing = False
        self.http_request = b""
        self.ended = False
        self._received = bytearray()
        self._unsent = bytearray()

    @property
    def unsent_size(self) -> int:
        """How much of what it was sent it has not taken [bytes]; `flush` when it takes more."""
        return len(self._unsent)

    @property
    def next_deadline(self) -> float:
        """The first of its deadlines [s, monotonic]."""
        return min(self.deadline, self.message_deadline, self.send_deadline)

    def lateness(self, now: float) -> str:
        """What it is late with, in words; "" when it is not."""
        if min(self.deadline, self.message_deadline) < now:
            return "silent for too long"
        return "takes nothing of what it is sent" if self.send_deadline < now else ""

    def receive(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """The whole link messages that have come, some of them when they are many: type, sequence, fields.

        Raises:
            ProtocolError: bytes that are no link message, or one that is too large.
        """
        taken, until = 0, time.monotonic() + MAX_TURN_S
        while self.sock is not None and not self.ended:
            if self._looks_like_http():
                self._receive_http()
                return
            missing = self._wanted() - len(self._received)
            if missing == 0:
                taken += 1
                yield self._take_message()
                # Here only: what has been received as a whole waits for no more to come.
                if taken == MAX_MESSAGES_AT_ONCE or time.monotonic() > until:
                    return
                continue
            try:
                got = self.sock.recv(missing)
            except BlockingIOError:
                return
            if not self._received:
                self.message_deadline = time.monotonic() + MESSAGE_TIMEOUT_S
            self.ended = not got
            self._received += got

    def _wanted(self) -> int:
        """Bytes of the message that is being received: never more, since a simulator reads what follows."""
        if len(self._received) < frames.HEADER_SIZE:
            return frames.HEADER_SIZE
        header = frames.parse_header(self._received)
        if header.flags or header.epoch or header.acknowledged:
            raise ProtocolError("a link message with flags, an epoch or an acknowledgement, which it has none of")
        limit = MAX_REQUEST_BODY_SIZE if self.handshake.done else MAX_STRANGER_BODY_SIZE
        if header.body_size > limit or header.payload_size:
            raise MessageTooBig(
                f"a link message of {header.body_size} + {header.payload_size} bytes; {limit} + 0 are allowed here"
            )
        return frames.HEADER_SIZE + header.body_size

    def _take_message(self) -> tuple[int, int, dict[str, Any]]:
        message, self._received = self._received, bytearray()
        self.message_deadline = float("inf")
        header = frames.parse_header(message)
        frames.check_crc(header, message, 0, memoryview(message))
        return header.type, header.sequence, parse_link(bytes(message[frames.HEADER_SIZE :]))

    def _looks_like_http(self) -> bool:
        # "GET /" and "HEAD /" tell themselves apart from a frame by their first byte.
        return not self.handshake.done and bytes(self._received[:1]) in (b"G", b"H")

    def _receive_http(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.sock is not None and not self.ended and b"\r\n\r\n" not in self._received:
                got = self.sock.recv(4096)
                self.ended = not got
                self._received += got
                if len(self._received) > MAX_HTTP_SIZE:
                    raise MessageTooBig("an HTTP request of more than 8 KiB")
        if b"\r\n\r\n" in self._received:
            self.http_request = bytes(self._received)

    def send(self, data: bytes | bytearray) -> None:
        """Send `data`, now as far as the connection takes it, the rest by `flush`; OSError when it is broken."""
        if self.sock is None:
            return
        self._unsent += data
        if len(self._unsent) > MAX_UNSENT_SIZE:
            raise OSError("it asks for more than it takes")
        self.flush()

    def flush(self) -> None:
        """Send what the connection takes now; OSError when it is broken."""
        if self.sock is None:
            return
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
                self.send_deadline = time.monotonic() + SEND_TIMEOUT_S
        if not self._unsent:
            self.send_deadline = float("inf")
        elif self.send_deadline == float("inf"):
            self.send_deadline = time.monotonic() + SEND_TIMEOUT_S

    def detach(self) -> socket.socket:
        """The socket, to be passed on; this peer is done with it."""
        if self.sock is None or self._unsent:
            raise OSError("the connection is closed already, or stuck")
        sock, self.sock = self.sock, None
        return sock

    def close(self) -> None:
        """Shut the connection down; may be called again."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
            self.sock = None
