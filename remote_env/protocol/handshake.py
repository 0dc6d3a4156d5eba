"""Mutual proof of the token, and the JSON bodies of link messages (docs/protocol.md, "Handshake").

Standard library only: the supervisor speaks it. The token itself never crosses the wire.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import secrets
from typing import Any, NoReturn

from remote_env.errors import AuthError, ConnectError, ProtocolError, RemoteEnvError, SessionLost, VersionMismatch
from remote_env.protocol import frames

NONCE_BYTES = 32
TOKEN_BYTES = 32
_NONCE = re.compile(f"[0-9a-f]{{{2 * NONCE_BYTES}}}")
MAX_LINK_DEPTH = 32  # of objects and arrays in a link message
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


def session_key(token: str, session: str, client_nonce: str, server_nonce: str) -> str:
    """The secret of a session, hex, which both ends derive and neither sends.

    Args:
        token: the shared secret.
        session: its id.
        client_nonce: of the control connection that opened it.
        server_nonce: likewise.
    """
    text = "\0".join(("remote-env", str(frames.VERSION), "session", session, client_nonce, server_nonce))
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def session_proof(key: str, role: str, client_nonce: str, server_nonce: str, session: str) -> str:
    """HMAC-SHA256, keyed by a session's secret, by which a client shows that the session is its own; hex."""
    text = "\0".join(("remote-env", str(frames.VERSION), "client", role, client_nonce, server_nonce, session))
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def is_proof(given: object, token: str, side: str, role: str, client_nonce: str, server_nonce: str) -> bool:
    """Whether `given` is that side's proof, compared in constant time."""
    return _is_equal(given, proof(token, side, role, client_nonce, server_nonce))


def _is_equal(given: object, expected: str) -> bool:
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(given, expected)


def pack_link(kind: int, message: dict[str, Any], *, sequence: int = 0) -> bytearray:
    """A link message's frame."""
    return frames.pack_frame(kind, json.dumps(message).encode(), sequence=sequence)


def parse_link(body: bytes) -> dict[str, Any]:
    """A link message's body.

    Raises:
        ProtocolError: it is not one JSON object in UTF-8; or a key comes twice in it, a number is none or beyond 64
            bits, or it nests deeper than `MAX_LINK_DEPTH`. A text may hold half a surrogate pair, escaped.
    """
    try:
        message = json.loads(str(body, "utf-8"), **_HOOKS)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a link message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a link message is a JSON {type(message).__name__}, not an object")
    _check_depth(message)
    return message


def _check_depth(message: dict[str, Any]) -> None:
    layer: list[Any] = [message]
    for _ in range(MAX_LINK_DEPTH):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return
    raise ProtocolError(f"a link message nests deeper than {MAX_LINK_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key comes twice")
    return made


def _whole(text: str) -> int:
    # Python's own bound is on digits, and old releases have none.
    if len(text) > 20 or not -(1 << 63) <= (number := int(text)) < 1 << 64:
        raise ValueError(f"the integer {text[:24]} has more than 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:24]} is beyond float64")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_HOOKS: Any = {
    "object_pairs_hook": _unique,
    "parse_int": _whole,
    "parse_float": _finite,
    "parse_constant": _refuse_constant,
}


class ClientHandshake:
    """The client's half: `hello()` to send, then `answer()` to the CHALLENGE, then `finish()` on the WELCOME.

    Args:
        token: the shared secret.
        role: of the connection.
        key: the secret of the session that the connection belongs to, when it has one already.
        fields: what else is in HELLO; with `key` the session's id is among them.
    """

    def __init__(self, token: str, role: str, *, key: str | None = None, **fields: Any) -> None:
        self._token, self._role, self._key, self._fields = token, role, key, fields
        self._nonce = new_nonce()
        self._server_nonce = ""

    def hello(self) -> bytearray:
        """The HELLO frame."""
        return pack_link(frames.HELLO, {"role": self._role, "nonce": self._nonce, **self._fields})

    def answer(self, kind: int, message: dict[str, Any]) -> bytearray:
        """The PROOF frame that answers a CHALLENGE.

        Raises:
            AuthError: the server could not prove that it has our token, so it gets no proof of ours.
        """
        _expect_of_server(frames.CHALLENGE, kind, message)
        self._server_nonce = server_nonce = str(message.get("nonce", ""))
        if not _NONCE.fullmatch(server_nonce):
            raise ProtocolError("a CHALLENGE whose nonce is not 64 hexadecimal digits")
        if not is_proof(message.get("proof"), self._token, "server", self._role, self._nonce, server_nonce):
            raise AuthError(
                "the server does not have this token: either the token is for another server, or something "
                "else listens there; check the port, and the token file or REMOTE_ENV_TOKEN"
            )
        proofs = {"proof": proof(self._token, "client", self._role, self._nonce, server_nonce)}
        if self._key is not None:
            session = str(self._fields["session"])
            proofs["session_proof"] = session_proof(self._key, self._role, self._nonce, server_nonce, session)
        return pack_link(frames.PROOF, proofs)

    def finish(self, kind: int, message: dict[str, Any]) -> dict[str, Any]:
        """The WELCOME's fields; the server's refusal as the error it names."""
        _expect_of_server(frames.WELCOME, kind, message)
        return message

    def derive_key(self, session: str) -> str:
        """The secret of the session that this connection has opened."""
        return session_key(self._token, session, self._nonce, self._server_nonce)


def _expect_of_server(wanted: int, kind: int, message: dict[str, Any]) -> None:
    if kind == frames.REFUSED:
        raise refusal(message)
    _expect(wanted, kind)


def _expect(wanted: int, kind: int) -> None:
    if kind != wanted:
        raise ProtocolError(f"expected {frames.NAMES[wanted]}, got {frames.NAMES.get(kind, kind)}")


def refusal(message: dict[str, Any]) -> RemoteEnvError:
    """The error that a REFUSED message names."""
    kinds = {"auth": AuthError, "version": VersionMismatch, "protocol": ProtocolError, "ended": SessionLost}
    kind = str(message.get("kind"))
    details = {"cut_off": message["cut_off"]} if isinstance(message.get("cut_off"), list) else {}
    return kinds.get(kind, ConnectError)(str(message.get("message", "the server refused")), kind=kind, **details)


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
        self._session_proof: object = None
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
        _expect(frames.PROOF, kind)
        nonce, role = self._hello["nonce"], self._hello["role"]
        if not is_proof(message.get("proof"), self._token, "client", role, nonce, self._nonce):
            raise AuthError("the token is wrong; use the one in the server's token file or REMOTE_ENV_TOKEN")
        self._session_proof = message.get("session_proof")
        self.done = True
        return None

    def derive_key(self, session: str) -> str:
        """The secret of the session that this connection opens."""
        return session_key(self._token, session, self.hello["nonce"], self._nonce)

    def owns(self, session: str, key: str) -> bool:
        """Whether the client has proved to have that session's secret, compared in constant time."""
        hello = self.hello
        return _is_equal(self._session_proof, session_proof(key, hello["role"], hello["nonce"], self._nonce, session))

    def _challenge(self, kind: int, message: dict[str, Any]) -> bytearray:
        _expect(frames.HELLO, kind)
        role, nonce = message.get("role"), message.get("nonce")
        if role not in self._roles or not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            advice = "" if role in self._roles else _advice(role)
            raise ProtocolError(f"HELLO needs a role of {self._roles} and a nonce of 64 hex digits{advice}")
        self._hello = message
        mine = proof(self._token, "server", role, nonce, self._nonce)
        return pack_link(frames.CHALLENGE, {"nonce": self._nonce, "proof": mine})
