"""A policy at a server of LeRobot's async inference, LeRobot's own or ours.

LeRobot's protocol was made for a robot that streams observations and takes whatever chunk comes next. Here each `infer`
sends one observation that must be inferred, and waits for the chunk that carries its timestep. LeRobot's own server has
one queue for all of its clients: give it one client.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np

from remote_env.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    MessageTooBig,
    PolicyError,
    ProtocolError,
    RemoteEnvError,
)
from remote_env.policy.dialects.foreign_server import ForeignPolicy
from remote_env.policy.dialects.lerobot_mapping import guess_features, robot_features, robot_observation
from remote_env.policy.dialects.lerobot_messages import (
    EXTENSION,
    MAX_GRPC_MESSAGE_BYTES,
    SERVICE,
    Actions,
    Empty,
    PolicySetup,
    cut,
)
from remote_env.policy.dialects.lerobot_pickle import (
    HELPERS,
    RemotePolicyConfig,
    TimedObservation,
    dump_observation,
    dump_setup,
    load_actions,
)
from remote_env.policy.policy import Chunk, ObservationBatch, PolicyMetadata

DEFAULT_ACTIONS_PER_CHUNK = 100
FAREWELL_TIMEOUT_S = 1.0
_Code = grpc.StatusCode
_ERRORS: dict[grpc.StatusCode, type[RemoteEnvError]] = {
    _Code.UNAVAILABLE: ConnectionLost,
    _Code.CANCELLED: ConnectionLost,
    _Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    _Code.INVALID_ARGUMENT: InputError,
    _Code.FAILED_PRECONDITION: ConnectionLost,  # the server does not know us any more: introduce ourselves again
    _Code.RESOURCE_EXHAUSTED: MessageTooBig,
    _Code.UNIMPLEMENTED: ProtocolError,
}


def connect(
    host: str,
    port: int,
    *,
    token: str | None = None,
    timeout_s: float = 60.0,
    reconnect_timeout_s: float = 30.0,
    chunk_size: int | None = None,
    task: str = "",
    metadata: PolicyMetadata | None = None,
    policy_type: str = "act",
    pretrained_name_or_path: str = "",
    device: str = "cpu",
    rename_map: Mapping[str, str] | None = None,
    module: str = HELPERS,
    **_: Any,
) -> LerobotPolicy:
    """The policy at a LeRobot policy server, or at one of ours that speaks its protocol.

    A server of ours says what it serves. LeRobot's does not: `policy_type` and `pretrained_name_or_path` tell it what
    to load; without `metadata` features are told apart by what they are, cameras named by the last part of theirs.

    Args:
        host: where it listens.
        port: likewise.
        token: not used: the protocol has no place for it.
        timeout_s: until a call fails [s]; loading the policy is one.
        reconnect_timeout_s: for how long a broken connection is tried again [s].
        chunk_size: the most actions that a reply gives; None takes all (of an unknown policy, at most 100).
        task: the instruction, where the observation holds none.
        metadata: of the policy; `lerobot_policy.describe` reads it from a folder.
        policy_type: "act", "smolvla", …
        pretrained_name_or_path: which policy, as its server finds it; "" asks one of ours for what it serves.
        device: where LeRobot's server is to put it.
        rename_map: feature of the robot -> feature of the policy.
        module: where the server has its classes; before LeRobot 0.4.0 "lerobot.scripts.server.helpers".

    Raises:
        ConnectError: nothing answers there.
        ConfigError: the server does not say what it serves and nothing was named, or it refuses that.
        DeadlineExceeded: no answer in time.
    """
    del token
    setup = RemotePolicyConfig(
        policy_type,
        pretrained_name_or_path,
        {},
        chunk_size or DEFAULT_ACTIONS_PER_CHUNK,
        device,
        dict(rename_map or {}),
        module,
    )
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    policy = LerobotPolicy(
        target,
        metadata,
        setup,
        task=task,
        timeout_s=timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        chunk_size=chunk_size,
    )
    policy.open()
    return policy


@dataclass
class Link:
    """A gRPC channel.

    Attributes:
        channel: it.
        address: to show.
        instructed: whether the server was told what we want.
        is_ours: whether the server is one of ours.
    """

    channel: grpc.Channel
    address: str
    instructed: bool = False
    is_ours: bool = field(default=False)

    def call(self, name: str, request: Any, reply: Any, deadline: float, service: str = SERVICE) -> Any:
        """The reply to one call.

        Raises:
            RemoteEnvError: of the kind that the status stands for.
        """
        return self._run(self.channel.unary_unary, name, request, reply, deadline, service)

    def stream(self, name: str, requests: Iterable[Any], reply: Any, deadline: float) -> Any:
        """The reply to a stream; as `call`."""
        return self._run(self.channel.stream_unary, name, requests, reply, deadline, SERVICE)

    def _run(self, kind: Callable[..., Any], name: str, sent: Any, reply: Any, deadline: float, service: str) -> Any:
        method = kind(f"/{service}/{name}", lambda message: message.SerializeToString(), reply.FromString)
        try:
            return method(sent, timeout=max(0.0, deadline - time.monotonic()))
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            words = f"{name} at {self.address} failed: {details or code.name}"
            raise _ERRORS.get(code, PolicyError)(words) from error

    def close(self) -> None:
        """Say goodbye to a server of ours, which would otherwise wait for us, and free the channel."""
        if self.is_ours:
            _try(lambda: self.call("Leave", Empty(), Empty, time.monotonic() + FAREWELL_TIMEOUT_S, EXTENSION))
        self.channel.close()


def _try(action: Callable[[], Any]) -> Any:
    """What `action` gives; None when the server cannot."""
    try:
        return action()
    except RemoteEnvError:
        return None


class LerobotPolicy(ForeignPolicy[Link]):
    """See `connect`."""

    def __init__(
        self,
        target: str,
        metadata: PolicyMetadata | None,
        setup: RemotePolicyConfig,
        *,
        task: str,
        timeout_s: float,
        reconnect_timeout_s: float,
        chunk_size: int | None,
    ) -> None:
        super().__init__(
            f"lerobot://{target}",
            metadata and replace(metadata, batches=False),
            timeout_s=timeout_s,
            reconnect_timeout_s=reconnect_timeout_s,
            chunk_size=chunk_size,
        )
        self._target, self._setup, self._task = target, setup, task
        self._timestep = secrets.randbelow(1 << 30)  # so that no other client's chunk is taken for ours
        self._episodes: set[str] = set()

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """One chunk for each row, one after another; as `Policy.infer`.

        Raises:
            InputError: the observation does not fit, or the policy has memory and the rows are of several episodes.
            PolicyError: the server answered without actions.
            DeadlineExceeded: no chunk in time.
            ConnectionLost: the server is gone.
        """
        rows = self._rows(observation, episode_ids)
        self._remember(episode_ids)
        if not self.metadata.observation:
            self.metadata = replace(self.metadata, observation=guess_features(observation))
        raw = [robot_observation(observation, self.metadata, row, self._task) for row in range(rows)]
        return self._finish([self._call(each) for each in raw], rows)

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:
        """A new episode: the server drops what waits there; ours also has the policy forget."""
        self._episodes = set() if episode_ids is None else self._episodes - set(episode_ids)
        with self._mutex:
            if self._link is None:
                return
            try:
                self._link.call("Ready", Empty(), Empty, time.monotonic() + self._timeout_s)
            except ConnectionLost:
                self._drop()  # with the connection the server's memory of us is gone

    def _remember(self, episode_ids: Sequence[str]) -> None:
        if self.metadata.has_memory:
            self._episodes |= set(episode_ids)
            if len(self._episodes) > 1:
                raise InputError(
                    f"{self._address} has a memory and LeRobot's protocol knows no episodes: one at a time, and reset "
                    "it before the next; the dialect renv keeps several apart"
                )

    def _open(self, deadline: float) -> Link:
        link = Link(grpc.insecure_channel(self._target, _options()), self._address)
        try:
            link.call("Ready", Empty(), Empty, deadline)
            self._ask_what_it_serves(link, deadline)
            if self.metadata.observation:
                self._instruct(link, deadline)
        except ConnectionLost as error:
            link.close()
            raise ConnectError(f"no LeRobot policy server answers: {error}; is it running, on that port?") from error
        except BaseException:
            link.close()
            raise
        return link

    def _ask_what_it_serves(self, link: Link, deadline: float) -> None:
        try:
            reply = link.call("Describe", Empty(), Actions, deadline, EXTENSION)
        except ProtocolError as error:  # LeRobot's own server has no such call
            if not self._setup.pretrained_name_or_path:
                raise ConfigError(
                    f"{self._address} is LeRobot's own server, which is told what to load: give policy_type and "
                    "pretrained_name_or_path (a folder or name that it knows)"
                ) from error
            return
        link.is_ours = True
        about = json.loads(reply.data)
        name = self._setup.pretrained_name_or_path or about["model"]
        self._setup = replace(self._setup, pretrained_name_or_path=name)
        if not self.metadata.observation and name == about["model"]:
            metadata = PolicyMetadata.from_plain(about["metadata"])
            chunk_size = min(metadata.chunk_size, self._chunk_size or metadata.chunk_size)
            self.metadata = replace(metadata, batches=False, chunk_size=chunk_size)

    def _instruct(self, link: Link, deadline: float) -> None:
        known = 0 if self.metadata.extra.get("unknown") else self.metadata.chunk_size
        count = self._chunk_size or known or DEFAULT_ACTIONS_PER_CHUNK
        features = robot_features(self.metadata)
        setup = replace(self._setup, lerobot_features=features, actions_per_chunk=count)
        try:
            link.call("SendPolicyInstructions", PolicySetup(data=dump_setup(setup)), Empty, deadline)
        except (PolicyError, InputError, ConnectionLost) as error:
            if isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() == _Code.UNAVAILABLE:
                raise
            raise ConfigError(str(error)) from error
        link.instructed = True

    def _ask(self, link: Link, request: Any, deadline: float) -> Chunk:
        if not link.instructed:
            self._instruct(link, deadline)
        self._timestep += 1
        observation = TimedObservation(time.time(), self._timestep, request, must_go=True)
        data = dump_observation(observation, self._setup.module)
        link.stream("SendObservations", cut(data), Empty, deadline)
        while True:
            reply = link.call("GetActions", Empty(), Actions, deadline)
            if not reply.data:
                raise PolicyError(
                    f"{self._address} answered without actions: its inference failed, or another client took the "
                    "observation; its log says which"
                )
            actions = load_actions(reply.data)
            if actions and actions[0].timestep == self._timestep:
                return _stack([action.action for action in actions])


def _stack(actions: Sequence[Any]) -> Chunk:
    try:
        return np.stack(actions).astype(np.float32)
    except ValueError as error:
        raise ProtocolError(f"the actions of a chunk are of different sizes: {error}") from error


def _options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of our own: servers tell clients apart by it
        ("grpc.enable_retries", 0),  # what is sent twice is our decision
        ("grpc.enable_http_proxy", 0),
    ]
