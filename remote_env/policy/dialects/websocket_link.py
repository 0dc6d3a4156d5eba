"""A WebSocket over one of our transports, either end of it: `websockets`' protocol core, and this thread's own reads.

No thread, no event loop and no compression: of an image, deflate takes 45 ms and saves an eighth.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from remote_env.errors import AuthError, ConnectError, ConnectionLost, DeadlineExceeded, MessageTooBig, ProtocolError
from remote_env.transport import SocketTransport

_PIECE = 256 << 10
MAX_FRAGMENTS = 100_000


class WebSocketLink:
    """An open WebSocket; one thread uses it.

    Args:
        transport: owned from now on.
        protocol: of `websockets`, after the opening handshake or before it.
    """

    def __init__(self, transport: SocketTransport, protocol: Protocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._piece = memoryview(bytearray(_PIECE))
        self._frames: list[Frame] = []

    def send(self, message: bytes | str, deadline: float) -> None:
        """Send one message: bytes as a binary one, a str as text.

        Raises:
            DeadlineExceeded: not all went out in time; close the link.
            ConnectionLost: the link is closed or broke.
        """
        self._check_open()
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush(deadline)

    def receive(self, deadline: float) -> bytes | str:
        """The next message; pings are answered meanwhile.

        Raises:
            DeadlineExceeded: it did not come in time.
            ConnectionLost: the peer closed the link, or it broke.
            MessageTooBig: it is larger than was agreed; the link is closed.
            ProtocolError: the peer sent what WebSockets do not allow; the link is closed.
        """
        parts: list[bytes | bytearray | memoryview] = []
        kind: Opcode | None = None
        while True:
            frame = self._next_frame(deadline)
            if not (frame.fin and frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)):
                _check(deadline)
            if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            kind = frame.opcode if kind is None else kind
            parts.append(frame.data)
            if len(parts) > MAX_FRAGMENTS:
                raise ProtocolError(f"a WebSocket message in more than {MAX_FRAGMENTS} fragments")
            if frame.fin:
                whole = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
                return _text(whole) if kind is Opcode.TEXT else whole

    def close(self, deadline: float = 0.0, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Say goodbye, with what fits into the socket by the deadline, and free the link; never raises."""
        with contextlib.suppress(ConnectionLost, TimeoutError):
            if not self._protocol.close_expected():
                self._protocol.send_close(code, reason[:100])
                self._flush(deadline)
        self._transport.close()

    def next_event(self, deadline: float) -> Frame | Request | Response:
        """What comes next, of whatever kind; raises as `receive`."""
        while not self._frames:
            self._read(deadline)
            if not self._frames:
                _check(deadline)
        return self._frames.pop(0)

    def _next_frame(self, deadline: float) -> Frame:
        event = self.next_event(deadline)
        if not isinstance(event, Frame):
            raise ProtocolError("an HTTP message within a WebSocket")
        return event

    def _read(self, deadline: float) -> None:
        if self._protocol.parser_exc is not None or self._protocol.close_expected():
            self._raise_closed()
        try:
            size = self._transport.recv_some_into(self._piece, deadline)
        except ConnectionLost:
            if self._protocol.state is not State.CONNECTING:
                raise
            self._protocol.receive_eof()  # the end of an HTTP response that did not say how long it is
        else:
            self._protocol.receive_data(bytes(self._piece[:size]))
            self._flush(deadline)
        self._frames += self._protocol.events_received()  # type: ignore[arg-type]  # requests and responses too
        if not self._frames and self._protocol.parser_exc is not None:
            self._raise_closed()

    def _raise_closed(self) -> None:
        error = self._protocol.parser_exc
        if isinstance(error, PayloadTooBig):
            raise MessageTooBig(f"a WebSocket message is too big: {error}")
        if error is not None and not isinstance(error, EOFError):
            raise ProtocolError(f"no WebSocket message: {error}")
        self._check_open()
        raise ConnectionLost("the peer closed the connection")

    def _check_open(self) -> None:
        received = self._protocol.close_rcvd
        if received is not None:
            raise ConnectionLost(
                f"the peer closed the WebSocket ({received.code} {received.reason})".replace(" )", ")")
            )

    def _flush(self, deadline: float) -> None:
        pieces = [piece for piece in self._protocol.data_to_send() if piece]  # an empty one stands for the end
        if pieces:
            self._transport.send_all(pieces, deadline)


def accept(
    transport: SocketTransport,
    deadline: float,
    *,
    max_bytes: int,
    refuse: Callable[[Request], tuple[HTTPStatus, str] | None],
) -> WebSocketLink:
    """The server's end of a WebSocket whose request is still unread.

    Args:
        transport: owned from now on.
        deadline: for the opening handshake.
        max_bytes: of a message from the client.
        refuse: the status and text to refuse a request with, None to let it in.

    Raises:
        AuthError: the request was refused; it has been told.
        ProtocolError: it was no request for a WebSocket, or came from a web page.
        ConnectionLost: the client left.
        DeadlineExceeded: the request did not come in time.
    """
    # Web pages send an Origin and programs do not: no page may use what listens on its visitor's machine.
    protocol = ServerProtocol(origins=[None], max_size=max_bytes)
    link = WebSocketLink(transport, protocol)
    request = link.next_event(deadline)
    if not isinstance(request, Request):
        raise ProtocolError("no HTTP request")
    refused = refuse(request)
    protocol.send_response(protocol.reject(*refused) if refused else protocol.accept(request))
    link._flush(deadline)
    if refused:
        raise AuthError(refused[1].strip())
    if protocol.handshake_exc is not None:
        raise ProtocolError(f"no request for a WebSocket: {protocol.handshake_exc}")
    return link


def connect(
    transport: SocketTransport, host: str, port: int, deadline: float, *, max_bytes: int, headers: Mapping[str, str]
) -> WebSocketLink:
    """The client's end of a new WebSocket.

    Args:
        transport: connected to `host` and `port`; owned from now on, closed when this fails.
        host: of the request.
        port: likewise.
        deadline: for the opening handshake.
        max_bytes: of a message from the server.
        headers: to send beside those of the protocol.

    Raises:
        AuthError: the server refused who we are.
        ConnectError: it speaks no WebSockets.
        DeadlineExceeded: it did not answer in time.
    """
    try:
        return _connect(transport, host, port, deadline, max_bytes=max_bytes, headers=headers)
    except ConnectionLost as error:
        transport.close()
        raise ConnectError(f"{host}:{port} closed the connection instead of opening a WebSocket ({error})") from error
    except BaseException:
        transport.close()
        raise


def _connect(
    transport: SocketTransport, host: str, port: int, deadline: float, *, max_bytes: int, headers: Mapping[str, str]
) -> WebSocketLink:
    shown = f"[{host}]" if ":" in host else host
    protocol = ClientProtocol(parse_uri(f"ws://{shown}:{port}/"), max_size=max_bytes)
    link = WebSocketLink(transport, protocol)
    request = protocol.connect()
    for name, value in headers.items():
        request.headers[name] = value
    protocol.send_request(request)
    link._flush(deadline)
    while protocol.handshake_exc is None and protocol.state is State.CONNECTING:
        link._read(deadline)
    response = link._frames.pop(0) if link._frames else None
    if protocol.handshake_exc is not None:
        raise _refusal(protocol.handshake_exc, response, shown, port)
    return link


def _refusal(error: Exception, response: object, host: str, port: int) -> ConnectError:
    if not isinstance(response, Response):
        return ConnectError(
            f"{host}:{port} closed, or said something else, instead of opening a WebSocket; does it speak openpi?"
        )
    status = response.status_code
    body = bytes(response.body or b"")[:300].decode(errors="replace").strip()
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AuthError(f"{host}:{port} refused this client ({status}): {body or error}")
    what = error if isinstance(error, InvalidHandshake) else type(error).__name__
    return ConnectError(f"{host}:{port} opens no WebSocket: {what}{body and f' ({body})'}; does it speak openpi?")


def _check(deadline: float) -> None:
    """DeadlineExceeded when it is over: a transport tells only while nothing comes, and pieces may come for ever."""
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("no whole message came before the deadline")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
