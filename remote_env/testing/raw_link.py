"""Frames and proofs, written from docs/protocol.md alone: what speaks here shares no code with what it checks."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
import zlib
from typing import Any, NamedTuple

from remote_env.testing.checks import CheckFailed, expect

VERSION = 2
HEADER = struct.Struct("<4sBBHIIQQII")  # magic, version, type, flags, epoch, crc, sequence, acknowledged, body, payload
HELLO, CHALLENGE, PROOF, WELCOME, REFUSED = 1, 2, 3, 4, 5
STATUS, LOGS, PING, LEAVE, REPLY, EVENT = 16, 17, 19, 23, 24, 25
READY, RESET, STEP, GET_STATE, RENDER, CALL, CLOSE, RESUMED = 32, 33, 34, 36, 40, 41, 43, 45
RESULT, ERROR = 64, 65
FIXED, STATE, TAIL, WANT_STATE = 1, 2, 4, 8
MAX_BODY_SIZE, MAX_PAYLOAD_SIZE = 64 << 20, 1 << 30
NAMES = {
    value: name
    for name, value in list(globals().items())
    if name.isupper() and isinstance(value, int) and value < 128 and name not in ("VERSION", "FIXED", "STATE", "TAIL")
}
PATIENCE_S = 20.0


class Frame(NamedTuple):
    """A frame that arrived, checked against docs/protocol.md, "Frames".

    Attributes:
        type: one of the message types.
        flags: bits of FIXED, STATE, TAIL, WANT_STATE.
        epoch: of the session; 0 in link messages.
        sequence: of the request.
        acknowledged: the last reply that its sender has received; a reply's own number.
        body: its bytes.
        payload: its bytes.
        raw: all of it, as it came.
    """

    type: int
    flags: int
    epoch: int
    sequence: int
    acknowledged: int
    body: bytes
    payload: bytes
    raw: bytes

    @property
    def name(self) -> str:
        """Of its type."""
        return NAMES.get(self.type, f"a message of type {self.type}")

    @property
    def fields(self) -> dict[str, Any]:
        """A link message's JSON object."""
        try:
            fields = json.loads(self.body)
        except ValueError as error:
            raise CheckFailed(f"the body of {self.name} is not JSON: {self.body[:80]!r}") from error
        expect(isinstance(fields, dict), f"the body of {self.name} is no JSON object: {self.body[:80]!r}")
        return dict(fields)


def pack(
    kind: int,
    body: bytes = b"",
    payload: bytes = b"",
    *,
    flags: int = 0,
    epoch: int = 0,
    sequence: int = 0,
    acknowledged: int = 0,
    version: int = VERSION,
) -> bytes:
    """One whole frame."""
    sizes = (sequence, acknowledged, len(body), len(payload))
    bare = HEADER.pack(b"RENV", version, kind, flags, epoch, 0, *sizes)
    return HEADER.pack(b"RENV", version, kind, flags, epoch, zlib.crc32(bare + body), *sizes) + body + payload


def pack_link(kind: int, fields: dict[str, Any], *, sequence: int = 0, version: int = VERSION) -> bytes:
    """A link message."""
    return pack(kind, json.dumps(fields).encode(), sequence=sequence, version=version)


def announce(kind: int, body_size: int, payload_size: int = 0, *, epoch: int = 0, sequence: int = 0) -> bytes:
    """A header alone, which promises what does not come."""
    return HEADER.pack(b"RENV", VERSION, kind, 0, epoch, 0, sequence, 0, body_size, payload_size)


def prove(key: str, *parts: str) -> str:
    """HMAC-SHA256 over the parts joined by zero bytes, in hex."""
    text = "\0".join(("remote-env", str(VERSION), *parts))
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def new_nonce() -> str:
    """64 hexadecimal digits."""
    return secrets.token_hex(32)


class RawLink:
    """A connection on which the checker says what it likes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self._sock = sock

    def __enter__(self) -> RawLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, also for a thread that waits on it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def send(self, data: bytes) -> None:
        """Send these bytes; CheckFailed when the peer takes them no more."""
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise CheckFailed(f"the connection took no more bytes: {error}") from error

    def send_quietly(self, data: bytes) -> None:
        """Send these bytes as far as the peer takes them: it may close in mid-message."""
        try:
            self._sock.sendall(data)
        except OSError:
            return

    def exchange_text(self, request: bytes) -> bytes:
        """All that comes until the end, of what is no frame."""
        self.send(request)
        response = b""
        while chunk := self._exactly(1, "a response"):
            response += chunk
        return response

    def recv(self, what: str = "a frame") -> Frame:
        """The next frame; CheckFailed when the connection ends or nothing comes instead."""
        frame = self.recv_or_end(what)
        if frame is None:
            raise CheckFailed(f"the connection was closed where {what} was due")
        return frame

    def recv_or_end(self, what: str = "a frame or the end") -> Frame | None:
        """The next frame; None at the stream's end."""
        head = self._exactly(HEADER.size, what)
        if head is None:
            return None
        magic, version, kind, flags, epoch, crc, sequence, acknowledged, body_size, payload_size = HEADER.unpack(head)
        expect(magic == b"RENV", f"{what} begins with {magic!r}, not b'RENV'")
        expect(version == VERSION, f"{what} is of version {version}, not {VERSION}")
        expect(flags < 16, f"flags {flags:#x}, of which only the lowest four bits have a meaning")
        expect(
            body_size <= MAX_BODY_SIZE and payload_size <= MAX_PAYLOAD_SIZE, f"{body_size} + {payload_size} bytes in it"
        )
        body = self._exactly(body_size, what)
        payload = self._exactly(payload_size, what)
        if body is None or payload is None:
            return None
        unsealed = head[:12] + bytes(4) + head[16:] + body
        expect(zlib.crc32(unsealed) == crc, f"the CRC32 of {NAMES.get(kind, kind)} does not match its header and body")
        return Frame(kind, flags, epoch, sequence, acknowledged, body, payload, head + body + payload)

    def _exactly(self, count: int, what: str) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            try:
                chunk = self._sock.recv(min(count - len(data), 1 << 20))
            except TimeoutError as error:
                raise CheckFailed(f"{what} did not come within {PATIENCE_S:g} s") from error
            except OSError:
                return None
            if not chunk:
                return None
            data += chunk
        return bytes(data)

    def expect_type(self, kind: int) -> Frame:
        """The next frame, which must be of this type."""
        frame = self.recv(NAMES[kind])
        told = f": {frame.fields.get('message')}" if frame.type == REFUSED else ""
        expect(frame.type == kind, f"{frame.name} came where {NAMES[kind]} was due{told}")
        return frame

    def expect_refusal(self, *kinds: str) -> dict[str, Any]:
        """The REFUSED that must come, and the end behind it."""
        fields = self.expect_type(REFUSED).fields
        expect(fields.get("kind") in kinds, f"REFUSED has the kind {fields.get('kind')!r}, not {' or '.join(kinds)}")
        expect(isinstance(fields.get("message"), str) and fields["message"], "REFUSED says nothing in `message`")
        self.expect_end("after REFUSED")
        return fields

    def expect_end(self, when: str) -> None:
        """The connection must end, after whatever was on its way before."""
        until = time.monotonic() + PATIENCE_S
        while self.recv_or_end(f"the end {when}") is not None:
            expect(time.monotonic() < until, f"the connection goes on {when}")

    def expect_end_without(self, *kinds: int, when: str) -> None:
        """The connection must end, and no frame of these types come before."""
        while (frame := self.recv_or_end(f"the end {when}")) is not None:
            expect(frame.type not in kinds, f"{frame.name} came {when}")
