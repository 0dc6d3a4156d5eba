"""Link messages: a supervisor's side of a connection, both halves of the handshake, and HTTP, from any bytes."""

from __future__ import annotations

import contextlib
import socket

from remote_env.errors import AuthError, ProtocolError, RemoteEnvError
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, ServerHandshake, pack_link, parse_link
from remote_env.protocol.monitoring import answer_http
from remote_env.server.peer import Peer

TOKEN = "0123456789abcdef" * 4
KINDS = sorted(frames.NAMES)


def read_as_supervisor(data: bytes, *, proved: bool) -> None:
    """What a connection at the supervisor makes of these bytes."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        theirs.settimeout(1.0)
        theirs.sendall(data[: 1 << 16])
        theirs.shutdown(socket.SHUT_WR)
        handshake = ServerHandshake(TOKEN)
        handshake.done = proved
        peer = Peer(ours, handshake, 0.0)
        with contextlib.suppress(ProtocolError):
            while not peer.ended and not peer.http_request:
                for kind, _, message in peer.receive():
                    if not proved:
                        with contextlib.suppress(AuthError, ProtocolError):  # anything else leaves a traceback
                            handshake.feed(kind, message)
                    assert not handshake.done or proved, "a stranger was believed"
        assert len(peer._received) <= frames.HEADER_SIZE + frames.MAX_LINK_BODY_SIZE, "too much was kept"
        if peer.http_request:
            assert answer_http(peer.http_request, (True, "ready"), lambda: "").startswith(b"HTTP/1.1 ")


def read_as_client(kind: int, body: bytes) -> None:
    """What a client makes of an answer to its HELLO, and to its PROOF."""
    client = ClientHandshake(TOKEN, "control", session="new")
    client.hello()
    with contextlib.suppress(RemoteEnvError):
        client.answer(kind, parse_link(body))
    with contextlib.suppress(RemoteEnvError):
        client.finish(kind, parse_link(body))


def run(data: bytes) -> None:
    """The first byte says who reads, and of which type the message is; the rest is the message."""
    if not data:
        return
    mode, rest = data[0], data[1:]
    if mode & 1:
        read_as_supervisor(rest, proved=bool(mode & 2))
        return
    kind = KINDS[(mode >> 2) % len(KINDS)]
    read_as_client(kind, rest)
    with contextlib.suppress(ProtocolError):
        pack_link(kind, parse_link(rest))
    read_as_supervisor(bytes(frames.pack_frame(kind, rest)), proved=bool(mode & 2))
