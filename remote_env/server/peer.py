"""One connection at the supervisor: it reads exactly its own bytes, and never blocks. Standard library only."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from remote_env.errors import MessageTooBig
from remote_env.protocol import frames
from remote_env.protocol.handshake import ServerHandshake, parse_link

HANDSHAKE_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 2.0  # link messages are small; a client that takes none of them for so long is dropped
MAX_STRANGER_BODY_SIZE = 16 << 10  # a HELLO is some hundred bytes
MAX_HTTP_SIZE = 8 << 10


class Peer:
    """A connection that has not been passed on.

    Attributes:
        sock: None once closed or passed on.
        deadline: monotonic time by which it must have authenticated; infinite from then on.
        http_request: the bytes of a whole HTTP request, when that is what came instead of frames.
        ended: the other side closed.
    """

    def __init__(self, sock: socket.socket, handshake: ServerHandshake, deadline: float) -> None:
        sock.settimeout(0.0)
        self.sock: socket.socket | None = sock
        self.handshake = handshake
        self.deadline = deadline
        self.http_request = b""
        self.ended = False
        self._received = bytearray()

    def receive(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """The whole link messages that have come: type, sequence, fields.

        Raises:
            ProtocolError: bytes that are no link message, or one that is too large.
        """
        while self.sock is not None and not self.ended:
            if self._looks_like_http():
                self._receive_http()
                return
            missing = self._wanted() - len(self._received)
            if missing == 0:
                yield self._take_message()
                continue
            try:
                got = self.sock.recv(missing)
            except BlockingIOError:
                return
            self.ended = not got
            self._received += got

    def _wanted(self) -> int:
        """Bytes of the message that is being received: never more, since a simulator reads what follows."""
        if len(self._received) < frames.HEADER_SIZE:
            return frames.HEADER_SIZE
        header = frames.parse_header(self._received)
        limit = frames.MAX_LINK_BODY_SIZE if self.handshake.done else MAX_STRANGER_BODY_SIZE
        if header.body_size > limit or header.payload_size:
            raise MessageTooBig(f"a link message of {header.body_size} + {header.payload_size} bytes")
        return frames.HEADER_SIZE + header.body_size

    def _take_message(self) -> tuple[int, int, dict[str, Any]]:
        message, self._received = self._received, bytearray()
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
        """Send all of `data`, waiting a little for a slow reader; OSError when it takes too long."""
        if self.sock is None:
            return
        self.sock.settimeout(SEND_TIMEOUT_S)
        try:
            self.sock.sendall(data)
        finally:
            self.sock.settimeout(0.0)

    def detach(self) -> socket.socket:
        """The socket, to be passed on; this peer is done with it."""
        if self.sock is None:
            raise OSError("the connection is closed already")
        sock, self.sock = self.sock, None
        return sock

    def close(self) -> None:
        """Shut the connection down; may be called again."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
            self.sock = None
