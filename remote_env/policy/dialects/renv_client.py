"""The client's side of renv: a policy at a server (docs/protocol.md, "Policies")."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from remote_env.errors import ConfigError, DeadlineExceeded, PolicyError, ProtocolError
from remote_env.policy.dialects.renv_connection import PolicyConnection, read_reply, read_value
from remote_env.policy.dialects.renv_features import infer_codec
from remote_env.policy.dialects.renv_link import find_token, is_near
from remote_env.policy.policy import Chunk, ObservationBatch, Policy
from remote_env.protocol import codec, frames
from remote_env.protocol.coding import choose_coder, encode_array
from remote_env.protocol.frames import FrameStream, Header
from remote_env.protocol.inference import Request
from remote_env.protocol.repeated_inference import RepeatedRequest, RepeatedResult

# Whose process this is. Asking the system costs more than all else that is looked at before a request goes out.
_pid = os.getpid()


def _note_process() -> None:
    global _pid
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_process)


def connect(
    host: str,
    port: int,
    *,
    token: str | None = None,
    timeout_s: float = 60.0,
    reconnect_timeout_s: float = 30.0,
    chunk_size: int | None = None,
    image_coding: str = "auto",
    keys: Sequence[str] | None = None,
    **_: Any,
) -> RenvPolicy:
    """The policy that is served at `host:port`.

    Args:
        host: a name or an address.
        port: of the server, or of the near end of a tunnel to it.
        token: the server's; None takes `REMOTE_ENV_TOKEN`, or the file of a server on this machine.
        timeout_s: for a call, from its begin to its actions [s].
        reconnect_timeout_s: for how long a lost connection is tried again [s].
        chunk_size: the most actions that one inference gives; None all.
        image_coding: "raw", "zstd" (lossless), "jpeg" (changes the images), or "auto": raw to this machine's own
            addresses, else zstd where both ends have it. The near end of a tunnel is an address of this machine.
        keys: the features to send, where the policy can do without the others; None all.

    Raises:
        ConnectError: no policy server of ours answers there (AuthError: the tokens differ).
        ConfigError: there is no token, the coding is not to be had, or a key is no feature.
    """
    policy = RenvPolicy(
        host, port, find_token(host, port, token), timeout_s=timeout_s, reconnect_timeout_s=reconnect_timeout_s
    )
    try:
        policy.choose(image_coding=image_coding, keys=keys, chunk_size=chunk_size)
    except BaseException:
        policy.close()
        raise
    return policy


class RenvPolicy(Policy):
    """A policy at a server. Calls may come from any thread; one is under way at a time.

    Attributes:
        metadata: of the policy.
        served_s: what the last inference took on the server, waiting for others included [s].
    """

    def __init__(self, host: str, port: int, token: str, *, timeout_s: float, reconnect_timeout_s: float) -> None:
        self._address = (host, port, token)
        self._timeout_s, self._reconnect_timeout_s = timeout_s, reconnect_timeout_s
        self._turn = threading.Lock()
        self._closed = False
        self._begun: set[str] = set()  # episodes of which the policy remembers something
        self._forgotten: set[str] = set()  # those of which it should, and does not any more
        self._image_coder, self._chunk_size = "raw", 0
        self._keys: frozenset[str] | None = None
        self._repeated: RepeatedRequest | None = None  # the last request, when it was small
        self._like: RepeatedResult | None = None  # likewise the last reply
        self.served_s = 0.0
        self._connect()
        self.metadata = self._connection.welcome.metadata

    def _connect(self) -> None:
        self._pid = _pid
        self._connection = PolicyConnection(
            *self._address,
            timeout_s=self._timeout_s,
            reconnect_timeout_s=self._reconnect_timeout_s,
            on_forgotten=self._forget,
        )
        welcome = self._connection.welcome
        self._codec = infer_codec(welcome.metadata, welcome.max_message_bytes)
        self._has_memory = welcome.metadata.has_memory

    def _forget(self) -> None:
        self._forgotten |= self._begun
        self._repeated = None

    def choose(self, *, image_coding: str, keys: Sequence[str] | None, chunk_size: int | None) -> None:
        """Settle how this client sends, and what it keeps of a chunk; errors as `connect`."""
        features = self._connection.welcome.metadata.observation
        self._images = [name for name, feature in features.items() if feature.kind == "image"]
        coders = self._connection.welcome.coders
        self._image_coder = choose_coder(image_coding, coders, is_near=is_near(self._address[0]))
        others = [name for name in self._images if features[name].layout == "CHW"]
        if self._image_coder == "jpeg" and others:
            raise ConfigError(f"JPEG takes images with the channels last, and {others} are CHW; take zstd for these")
        if keys is not None and (unknown := set(keys) - set(features)):
            raise ConfigError(f"the policy has no feature {sorted(unknown)}; it has {', '.join(features)}")
        self._keys = None if keys is None else frozenset(keys)
        if chunk_size is not None and chunk_size < 1:
            raise ConfigError(f"chunk_size is at least 1; got {chunk_size}")
        if chunk_size is not None and chunk_size < self.metadata.chunk_size:
            self._chunk_size = chunk_size
            self.metadata = replace(self.metadata, chunk_size=chunk_size)

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """See `Policy.infer`; what the observation holds beside the policy's features is not sent.

        Raises:
            InputError: the observation is not of the policy's features; nothing ran.
            PolicyError: the policy raised, or has forgotten these episodes because its server was restarted.
            DeadlineExceeded: no actions in time; they may still be computed.
            ConnectionLost: the connection broke and could not be made again; whether the policy ran is unknown.
        """
        deadline = time.monotonic() + self._timeout_s
        if not self._turn.acquire(False):
            self._take_turn(deadline)
        try:
            if self._closed or self._pid != _pid or self._connection.link is None:
                self._be_ready(deadline)
            repeated = self._repeated
            if repeated is not None and repeated.episodes == tuple(episode_ids) and repeated.fill(observation):
                chunk = self._connection.ask(
                    frames.INFER, repeated, deadline, self._receive_chunk, repeatable=not self._has_memory
                )
                return chunk[:, : self._chunk_size].copy() if self._chunk_size else chunk
            request = self._codec.pack_request(self._select(observation), episode_ids)
            if self._has_memory:
                self._check_remembered(episode_ids)
                self._begun.update(episode_ids)
            chunk = self._connection.ask(
                frames.INFER, request, deadline, self._receive_chunk, repeatable=not self._has_memory
            )
            size = request.payload_size
            self._repeated = self._codec.repeat(request.frame, request.flags, size, episode_ids)
            return chunk[:, : self._chunk_size].copy() if self._chunk_size else chunk
        finally:
            self._turn.release()

    def _receive_chunk(self, stream: FrameStream, sequence: int, deadline: float) -> Chunk:
        like = self._like
        if like is None or not (got := stream.recv_shaped(like.shape, deadline)):
            return read_reply(stream, sequence, deadline, self._read_chunk)
        if got != sequence:
            raise ProtocolError(f"a reply to request {got} where {sequence} is due")
        read = like.read(stream.body)
        if read is None:  # as long as the last one, and of other rows
            read = self._codec.read_result(like.shape.header, stream.body, frames.HEADER_SIZE, like.shape.size)[:2]
        chunk, self.served_s = read
        return chunk

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """See `Policy.reset`. Errors as `infer`."""
        value = None if episode_ids is None else list(episode_ids)
        if self._has_memory:
            self._ask_for_value(frames.POLICY_RESET, value)
        for known in (self._begun, self._forgotten):
            known.difference_update(known.copy() if value is None else value)

    def info(self) -> dict[str, Any]:
        """What the server says of this client and itself: `requests`, `clients`, `metadata`. Errors as `infer`."""
        value = self._ask_for_value(frames.POLICY_INFO, None)
        if not isinstance(value, dict):
            raise ProtocolError(f"a POLICY_INFO was answered with a {type(value).__name__}")
        return value

    def close(self) -> None:
        """Leave; a call of another thread ends in an error. Never raises, and may be called again."""
        self._closed = True
        is_idle = self._turn.acquire(blocking=False)
        try:
            self._connection.close(politely=is_idle and self._pid == _pid)
        finally:
            if is_idle:
                self._turn.release()

    def _take_turn(self, deadline: float) -> None:
        """One thread at a time; whoever takes it releases `_turn`."""
        if not self._turn.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded("another thread's request to the policy server is still under way")

    def _be_ready(self, deadline: float) -> None:
        """Have a connection of this process's own; called by the one thread that is at it."""
        if self._closed:
            raise ConfigError("this policy was closed; connect anew")
        if self._pid != _pid:  # after a fork the connection is the parent's
            self._connection.close(politely=False)
            self._forget()
            self._connect()
        elif self._connection.link is None:
            self._connection.reopen(deadline)

    def _check_remembered(self, episode_ids: Sequence[str]) -> None:
        if self._forgotten and (lost := sorted(self._forgotten.intersection(episode_ids))):
            raise PolicyError(
                f"the policy server at {self._connection.where} was restarted, or has given this client up, and its "
                f"policy has forgotten the episodes {lost[:5]}; reset() begins them anew"
            )

    def _select(self, observation: ObservationBatch) -> Mapping[str, Any]:
        """The policy's features of an observation, its images coded."""
        features = self.metadata.observation.keys() if self._keys is None else self._keys
        if observation.keys() != features:
            observation = {name: value for name, value in observation.items() if name in features}
        if self._image_coder == "raw":
            return observation
        coder = self._image_coder
        return {
            **observation,
            **{key: encode_array(observation[key], coder) for key in self._images if key in observation},
        }

    def _ask_for_value(self, kind: int, value: Any) -> Any:
        deadline = time.monotonic() + self._timeout_s
        body, payload = codec.encode(value, where="request")
        request = Request(bytearray(frames.HEADER_SIZE) + body, 0, payload)
        self._take_turn(deadline)
        try:
            self._be_ready(deadline)
            self._repeated = None  # a reset begins its episodes anew
            return self._connection.ask(kind, request, deadline, _receive_value, repeatable=True)
        finally:
            self._turn.release()

    def _read_chunk(self, header: Header, stream: FrameStream, deadline: float) -> Chunk:
        start, end = stream.body_start, stream.body_end
        chunk, self.served_s, views = self._codec.read_result(header, stream.body, start, end)
        frame = stream.body[start - frames.HEADER_SIZE : end]
        self._like = self._codec.repeat_result(frame, header.flags, header.payload_size)
        if views:
            stream.fill(views, deadline)
        return chunk


def _receive_value(stream: FrameStream, sequence: int, deadline: float) -> Any:
    return read_reply(stream, sequence, deadline, read_value)
