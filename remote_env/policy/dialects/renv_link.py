"""One connection to a policy server that speaks renv: token, handshake, and what else may listen there."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from remote_env.errors import (
    AuthError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    VersionMismatch,
)
from remote_env.policy.dialects.renv_features import infer_codec
from remote_env.policy.policy import PolicyMetadata
from remote_env.policy.token_file import MIN_TOKEN_LENGTH, read_token, token_path
from remote_env.protocol import frames
from remote_env.protocol.frames import FrameStream
from remote_env.protocol.handshake import POLICY_ROLE, ClientHandshake, parse_link
from remote_env.transport import SocketTransport, connect_tcp

HANDSHAKE_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 5.0
STALL_S = 20.0  # for more of a message that has begun
MIN_MESSAGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Welcome:
    """What a policy server says of itself, checked.

    Attributes:
        metadata: of its policy.
        instance: names this run of the server.
        resumed: whether it knew this client.
        coders: what it can decode.
        max_message_bytes: of a request's arrays.
        clients: how many others it has.
    """

    metadata: PolicyMetadata
    instance: str
    resumed: bool
    coders: tuple[str, ...]
    max_message_bytes: int
    clients: int

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Welcome:
        """The fields of a WELCOME; ProtocolError when one is missing or of another kind."""
        try:
            welcome = cls(
                metadata=PolicyMetadata.from_plain(plain["metadata"]),
                instance=str(plain["instance"]),
                resumed=bool(plain["resumed"]),
                coders=tuple(map(str, plain.get("coders", ("raw",)))),
                max_message_bytes=max(int(plain.get("max_message_bytes", frames.MAX_PAYLOAD_SIZE)), MIN_MESSAGE_BYTES),
                clients=int(plain.get("clients", 0)),
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ProtocolError(f"the server's WELCOME is not one of a policy server ({error!r:.300})") from error
        infer_codec(welcome.metadata, welcome.max_message_bytes)  # refuses features that no message holds
        return welcome


@dataclass(frozen=True)
class Link:
    """An authenticated connection.

    Attributes:
        transport: the bytes.
        stream: the frames over it.
        welcome: what the server said.
    """

    transport: SocketTransport
    stream: FrameStream
    welcome: Welcome


def find_token(host: str, port: int, token: str | None) -> str:
    """The token to prove: the one given, else `REMOTE_ENV_TOKEN`, else the file of a server on this machine.

    Raises:
        ConfigError: there is none, or it is too short to be one; the message says how to get it.
        ConnectError: there is none, and no server either.
    """
    given = token or os.environ.get("REMOTE_ENV_TOKEN") or read_token(port)
    if not given:
        connect_tcp(host, port, time.monotonic() + PROBE_TIMEOUT_S).close()  # what is not there needs no token
        there = f"~/.cache/remote-env/policies/{port}.token"
        raise ConfigError(
            f"no token for the policy server at {host}:{port}: token= is not given, REMOTE_ENV_TOKEN is not set, and "
            f"{token_path(port)} is not there, which a server of this account on this machine would have written. For "
            f"a server elsewhere: export REMOTE_ENV_TOKEN=$(ssh {'HOST' if is_near(host) else host} cat '{there}'), "
            "with the port that the server itself listens on"
        )
    if len(given) < MIN_TOKEN_LENGTH:
        raise ConfigError(f"the token for {host}:{port} has {len(given)} characters; one has at least 32")
    return given


def is_near(host: str) -> bool:
    """Whether `host` is this machine, going by its name (or the near end of a tunnel: that cannot be told)."""
    return host in ("localhost", "::1", "") or host.startswith("127.")


def open_link(host: str, port: int, token: str, client: str, deadline: float) -> Link:
    """Connect and prove the token to each other.

    Raises:
        ConnectError: nothing answers there, it is no policy server of ours, or it refused.
        AuthError: one end does not have the other's token.
        VersionMismatch: it speaks another version.
    """
    where = f"{host}:{port}"
    transport = connect_tcp(host, port, deadline)
    stream = FrameStream(transport, clock=time.monotonic, stall_s=STALL_S)
    try:
        return Link(transport, stream, _shake_hands(stream, token, client, deadline))
    except AuthError as error:
        transport.close()
        raise AuthError(
            f"the policy server at {where}: {error.message}. token= goes first, then REMOTE_ENV_TOKEN, then "
            f"{token_path(port)}"
        ) from error
    except (VersionMismatch, ConnectError):
        transport.close()
        raise
    except (ProtocolError, ConnectionLost, DeadlineExceeded) as error:
        heard = stream.unread
        transport.close()
        raise ConnectError(f"{where} does not answer as a policy server does: {_guess(where, heard, error)}") from error
    except BaseException:
        transport.close()
        raise


def _shake_hands(stream: FrameStream, token: str, client: str, deadline: float) -> Welcome:
    handshake = ClientHandshake(token, POLICY_ROLE, client=client)
    until = min(deadline, time.monotonic() + HANDSHAKE_TIMEOUT_S)
    stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_LINK_BODY_SIZE
    stream.send(handshake.hello(), until)
    stream.send(handshake.answer(*_recv_link(stream, until)), until)
    welcome = Welcome.from_plain(handshake.finish(*_recv_link(stream, until)))
    stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_BODY_SIZE
    return welcome


def _recv_link(stream: FrameStream, deadline: float) -> tuple[int, dict[str, Any]]:
    header = stream.recv(deadline)
    return header.type, parse_link(stream.body_bytes())


def _guess(where: str, heard: bytes, error: Exception) -> str:
    """What listens there instead, by the first bytes that it sent."""
    if heard.startswith(b"HTTP/"):
        return f"that port speaks HTTP or WebSocket; for openpi's dialect write openpi://{where}"
    if len(heard) >= 4 and heard[:2] == b"\0\0" and heard[3] == 4:  # an HTTP/2 SETTINGS frame
        return f"that port speaks HTTP/2, as gRPC does; for lerobot's dialect write lerobot://{where}"
    if len(heard) >= 5 and heard[4] == 0x80:  # a length, then a pickle
        return f"that port speaks length-prefixed pickle; write ilstudio://{where}"
    if heard.startswith(b"SSH-"):
        return "that port is an SSH server's; name the policy server's own port"
    if heard:
        return f"it sent {heard[:16]!r} ({error})"
    return f"{error}; if a server of another dialect listens there, write so: ilstudio://{where}, openpi://{where}, …"
