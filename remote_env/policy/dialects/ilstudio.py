"""IL-Studio's policy protocol: 4 bytes of length (big-endian), then a pickle, both ways, without a handshake.

A request is one `MetaObs`, single or batched. The reply to a single one is a list of K `MetaAction`; to a batched one a
list of K object arrays (B,) of dicts with `MetaAction`'s four fields. An empty list says that the inference failed; its
cause stands in the server's log. Pickles are read by `restricted_pickle`: of classes, `MetaObs` and `MetaAction` alone,
whatever module the peer has them in; what is sent names them by the module that the peer named, `benchmark.base` until
it has.

Nobody is authenticated here, nor anything encrypted: for loopback, a tunnel, or a network that one trusts.

The protocol knows no episodes. At the server a timestep of 0 begins one in its row of its connection. The client sends
as timestep how many actions it was given since the row's episode was reset.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from remote_env.errors import ConnectionLost, DeadlineExceeded, MessageTooBig, ProtocolError, RemoteEnvError
from remote_env.policy.dialects.foreign_server import ForeignPolicy
from remote_env.policy.dialects.ilstudio_messages import (
    EMPTY_REPLY,
    MAX_REPLY_BYTES,
    MODULE,
    Request,
    read_request,
    to_meta,
    write_reply,
    write_request,
)
from remote_env.policy.dialects.ilstudio_repeated import ReplyReader
from remote_env.policy.dialects.peer import peer_address
from remote_env.policy.meta import MetaObs
from remote_env.policy.observation import from_meta
from remote_env.policy.policy import Chunk, ObservationBatch, PolicyMetadata
from remote_env.policy.server.service import PolicyService, ServeContext, ServedClient
from remote_env.transport import SocketTransport, connect_tcp

AUTHENTICATES = False
MESSAGE_TIMEOUT_S = 60.0  # for a message that has begun
_LENGTH = struct.Struct(">I")
_PIECE = 1 << 20


def send_message(transport: SocketTransport, data: bytes, deadline: float) -> None:
    """Send one message; as `SocketTransport.send_all`."""
    transport.send_all([_LENGTH.pack(len(data)), data], deadline)


def receive_message(transport: SocketTransport, deadline: float, max_bytes: int) -> bytearray:
    """The next message; it may take at most `MESSAGE_TIMEOUT_S` once it has begun.

    Raises:
        MessageTooBig: more than `max_bytes` are announced; nothing of them was read.
        ConnectionLost: the stream ended or broke.
        DeadlineExceeded: nothing came in time, or not all.
    """
    head = bytearray(_LENGTH.size)
    transport.recv_exactly_into(memoryview(head), deadline)
    size: int = _LENGTH.unpack(head)[0]
    if size > max_bytes:
        raise MessageTooBig(f"a message of {size} bytes is announced; at most {max_bytes} are taken")
    deadline = min(deadline, time.monotonic() + MESSAGE_TIMEOUT_S)
    data = bytearray()
    while len(data) < size:  # memory is taken as the bytes come, not as they are announced
        done = len(data)
        data += bytes(min(max(_PIECE, done), size - done))
        with memoryview(data) as view:
            transport.recv_exactly_into(view[done:], deadline)
    return data


# The server.


def serve(sock: socket.socket, service: PolicyService, context: ServeContext) -> None:
    """Serve one client until its link ends; owns `sock`."""
    transport = SocketTransport(sock)
    try:
        client = service.open_client(peer_address(sock), "ilstudio")
    except BaseException:
        transport.close()
        raise
    try:
        _serve(transport, client, context)
    finally:
        transport.close()
        client.close()


def _serve(transport: SocketTransport, client: ServedClient, context: ServeContext) -> None:
    while not context.stopping.is_set():
        try:
            idle_until = time.monotonic() + context.idle_timeout_s
            data = receive_message(transport, idle_until, context.max_message_bytes)
            reply, goes_on = _answer(data, client, context)
            send_message(transport, reply, time.monotonic() + MESSAGE_TIMEOUT_S)
        except ConnectionLost:
            return
        except (MessageTooBig, DeadlineExceeded) as error:
            context.log(f"Client #{client.number}: its connection is closed: {error}")
            return
        if not goes_on:
            return


def _answer(data: bytearray, client: ServedClient, context: ServeContext) -> tuple[bytes, bool]:
    """The reply, and whether the connection goes on: not after a pickle that no honest client sends."""
    try:
        request, batch = _read(data, client)
        chunk = client.infer(batch, [str(row) for row in range(request.observation.batch_size or 1)])
        return write_reply(chunk, request, client.metadata.extra), True
    except ProtocolError as error:
        context.log(f"Client #{client.number}: {error}; an empty list was sent and the connection closed")
        return EMPTY_REPLY, False
    except RemoteEnvError as error:
        # What a model raised, the service has logged whole.
        context.log(f"Client #{client.number}: no actions, an empty list was sent: {error}")
        return EMPTY_REPLY, True


def _read(data: bytearray, client: ServedClient) -> tuple[Request, ObservationBatch]:
    """A request and its observation for the policy; the episodes that begin with it are reset."""
    try:
        request = read_request(data)
        batch = from_meta(request.observation, client.metadata)
        if request.beginning:
            client.reset([str(row) for row in request.beginning])
        return request, batch
    except RemoteEnvError:
        client.count_error()
        raise


# The client.


def connect(
    host: str,
    port: int,
    *,
    token: str | None = None,
    timeout_s: float = 60.0,
    reconnect_timeout_s: float = 30.0,
    chunk_size: int | None = None,
    metadata: PolicyMetadata | None = None,
    module: str = MODULE,
    batched: bool = True,
    **_: Any,
) -> IlstudioPolicy:
    """The policy at an IL-Studio server, or at one that speaks its protocol.

    Args:
        host: where it listens.
        port: likewise.
        token: not used: the protocol has no place for it.
        timeout_s: until a call fails [s].
        reconnect_timeout_s: for how long a broken connection is tried again [s].
        chunk_size: the most actions that a reply gives; None takes all.
        metadata: of the policy, which the protocol does not tell; without it, features are told apart by what they
            are, and the number, size and kind of actions is that of the replies.
        module: where the server has `MetaObs`.
        batched: whether one observation is sent as a batch of one, as IL-Studio's own client does.

    Raises:
        ConnectError: nothing answers there.
    """
    del token
    policy = IlstudioPolicy(
        host,
        port,
        metadata,
        timeout_s=timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        chunk_size=chunk_size,
        module=module,
        batched=batched,
    )
    policy.open()
    return policy


class IlstudioPolicy(ForeignPolicy[SocketTransport]):
    """See `connect`."""

    def __init__(
        self,
        host: str,
        port: int,
        metadata: PolicyMetadata | None,
        *,
        timeout_s: float,
        reconnect_timeout_s: float,
        chunk_size: int | None,
        module: str,
        batched: bool,
    ) -> None:
        super().__init__(
            f"ilstudio://{host}:{port}",
            metadata,
            timeout_s=timeout_s,
            reconnect_timeout_s=reconnect_timeout_s,
            chunk_size=chunk_size,
        )
        self._host, self._port, self._module, self._batched = host, port, module, batched
        self._is_given = metadata is not None
        self._reader = ReplyReader()
        self._steps: dict[str, int] = {}  # episode -> actions given since its reset

    def _open(self, deadline: float) -> SocketTransport:
        return connect_tcp(self._host, self._port, deadline)

    def _ask(self, link: SocketTransport, request: bytes, deadline: float) -> bytearray:
        send_message(link, request, deadline)
        return receive_message(link, deadline, MAX_REPLY_BYTES)

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """See `Policy.infer`. Arrays of two dimensions are states, of four images, lists are texts.

        Raises:
            InputError: the observation cannot be said as a MetaObs; nothing was sent.
            PolicyError: the reply was an empty list, or no actions.
            ConnectionLost: the connection broke and could not be made again in time.
            DeadlineExceeded: no reply came in time.
        """
        rows = self._rows(observation, episode_ids)
        steps = [self._steps.get(episode, 0) for episode in episode_ids]
        chunk = self.send_meta_obs(to_meta(observation, steps, batched=self._batched or rows > 1))
        self._steps.update((episode, step + chunk.shape[1]) for episode, step in zip(episode_ids, steps, strict=True))
        return chunk

    def send_meta_obs(self, observation: MetaObs) -> Chunk:
        """The (B, K, D) actions for a MetaObs, sent as it is; raises as `infer`."""
        rows = observation.batch_size or 1
        reply = self._reader.read(self._call(write_request(observation, self._module)), rows)
        chunk = self._finish(reply.actions, rows)
        if not self._is_given:
            self.metadata = replace(self.metadata, extra={**self.metadata.extra, **reply.kind})
        return chunk

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """The next observation of these episodes is sent with timestep 0, which is all that the protocol has for it."""
        for episode in list(self._steps) if episode_ids is None else episode_ids:
            self._steps.pop(episode, None)
