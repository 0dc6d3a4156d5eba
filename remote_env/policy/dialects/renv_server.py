"""The server's side of renv: one connection, in its own thread (docs/protocol.md, "Policies")."""

from __future__ import annotations

import contextlib
import re
import socket
import time

from remote_env.errors import (
    AuthError,
    ConfigError,
    ProtocolError,
    RemoteEnvError,
    VersionMismatch,
)
from remote_env.policy.dialects.renv_conversation import Conversation
from remote_env.policy.dialects.renv_places import places_of
from remote_env.policy.server.service import NO_PLACE, PolicyService, ServeContext
from remote_env.protocol import frames
from remote_env.protocol.frames import FrameStream
from remote_env.protocol.handshake import POLICY_ROLE, ServerHandshake, pack_link, parse_link
from remote_env.transport import SocketTransport

HANDSHAKE_TIMEOUT_S = 10.0
STALL_S = 60.0  # for more of a message that has begun
MAX_UNPROVED_BYTES = 16 << 10
MAX_BESIDE_BYTES = 1 << 20
CLIENT_ID = re.compile(r"[0-9a-f]{32}")


def serve(sock: socket.socket, service: PolicyService, context: ServeContext) -> None:
    """Serve one client until its link ends, and keep its place a while longer; owns `sock`.

    Raises:
        ConfigError: there is no token that clients could prove.
    """
    if context.token is None:
        raise ConfigError("the dialect renv authenticates its clients, and this server has no token")
    transport = SocketTransport(sock)
    try:
        _serve(transport, sock, service, context)
    finally:
        transport.close()


def _serve(transport: SocketTransport, sock: socket.socket, service: PolicyService, context: ServeContext) -> None:
    address = _address(sock)
    stream = FrameStream(transport, clock=time.monotonic, stall_s=STALL_S)
    try:
        client = _shake_hands(stream, context)
    except RemoteEnvError as error:
        context.log(f"{address} was refused: {error}")
        return
    if not context.admit():
        with contextlib.suppress(RemoteEnvError):
            _refuse(stream, "busy", NO_PLACE, time.monotonic() + HANDSHAKE_TIMEOUT_S)
        return
    places = places_of(service)
    place, resumed = places.open(client, service, sock, address)
    try:
        Conversation(stream, place, places, context).run(resumed=resumed)
    except RemoteEnvError as error:
        transport.close()
        if not context.stopping.is_set():
            context.log(f"Client #{place.served.number} at {address}: the connection ended: {error}")
        places.leave(client, place, sock, context.stopping)
    except BaseException:
        places.close(client, place, sock)
        raise
    else:
        places.close(client, place, sock)


def _shake_hands(stream: FrameStream, context: ServeContext) -> str:
    """Have the client prove the token; its id.

    Raises:
        RemoteEnvError: it did not; it was told why if it could be.
    """
    handshake = ServerHandshake(context.token or "", (POLICY_ROLE,))
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
    stream.max_frame_size = frames.HEADER_SIZE + MAX_UNPROVED_BYTES
    try:
        while not handshake.done:
            header = stream.recv(deadline)
            reply = handshake.feed(header.type, parse_link(stream.body_bytes()))
            if reply is not None:
                stream.send(reply, deadline)
        client = handshake.hello.get("client")
        if not isinstance(client, str) or not CLIENT_ID.fullmatch(client):
            raise ProtocolError("HELLO needs a client of 32 hex digits")
    except (AuthError, ProtocolError) as error:
        with contextlib.suppress(RemoteEnvError):
            _refuse(stream, _kind(error), error.message, deadline)
        raise
    # Small arrays travel in the body, beside what every message has.
    most = min(frames.MAX_BODY_SIZE, context.max_message_bytes + MAX_BESIDE_BYTES)
    stream.max_frame_size = frames.HEADER_SIZE + most
    return client


def _refuse(stream: FrameStream, kind: str, message: str, deadline: float) -> None:
    stream.send(pack_link(frames.REFUSED, {"kind": kind, "message": message}), deadline)


def _kind(error: RemoteEnvError) -> str:
    if isinstance(error, AuthError):
        return "auth"
    return "version" if isinstance(error, VersionMismatch) else "protocol"


def _address(sock: socket.socket) -> str:
    try:
        peer = sock.getpeername()
    except OSError:  # it has left already, which the first read will tell
        return "an unknown address"
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a local socket"
