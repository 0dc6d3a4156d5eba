"""A policy at an openpi server, ours or anybody's: see `openpi` for the protocol."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from remote_env.errors import PolicyError, ProtocolError
from remote_env.policy.dialects import websocket_link
from remote_env.policy.dialects.foreign_server import ForeignPolicy
from remote_env.policy.dialects.openpi_messages import OURS, decode, encode
from remote_env.policy.dialects.websocket_link import WebSocketLink
from remote_env.policy.policy import Chunk, ObservationBatch, PolicyMetadata
from remote_env.policy.token_file import read_token
from remote_env.transport import connect_tcp

MAX_REPLY_BYTES = 64 << 20


def connect(
    host: str,
    port: int,
    *,
    token: str | None = None,
    timeout_s: float = 60.0,
    reconnect_timeout_s: float = 30.0,
    chunk_size: int | None = None,
    metadata: PolicyMetadata | None = None,
    keys: Mapping[str, str] | None = None,
    **_: Any,
) -> OpenpiPolicy:
    """The policy at an openpi server: ours, openpi's own, or anybody's that speaks it.

    Args:
        host: where it listens.
        port: likewise.
        token: the server's, sent as an API key; None takes REMOTE_ENV_TOKEN, or what a server on this machine left.
        timeout_s: until a call fails [s].
        reconnect_timeout_s: for how long a broken connection is tried again [s].
        chunk_size: the most actions that a reply gives; None takes all.
        metadata: of the policy; None takes what the server says, which only ours does in full. Without any, whatever
            features are given are sent, and the number and size of actions is that of the first reply.
        keys: feature -> the name that the server knows it by; others keep theirs.

    Raises:
        AuthError: the server refused the token, or there was none.
        ConnectError: nothing answers there, or it speaks no WebSockets.
        ProtocolError: its first message is none of openpi's.
    """
    policy = OpenpiPolicy(
        host,
        port,
        token if token is not None else _find_token(host, port),
        metadata,
        timeout_s=timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        chunk_size=chunk_size,
        keys=keys or {},
    )
    policy.open()
    return policy


def _find_token(host: str, port: int) -> str | None:
    return os.environ.get("REMOTE_ENV_TOKEN") or (read_token(port) if _is_loopback(host) else None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class OpenpiPolicy(ForeignPolicy[WebSocketLink]):
    """See `connect`.

    Attributes:
        server_metadata: what the server said first.
    """

    def __init__(
        self,
        host: str,
        port: int,
        token: str | None,
        metadata: PolicyMetadata | None,
        *,
        timeout_s: float,
        reconnect_timeout_s: float,
        chunk_size: int | None,
        keys: Mapping[str, str],
    ) -> None:
        super().__init__(
            f"openpi://{host}:{port}",
            metadata,
            timeout_s=timeout_s,
            reconnect_timeout_s=reconnect_timeout_s,
            chunk_size=chunk_size,
        )
        self.server_metadata: dict[str, Any] = {}
        self._host, self._port, self._keys, self._is_given = host, port, dict(keys), metadata is not None
        self._headers = {"Authorization": f"Api-Key {token}"} if token else {}
        self._control: dict[str, str] = {}  # names of our keys where the server knows them
        self._beginning: set[str] = set()  # episodes that a reset has not been sent for

    def _open(self, deadline: float) -> WebSocketLink:
        transport = connect_tcp(self._host, self._port, deadline)
        link = websocket_link.connect(
            transport, self._host, self._port, deadline, max_bytes=MAX_REPLY_BYTES, headers=self._headers
        )
        try:
            first = link.receive(deadline)
            said = decode(first) if isinstance(first, bytes) else None
            if not isinstance(said, dict):
                raise ProtocolError(f"{self._address} said no metadata first, as openpi's servers do: {first[:200]!r}")
            self._learn_metadata(said)
        except BaseException:
            link.close()
            raise
        return link

    def _learn_metadata(self, said: dict[str, Any]) -> None:
        self.server_metadata = said
        ours = said.get(OURS)
        if not isinstance(ours, dict) or not isinstance(ours.get("policy"), dict):
            return
        self._control = {"reset": str(ours.get("reset_key", "")), "episode": str(ours.get("episode_key", ""))}
        if self._is_given:
            return
        try:
            metadata = PolicyMetadata.from_plain(ours["policy"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"{self._address} sent metadata of no policy: {error!r}") from error
        size = metadata.chunk_size if self._chunk_size is None else min(metadata.chunk_size, self._chunk_size)
        self.metadata = replace(metadata, chunk_size=size)

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """See `Policy.infer`; the rows are asked for one after the other, since the protocol knows no batches.

        Raises:
            InputError: the rows do not fit the episodes; nothing was sent.
            PolicyError: the server sent a traceback (`remote_traceback`), or no actions.
            ConnectionLost: the connection broke and could not be made again in time.
            DeadlineExceeded: no reply came in time.
        """
        rows = self._rows(observation, episode_ids)
        chunks = [self._infer_one(_row(observation, row, self._keys), episode_ids[row]) for row in range(rows)]
        if len({chunk.shape for chunk in chunks}) > 1:
            raise PolicyError(f"{self._address} gave chunks of different sizes: {[chunk.shape for chunk in chunks]}")
        return chunks[0] if rows == 1 else np.concatenate(chunks)

    def _infer_one(self, observation: dict[str, Any], episode: str) -> Chunk:
        reply = self._call(self._with_control(observation, episode))
        self._beginning.discard(episode)
        actions = reply.get("actions") if isinstance(reply, dict) else None
        if not isinstance(actions, np.ndarray) or actions.ndim not in (1, 2) or actions.dtype.kind not in "fiu":
            found = sorted(map(str, reply)) if isinstance(reply, dict) else type(reply).__name__
            raise PolicyError(f"{self._address} replied without 'actions' (K, D); its reply holds {found}")
        return self._finish(np.atleast_2d(actions)[None], 1)

    def _with_control(self, observation: dict[str, Any], episode: str) -> dict[str, Any]:
        if not self._control:
            return observation
        control: dict[str, Any] = {self._control["episode"]: episode}
        if episode in self._beginning:
            control[self._control["reset"]] = True
        return {**observation, **control}

    def _ask(self, link: WebSocketLink, request: dict[str, Any], deadline: float) -> Any:
        link.send(encode(request), deadline)
        reply = link.receive(deadline)
        if isinstance(reply, str):
            raise PolicyError(f"the policy at {self._address} failed: {_cause(reply)}", remote_traceback=reply)
        return decode(reply)

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """Episodes begin anew at our server; others have nothing for it, as openpi's own client knows."""
        if not self._control:
            return
        if episode_ids is not None:
            self._beginning.update(episode_ids)
            return
        with self._mutex:
            self._drop()  # a new connection has no episodes yet
        self._beginning.clear()


def _row(observation: ObservationBatch, row: int, keys: Mapping[str, str]) -> dict[str, Any]:
    return {keys.get(name, name): value[row] for name, value in observation.items()}


def _cause(text: str) -> str:
    """What a traceback ends with: the exception and what it says, which may be several lines."""
    lines = text.strip().rpartition("Traceback (most recent call last):\n")[2].split("\n")
    while len(lines) > 1 and lines[0].startswith(" "):
        del lines[0]
    return "\n".join(lines)
