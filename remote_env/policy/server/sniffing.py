"""Which dialect a connection speaks, by its first bytes, which stay unread for whoever serves it."""

from __future__ import annotations

import socket
import time

from remote_env.errors import ConnectionLost, DeadlineExceeded, ProtocolError
from remote_env.protocol.frames import MAGIC

FIRST_BYTES = 5
MAX_HEAD_BYTES = 8 << 10
RETRY_S = 0.01  # a peeked byte stays, so that there is nothing to wait on for the next
METHODS = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"DELE", b"PATC", b"CONN", b"TRAC")
HTTP = "http"
PICKLE = b"\x80"  # the first byte of every pickle since protocol 2


def sniff(sock: socket.socket, deadline: float) -> str:
    """The dialect of the connection: "renv", "ilstudio", "openpi", "http", or "" when it is of none.

    Args:
        sock: connected; nothing is taken from it, its time-out is changed.
        deadline: monotonic time by which the first bytes must have come [s].

    Raises:
        DeadlineExceeded: too little came in time.
        ConnectionLost: the peer closed before.
        ProtocolError: an HTTP request whose head does not end.
    """
    first = _peek(sock, FIRST_BYTES, deadline)
    if first[:4] == MAGIC:
        return "renv"
    if first[:4] in METHODS:
        return "openpi" if is_websocket(peek_head(sock, deadline)) else HTTP
    return "ilstudio" if first[4:5] == PICKLE else ""


def peek_head(sock: socket.socket, deadline: float) -> bytes:
    """An HTTP request's line and headers, left unread. Raises as `sniff`."""
    size = FIRST_BYTES
    while (end := (head := _peek(sock, size, deadline)).find(b"\r\n\r\n")) < 0:
        if len(head) >= MAX_HEAD_BYTES:
            raise ProtocolError(f"an HTTP request of more than {MAX_HEAD_BYTES} bytes")
        size = len(head) + 1
    return head[: end + 4]


def is_websocket(head: bytes) -> bool:
    """Whether an HTTP request asks for a WebSocket."""
    lines = head.lower().split(b"\r\n")[1:]
    fields = (line.partition(b":") for line in lines)
    return any(name.strip() == b"upgrade" and b"websocket" in value for name, _, value in fields)


def _peek(sock: socket.socket, size: int, deadline: float) -> bytes:
    """At least `size` of the first bytes that have come."""
    seen = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"it sent {len(seen)} bytes and then nothing")
        sock.settimeout(left)
        try:
            got = sock.recv(MAX_HEAD_BYTES, socket.MSG_PEEK)
        except TimeoutError as error:
            raise DeadlineExceeded("it sent nothing") from error
        except OSError as error:
            raise ConnectionLost(f"the connection broke: {error.strerror or error}") from error
        if len(got) >= size:
            return got
        if not got:
            raise ConnectionLost("it closed before it said anything")
        if len(got) == len(seen) and _has_ended(sock):
            raise ConnectionLost(f"it closed after {len(got)} bytes")
        seen = got
        time.sleep(min(RETRY_S, left))


def _has_ended(sock: socket.socket) -> bool:
    """Whether the peer will send nothing more than what has come; False where the system does not tell."""
    import select

    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
