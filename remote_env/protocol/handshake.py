"""Mutual proof of the token, and the JSON bodies of link messages (docs/protocol.md, "Handshake").

Standard library only: the supervisor speaks it. The token itself never crosses the wire.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from typing import Any

from remote_env.errors import AuthError, ConnectError, ProtocolError, RemoteEnvError, VersionMismatch
from remote_env.protocol import frames

NONCE_BYTES = 32
TOKEN_BYTES = 32
ROLES = ("control", "data")  # of the connections to a task server
POLICY_ROLE = "policy"  # of those to a policy server


def new_token() -> str:
    """A fresh token: 64 hex digits."""
    return secrets.token_hex(TOKEN_BYTES)


def new_nonce() -> str:
    """A fresh nonce: 64 hex digits."""
    return secrets.token_hex(NONCE_BYTES)


def proof(token: str, side: str, role: str, client_nonce: str, server_nonce: str) -> str:
    """HMAC-SHA256 (RFC 2104), keyed by the token, over who proves what to whom; hex.

    Args:
        token: the shared secret.
        side: "client" or "server", so that neither can send the other's proof back.
        role: "control", "data" or "policy".
        client_nonce: as the client sent it in HELLO.
        server_nonce: as the server sent it in CHALLENGE.
    """
    text = "\0".join(("remote-env", str(frames.VERSION), side, role, client_nonce, server_nonce))
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def is_proof(given: object, token: str, side: str, role: str, client_nonce: str, server_nonce: str) -> bool:
    """Whether `given` is that side's proof, compared in constant time."""
    expected = proof(token, side, role, client_nonce, server_nonce)
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(given, expected)


def pack_link(kind: int, message: dict[str, Any], *, sequence: int = 0) -> bytearray:
    """A link message's frame."""
    return frames.pack_frame(kind, json.dumps(message).encode(), sequence=sequence)


def parse_link(body: bytes) -> dict[str, Any]:
    """A link message's body; ProtocolError when it is not a JSON object."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a link message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a link message is a JSON {type(message).__name__}, not an object")
    return message


class ClientHandshake:
    """The client's half: `hello()` to send, then `answer()` to the CHALLENGE, then `finish()` on the WELCOME."""

    def __init__(self, token: str, role: str, **fields: Any) -> None:
        self._token, self._role, self._fields = token, role, fields
        self._nonce = new_nonce()

    def hello(self) -> bytearray:
        """The HELLO frame."""
        return pack_link(frames.HELLO, {"role": self._role, "nonce": self._nonce, **self._fields})

    def answer(self, kind: int, message: dict[str, Any]) -> bytearray:
        """The PROOF frame that answers a CHALLENGE.

        Raises:
            AuthError: the server could not prove that it has our token, so it gets no proof of ours.
        """
        _expect(frames.CHALLENGE, kind, message)
        server_nonce = str(message.get("nonce", ""))
        if not is_proof(message.get("proof"), self._token, "server", self._role, self._nonce, server_nonce):
            raise AuthError(
                "the server does not have this token: either the token is for another server, or something "
                "else listens there; check the port, and the token file or REMOTE_ENV_TOKEN"
            )
        mine = proof(self._token, "client", self._role, self._nonce, server_nonce)
        return pack_link(frames.PROOF, {"proof": mine})

    def finish(self, kind: int, message: dict[str, Any]) -> dict[str, Any]:
        """The WELCOME's fields; the server's refusal as the error it names."""
        _expect(frames.WELCOME, kind, message)
        return message


def _expect(wanted: int, kind: int, message: dict[str, Any]) -> None:
    if kind == frames.REFUSED:
        raise refusal(message)
    if kind != wanted:
        raise ProtocolError(f"expected {frames.NAMES[wanted]}, got {frames.NAMES.get(kind, kind)}")


def refusal(message: dict[str, Any]) -> RemoteEnvError:
    """The error that a REFUSED message names."""
    kinds = {"auth": AuthError, "version": VersionMismatch, "protocol": ProtocolError}
    kind = str(message.get("kind"))
    return kinds.get(kind, ConnectError)(str(message.get("message", "the server refused")), kind=kind)


def _advice(role: object) -> str:
    """What a client that knocked at the wrong kind of server should hear."""
    if role == POLICY_ROLE:
        return "; this is a task server, and the client asks for a policy: check the port"
    return "; this is a policy server, and the client asks for a task: check the port" if role in ROLES else ""


class ServerHandshake:
    """The server's half, fed with one frame at a time.

    Args:
        token: the shared secret.
        roles: those that this kind of server takes.
    """

    def __init__(self, token: str, roles: tuple[str, ...] = ROLES) -> None:
        self._token, self._roles = token, roles
        self._nonce = new_nonce()
        self._hello: dict[str, Any] | None = None
        self.done = False

    @property
    def hello(self) -> dict[str, Any]:
        """The client's HELLO fields; only to be believed when `done`."""
        return self._hello or {}

    def feed(self, kind: int, message: dict[str, Any]) -> bytearray | None:
        """The frame to send back, or None when the client has proved itself (`done`).

        Raises:
            AuthError: the client's proof is wrong.
            ProtocolError: another message than the one that is due, or a field missing.
        """
        if self._hello is None:
            return self._challenge(kind, message)
        _expect(frames.PROOF, kind, message)
        nonce, role = self._hello["nonce"], self._hello["role"]
        if not is_proof(message.get("proof"), self._token, "client", role, nonce, self._nonce):
            raise AuthError("the token is wrong; use the one in the server's token file or REMOTE_ENV_TOKEN")
        self.done = True
        return None

    def _challenge(self, kind: int, message: dict[str, Any]) -> bytearray:
        _expect(frames.HELLO, kind, message)
        role, nonce = message.get("role"), message.get("nonce")
        digits = 2 * NONCE_BYTES
        if role not in self._roles or not isinstance(nonce, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", nonce):
            advice = "" if role in self._roles else _advice(role)
            raise ProtocolError(f"HELLO needs a role of {self._roles} and a nonce of {digits} hex digits{advice}")
        self._hello = message
        mine = proof(self._token, "server", role, nonce, self._nonce)
        return pack_link(frames.CHALLENGE, {"nonce": self._nonce, "proof": mine})
