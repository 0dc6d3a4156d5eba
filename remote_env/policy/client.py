"""Clients for those who have `MetaObs`: one reply per request, or one action per step; of any dialect."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy.address import open_policy, parse_policy
from remote_env.policy.meta import MetaAction, MetaObs
from remote_env.policy.observation import from_meta
from remote_env.policy.policy import Chunk, ObservationBatch, Policy, PolicyMetadata

DEFAULT_PORT = 5000
CHUNK_SIZE = 64
_ACTION_FIELDS = ("ctrl_space", "ctrl_type", "gripper_continuous")


class PolicyClient:
    """A connection to a policy server: observations in, whole chunks out.

    Args:
        host: a name or an address; also "dialect://host:port", or several of these with commas between.
        port: of the server; not used when `host` has one.
        token: the server's; None takes `REMOTE_ENV_TOKEN`, or the file of a server on this machine.
        dialect: that the server speaks; not used when `host` names one.
        chunk_size: the most actions per chunk; None takes the server's.
        timeout_s: for a call [s].
        reconnect_timeout_s: for how long a lost connection is tried again [s].
        log: takes lines for a user's eye.
        options: further ones of the dialect, such as `image_coding="zstd"` of renv.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = DEFAULT_PORT,
        *,
        token: str | None = None,
        dialect: str = "renv",
        chunk_size: int | None = None,
        timeout_s: float = 60.0,
        reconnect_timeout_s: float = 30.0,
        log: Callable[[str], None] = print,
        **options: Any,
    ) -> None:
        self._text = _full_address(host, port, dialect)
        self.address = parse_policy(self._text)
        self._options = {
            **options,
            "token": token,
            "chunk_size": chunk_size,
            "timeout_s": timeout_s,
            "reconnect_timeout_s": reconnect_timeout_s,
            "log": log,
        }
        self._policy: Policy | None = None

    def connect(self) -> None:
        """Connect, unless that has been done; the other methods do it by themselves.

        Raises:
            ConnectError: no policy server of that dialect answers (AuthError: the tokens differ).
            ConfigError: there is no token, or an option is not to be had.
        """
        if self._policy is None:
            self._policy = open_policy(self._text, **self._options)

    @property
    def policy(self) -> Policy:
        """The policy behind this connection."""
        self.connect()
        assert self._policy is not None  # noqa: S101  connect sees to it
        return self._policy

    @property
    def metadata(self) -> PolicyMetadata:
        """What the server's policy takes and gives."""
        return self.policy.metadata

    def send_meta_obs(self, observation: Any) -> list[Any]:
        """The next K actions for an observation, or for each of a batch.

        Args:
            observation: a `MetaObs`, a dict of its fields, or another class's object with the same fields.

        Returns:
            For a single observation K `MetaAction`; for a batch K object arrays (B,) of dicts with the fields of one.

        Raises:
            InputError: the observation is not what the policy takes.
            PolicyError: the policy raised, or gave nothing.
            ConnectionLost, DeadlineExceeded: see `Policy.infer` of the dialect.
        """
        meta = as_meta(observation)
        chunk = self._infer(meta)
        if not chunk.shape[1]:
            raise PolicyError(f"the policy at {self.address} gave no actions; its log says why")
        return _batched_actions(chunk, self.metadata) if meta.is_batched else _actions(chunk[0], self.metadata)

    def _infer(self, meta: MetaObs) -> Chunk:
        policy = self.policy
        if hasattr(policy, "send_meta_obs"):  # its protocol is made of these
            chunk: Chunk = policy.send_meta_obs(meta)
            return chunk
        rows = meta.batch_size or 1
        batch = _as_it_is(meta) if policy.metadata.extra.get("unknown") else from_meta(meta, policy.metadata)
        return policy.infer(batch, episode_ids=[str(row) for row in range(rows)])

    def reset(self) -> None:
        """New episodes begin: the policy forgets what it remembers of this client's. Errors as `send_meta_obs`."""
        self.policy.reset()

    def disconnect(self) -> None:
        """Leave; may be called again, and `connect` after it."""
        policy, self._policy = self._policy, None
        if policy is not None:
            policy.close()

    def __enter__(self) -> PolicyClient:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()


class RemotePolicyClient:
    """One action per step, out of chunks that a policy server gives.

    Args:
        host: as `PolicyClient`.
        port: as `PolicyClient`.
        chunk_size: after so many steps the server is asked again; earlier when its chunk is shorter.
        options: as `PolicyClient`.
    """

    def __init__(
        self, host: str = "localhost", port: int = DEFAULT_PORT, chunk_size: int = CHUNK_SIZE, **options: Any
    ) -> None:
        if chunk_size < 1:
            raise ConfigError(f"chunk_size is at least 1; got {chunk_size}")
        self.chunk_size = chunk_size
        self._client = PolicyClient(host, port, chunk_size=chunk_size, **options)
        self._client.connect()
        self._queue: deque[Any] = deque()
        self._rows: int | None = None  # of the batch that the queue is for
        self._next_step = 0

    @property
    def metadata(self) -> PolicyMetadata:
        """What the server's policy takes and gives."""
        return self._client.metadata

    def select_action(self, mobs: Any, t: int | None = None, *, timestep: int | None = None) -> Any:
        """The action of step `t`; asks the server when `t % chunk_size == 0`, or when no action is left.

        Args:
            mobs: as `PolicyClient.send_meta_obs`; read only when the server is asked.
            t: of the episode, from 0; None counts by itself from the last `reset`.
            timestep: another name for `t`.

        Returns:
            A `MetaAction`; for a batch an object array (B,) of dicts with its fields.

        Raises:
            InputError: `t` and `timestep` differ, or the observation is not what the policy takes.
            PolicyError, ConnectionLost, DeadlineExceeded: as `PolicyClient.send_meta_obs`.
        """
        step = self._step(t, timestep)
        meta = as_meta(mobs)
        if step % self.chunk_size == 0 or not self._queue or meta.batch_size != self._rows:
            self._queue.clear()
            self._queue.extend(self._client.send_meta_obs(replace(meta, timestep=step))[: self.chunk_size])
            self._rows = meta.batch_size
        self._next_step = step + 1
        return self._queue.popleft()

    def _step(self, t: int | None, timestep: int | None) -> int:
        if t is not None and timestep is not None and t != timestep:
            raise InputError(f"t={t} and timestep={timestep} are two names for one number; give one of them")
        step = t if t is not None else timestep if timestep is not None else self._next_step
        if step < 0:
            raise InputError(f"a step counts from 0; got {step}")
        return int(step)

    def reset(self) -> None:
        """A new episode begins, here and at the server."""
        self._queue.clear()
        self._next_step = 0
        self._client.reset()

    def close(self) -> None:
        """Leave; may be called again."""
        self._client.disconnect()

    def __enter__(self) -> RemotePolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_meta(observation: Any) -> MetaObs:
    """A `MetaObs` of ours out of one, of a dict of its fields, or of an object that has them; InputError."""
    if isinstance(observation, MetaObs):
        return observation
    if isinstance(observation, dict):
        return MetaObs.from_plain(observation)
    names = [field.name for field in fields(MetaObs)]
    found = {name: getattr(observation, name) for name in names if getattr(observation, name, None) is not None}
    if not found:
        raise InputError(f"a MetaObs is wanted, with fields of {', '.join(names)}; got a {type(observation).__name__}")
    return MetaObs(**found)


def _as_it_is(meta: MetaObs) -> ObservationBatch:
    """The fields by their own names, for a server that does not tell what it takes."""
    plain = meta.to_plain()
    texts = plain.pop("raw_lang")
    plain.pop("timestep")
    batch = {name: value if meta.is_batched else value[None] for name, value in plain.items()}
    texts = [texts] if isinstance(texts, str) else texts
    return {**batch, "raw_lang": texts} if any(texts) else batch


def _actions(rows: Chunk, metadata: PolicyMetadata) -> list[MetaAction]:
    known = _kinds(metadata)
    return [MetaAction(action=row, **known) for row in rows]


def _batched_actions(chunk: Chunk, metadata: PolicyMetadata) -> list[Any]:
    """K object arrays (B,) of dicts, as IL-Studio's loop takes them."""
    known = _kinds(metadata)
    actions = np.empty((chunk.shape[1], chunk.shape[0]), object)
    for row, step in np.ndindex(*chunk.shape[:2]):
        actions[step, row] = MetaAction(action=chunk[row, step], **known).to_plain()
    return list(actions)


def _kinds(metadata: PolicyMetadata) -> dict[str, Any]:
    """What the policy's metadata says about its actions."""
    return {name: metadata.extra[name] for name in _ACTION_FIELDS if name in metadata.extra}


def _full_address(host: str, port: int, dialect: str) -> str:
    """`host` with dialect and port written out, so that it cannot be the name of a file."""
    parts = (part.strip() for part in host.split(","))
    return ",".join(part if "://" in part else f"{dialect}://{_with_port(part, port)}" for part in parts)


def _with_port(host: str, port: int) -> str:
    if host.count(":") > 1 and not host.startswith("["):  # an IPv6 address
        return f"[{host}]:{port}"
    return host if ":" in host.rpartition("]")[2] else f"{host}:{port}"
