"""openpi's policy protocol: a WebSocket of msgpack messages with numpy arrays, one connection per robot.

The server's first message is its metadata. Then each binary message of the client is one observation, unbatched, by
name; the reply holds "actions" (K, D) float32, "server_timing" and "policy_timing" [ms]. A text message from the server
is the traceback of what went wrong; here the connection goes on after it, unless the request was no message.

Observations are matched with the policy's features by name, by the last part of a name ("/" or "." between), within
nested dicts, and where only one thing fits: `ObservationMapping`, as for tasks. What no feature needs is ignored.

Episodes: openpi's clients keep their `reset()` to themselves, so that to a server a new connection is all that begins
an episode. Our metadata offers more under "remote_env": an observation's key "__reset__" (true) begins one before it is
looked at, alone it does only that; "__episode__" (text) names which of the connection's episodes is meant.

Authentication, where the server asks for it, is the header `Authorization: Api-Key <token>`, which is what openpi's
client sends for its `api_key`. It travels as it is: use a tunnel.
"""

from __future__ import annotations

import hmac
import socket
import time
import traceback
from http import HTTPStatus
from typing import Any

import numpy as np
from gymnasium import spaces

from remote_env.errors import (
    AuthError,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    ProtocolError,
    RemoteEnvError,
)
from remote_env.policy.dialects import websocket_link
from remote_env.policy.dialects.openpi_client import connect
from remote_env.policy.dialects.openpi_messages import EPISODE_KEY, OURS, RESET_KEY, decode, encode
from remote_env.policy.dialects.peer import peer_address
from remote_env.policy.dialects.websocket_link import WebSocketLink
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.policy import ObservationBatch, PolicyMetadata
from remote_env.policy.server.service import PolicyService, ServeContext, ServedClient
from remote_env.transport import SocketTransport

__all__ = ["AUTHENTICATES", "connect", "serve"]

AUTHENTICATES = True
HANDSHAKE_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 60.0
GOODBYE_S = 1.0
MAX_DEPTH = 16  # of maps within an observation
_NORMAL, _GOING_AWAY, _INTERNAL_ERROR = 1000, 1001, 1011


def describe(metadata: PolicyMetadata) -> dict[str, Any]:
    """What our server says first."""
    return {
        "policy_name": metadata.name,
        "action_horizon": metadata.chunk_size,
        "action_dim": metadata.action_size,
        "observation_keys": list(metadata.observation),
        OURS: {"policy": metadata.to_plain(), "reset_key": RESET_KEY, "episode_key": EPISODE_KEY},
    }


def serve(sock: socket.socket, service: PolicyService, context: ServeContext) -> None:
    """Serve one client until its link ends; owns `sock`."""
    transport = SocketTransport(sock)
    try:
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        link = websocket_link.accept(
            transport, deadline, max_bytes=context.max_message_bytes, refuse=lambda request: _refuse(request, context)
        )
    except (AuthError, ProtocolError, ConnectionLost, DeadlineExceeded) as error:
        context.log(f"refused {peer_address(sock)} (openpi): {error}")
        transport.close()
        return
    except BaseException:
        transport.close()
        raise
    client = service.open_client(peer_address(sock), "openpi")
    try:
        _Conversation(link, client, context).run()
    finally:
        code, reason = (_GOING_AWAY, "the server stops") if context.stopping.is_set() else (_NORMAL, "")
        link.close(time.monotonic() + GOODBYE_S, code, reason)
        client.close()


def _refuse(request: Any, context: ServeContext) -> tuple[HTTPStatus, str] | None:
    if not context.require_token:
        return None
    values = request.headers.get_all("Authorization")
    given = values[0].encode("utf-8", "surrogateescape") if len(values) == 1 else b""
    if context.token is not None and hmac.compare_digest(given, f"Api-Key {context.token}".encode()):
        return None
    why = "a wrong token" if values else "no token"
    return HTTPStatus.UNAUTHORIZED, f"{why}: this server takes `Authorization: Api-Key <its token>`\n"


class _Conversation:
    """One client's requests, one after the other."""

    def __init__(self, link: WebSocketLink, client: ServedClient, context: ServeContext) -> None:
        self._link, self._client, self._context = link, client, context
        self._mapping: ObservationMapping | None = None
        self._seen: Any = None  # what the observation looked like that the mapping was made for
        self._previous_ms: float | None = None

    def run(self) -> None:
        try:
            self._link.send(encode(describe(self._client.metadata)), time.monotonic() + SEND_TIMEOUT_S)
            while not self._context.stopping.is_set():
                self._serve_one()
        except ConnectionLost:
            return
        except (ProtocolError, DeadlineExceeded) as error:
            self._log(f"its connection is closed: {error}")

    def _serve_one(self) -> None:
        data = self._link.receive(time.monotonic() + self._context.idle_timeout_s)
        began = time.perf_counter()
        try:
            reply: bytes | str = self._answer(data, began)
        except ProtocolError as error:
            self._say(_traceback(error))
            self._link.close(time.monotonic() + GOODBYE_S, _INTERNAL_ERROR, "not a message; see the frame before")
            raise
        except RemoteEnvError as error:
            self._log(f"no actions: {error}")  # what a model raised, the service has logged whole
            reply = _traceback(error)
        self._say(reply)
        self._previous_ms = 1000 * (time.perf_counter() - began)

    def _say(self, reply: bytes | str) -> None:
        self._link.send(reply, time.monotonic() + SEND_TIMEOUT_S)

    def _answer(self, data: bytes | str, began: float) -> bytes:
        try:
            batch, episode = self._read(data)
        except RemoteEnvError:
            self._client.count_error()
            raise
        if batch is None:
            return encode({"server_timing": self._timing(began)})
        infer_began = time.perf_counter()
        chunk = self._client.infer(batch, [episode])
        timing = {"infer_ms": 1000 * (time.perf_counter() - infer_began)}
        return encode({"actions": chunk[0], "policy_timing": timing, "server_timing": self._timing(began)})

    def _read(self, data: bytes | str) -> tuple[ObservationBatch | None, str]:
        """A message's observation, None when it only resets, and its episode, which was reset if it says so."""
        observation = read_observation(data)
        episode = observation.pop(EPISODE_KEY, "")
        if not isinstance(episode, str):
            raise InputError(f"{EPISODE_KEY} names an episode by a text; got {type(episode).__name__}")
        if is_true(RESET_KEY, observation.pop(RESET_KEY, False)):
            self._client.reset([episode])
            if not observation:
                return None, episode
        return self._batch(observation), episode

    def _timing(self, began: float) -> dict[str, float]:
        timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
        return timing if self._previous_ms is None else {**timing, "prev_total_ms": self._previous_ms}

    def _batch(self, observation: dict[str, Any]) -> ObservationBatch:
        arrays = to_arrays(observation)
        look = look_of(arrays)
        if self._mapping is None or look != self._seen:
            try:
                self._mapping = ObservationMapping.between(space_of(arrays), self._client.metadata)
            except ConfigError as error:
                raise InputError(str(error)) from error
            self._seen = look
        return self._mapping.batch([arrays])

    def _log(self, line: str) -> None:
        if not self._context.stopping.is_set():
            self._context.log(f"Client #{self._client.number}: {line}")


def read_observation(data: bytes | str) -> dict[str, Any]:
    """The observation in a message; ProtocolError when there is none in it."""
    observation = decode(data) if isinstance(data, bytes) else None
    if not isinstance(observation, dict) or not all(isinstance(name, str) for name in observation):
        raise ProtocolError("an observation is a binary message that holds a map with texts as keys")
    return observation


def is_true(name: str, value: Any) -> bool:
    """A key's value as what it says; InputError when it is neither true nor false."""
    if not isinstance(value, (bool, np.bool_, int)):
        raise InputError(f"{name} is true or false; got {type(value).__name__}")
    return bool(value)


def to_arrays(value: Any, depth: int = MAX_DEPTH) -> Any:
    """An observation with its lists of numbers and its numbers as arrays; texts and dicts stay.

    Raises:
        InputError: there is something else in it, or it nests more than `depth` maps.
    """
    if isinstance(value, dict):
        if not depth:
            raise InputError(f"an observation nests at most {MAX_DEPTH} maps; this one has more")
        return {name: to_arrays(part, depth - 1) for name, part in value.items()}
    if isinstance(value, (str, np.ndarray)):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"an observation holds a list that makes no array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"an observation holds arrays, numbers, texts and maps of them; got {type(value).__name__}")
    return array


def look_of(value: Any) -> Any:
    """What decides how an observation is mapped: names, shapes and dtypes."""
    if isinstance(value, dict):
        return tuple((name, look_of(part)) for name, part in value.items())
    return "" if isinstance(value, str) else (value.shape, value.dtype)


def space_of(value: Any) -> spaces.Space[Any]:
    """A space that an observation like this one is of."""
    if isinstance(value, dict):
        return spaces.Dict({str(name): space_of(part) for name, part in value.items()})
    if isinstance(value, str):
        return spaces.Text(1 << 16)
    low, high = (0, 1) if value.dtype.kind == "b" else _limits(value.dtype)
    return spaces.Box(low, high, value.shape, value.dtype.type)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def _traceback(error: BaseException) -> str:
    return str(getattr(error, "remote_traceback", "")) or "".join(traceback.format_exception_only(error))
