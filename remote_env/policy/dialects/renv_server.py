"""The server's side of renv: one connection, in its own thread (docs/protocol.md, "Policies")."""

from __future__ import annotations

import contextlib
import re
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

from remote_env.errors import (
    AuthError,
    ConfigError,
    InputError,
    ProtocolError,
    RemoteEnvError,
    VersionMismatch,
)
from remote_env.policy.dialects.renv_features import infer_codec
from remote_env.policy.dialects.renv_places import Place, Places, places_of
from remote_env.policy.server.service import PolicyService, ServeContext
from remote_env.protocol import codec, frames
from remote_env.protocol.coding import available_coders
from remote_env.protocol.frames import Buffer, FrameStream, Header
from remote_env.protocol.handshake import POLICY_ROLE, ServerHandshake, pack_link, parse_link
from remote_env.protocol.inference import decode_coded
from remote_env.transport import SocketTransport

HANDSHAKE_TIMEOUT_S = 10.0
TRANSFER_TIMEOUT_S = 60.0  # for the rest of a message that has begun, in either direction
MAX_UNPROVED_BYTES = 16 << 10
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
    stream = FrameStream(transport)
    try:
        client = _shake_hands(stream, context)
    except RemoteEnvError as error:
        context.log(f"{address} was refused: {error}")
        return
    places = places_of(service)
    place, resumed = places.open(client, service, sock, address)
    connection = _Connection(stream, place, places, context)
    try:
        connection.welcome(resumed=resumed)
        connection.serve()
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
            refused = {"kind": _kind(error), "message": error.message}
            stream.send(pack_link(frames.REFUSED, refused), deadline)
        raise
    stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_BODY_SIZE
    return client


def _kind(error: RemoteEnvError) -> str:
    if isinstance(error, AuthError):
        return "auth"
    return "version" if isinstance(error, VersionMismatch) else "protocol"


class _Connection:
    """One connection of a client that has proved itself."""

    def __init__(self, stream: FrameStream, place: Place, places: Places, context: ServeContext) -> None:
        self._stream, self._place, self._places, self._context = stream, place, places, context
        self._served = place.served
        self._max_bytes = min(context.max_message_bytes, frames.MAX_PAYLOAD_SIZE)
        self._limits = codec.Limits(max_payload_bytes=self._max_bytes, max_array_bytes=self._max_bytes)
        self._codec = infer_codec(self._served.metadata, self._max_bytes)

    def welcome(self, *, resumed: bool) -> None:
        """Tell the client what is served."""
        fields = {
            "metadata": self._served.metadata.to_plain(),
            "instance": self._places.instance,
            "resumed": resumed,
            "coders": available_coders(),
            "max_message_bytes": self._max_bytes,
            "clients": self._places.connected - 1,
        }
        self._stream.send(pack_link(frames.WELCOME, fields), time.monotonic() + HANDSHAKE_TIMEOUT_S)

    def serve(self) -> None:
        """Answer requests until the client says CLOSE.

        Raises:
            RemoteEnvError: the link ended, or what came is no frame of this protocol.
        """
        stream, idle_timeout_s = self._stream, self._context.idle_timeout_s
        while True:
            header = stream.recv(time.monotonic() + idle_timeout_s)
            if header.type == frames.CLOSE:
                return
            began = time.monotonic()
            request = self._read(header, began + TRANSFER_TIMEOUT_S)
            reply = self._place.claim(header.sequence, self._context.stopping)
            if reply is None:
                reply = self._run(header, request, began)
            stream.send(reply[0], time.monotonic() + TRANSFER_TIMEOUT_S, reply[1:])

    def _read(self, header: Header, deadline: float) -> Any:
        """The request's content; all of its bytes are consumed."""
        stream = self._stream
        if header.type == frames.INFER:
            observation, episodes, views = self._codec.read_request(
                header, stream.body, stream.body_start, stream.body_end
            )
            if views:
                stream.fill(views, deadline)
            return observation, episodes
        if header.type not in (frames.POLICY_RESET, frames.POLICY_INFO):
            raise ProtocolError(f"a policy server takes no {frames.NAMES.get(header.type, header.type)}")
        value, views = codec.decode(stream.body_bytes(), header.payload_size, self._limits)
        stream.fill(views, deadline)
        if header.type == frames.POLICY_RESET and not _are_episodes(value):
            raise ProtocolError("a POLICY_RESET takes a list of names, or None")
        return value

    def _run(self, header: Header, request: Any, began: float) -> Sequence[Buffer]:
        """Run a request that was claimed; its reply, which the place has, too."""
        reply: Sequence[Buffer] = ()
        try:
            reply = self._reply(header, request, began)
        finally:
            self._place.answer(reply)
        return reply

    def _reply(self, header: Header, request: Any, began: float) -> Sequence[Buffer]:
        try:
            if header.type != frames.INFER:
                return _finish_value(frames.RESULT, self._answer(header.type, request), header.sequence)
            observation, episodes = request
            chunk = self._served.infer(decode_coded(observation, max_bytes=self._max_bytes), episodes)
            result = self._codec.pack_result(chunk, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told
            return _finish_value(frames.ERROR, _describe(error), header.sequence)
        number = header.sequence
        frames.finish_frame(result.frame, frames.RESULT, result.flags, 0, number, number, result.payload_size)
        return (result.frame, *result.payload)

    def _answer(self, kind: int, request: Any) -> Any:
        if kind == frames.POLICY_RESET:
            self._served.reset(request)
            return None
        return {
            "requests": self._served.count,
            "clients": self._places.connected - 1,
            "metadata": self._served.metadata.to_plain(),
        }


def _finish_value(kind: int, value: Any, sequence: int) -> Sequence[Buffer]:
    body, payload = codec.encode(value, where="reply")
    frame = bytearray(frames.HEADER_SIZE) + body
    frames.finish_frame(frame, kind, frames.TAIL, 0, sequence, sequence, sum(map(len, payload)))
    return (frame, *payload)


def _describe(error: Exception) -> dict[str, str]:
    """An ERROR's dict."""
    far = getattr(error, "remote_traceback", "")
    text = far or "".join(traceback.format_exception(error))
    kind = (
        "InputError" if isinstance(error, (InputError, ProtocolError)) else "PolicyError"
    )  # the latter: of coded arrays
    message = str(error) if isinstance(error, RemoteEnvError) else f"{type(error).__name__}: {error}"
    return {"kind": kind, "message": message, "traceback": text[-100_000:]}


def _are_episodes(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _address(sock: socket.socket) -> str:
    try:
        peer = sock.getpeername()
    except OSError:  # it has left already, which the first read will tell
        return "an unknown address"
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a local socket"
