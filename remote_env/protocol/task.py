"""TaskSpec: what a server serves, as plain JSON (docs/protocol.md, "Tasks")."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_env.errors import ConfigError, ProtocolError
from remote_env.protocol import codec

_POLICY_TEXTS = ("source", "dataset_id", "device", "instruction")


@dataclass(frozen=True)
class PolicySpec:
    """A policy for a simulator to open beside its task.

    Attributes:
        source: as the far end finds it: a checkpoint's path, "scripted:<name>", "module:function" that makes a policy,
            or the address of a policy server in any dialect ("localhost:5000", "openpi://box:8000").
        dataset_id: whose normalisation to use; "" for the first. A server has chosen its own.
        device: where it computes: "cpu", "cuda:0". Likewise.
        chunk_size: the most actions of one inference; None for all.
        instruction: for policies that take a text.
        timeout_s: for one inference of a policy server [s].
        reconnect_timeout_s: for how long a lost connection to it is tried again [s].
        mapping: "observation" and "action", each what `ObservationMapping` and `ActionMapping` of `remote_env.policy`
            take as `given`; plain JSON.
    """

    source: str
    dataset_id: str = ""
    device: str = "cpu"
    chunk_size: int | None = None
    instruction: str = ""
    timeout_s: float = 60.0
    reconnect_timeout_s: float = 30.0
    mapping: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _POLICY_TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"a policy's {name} is a text; got {getattr(self, name)!r}")
        if not self.source:
            raise ConfigError("a policy has no name: give a checkpoint's path, 'scripted:<name>' or HOST:PORT")
        size = self.chunk_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(f"a policy's chunk_size is a number of actions from 1 on, or None for all; got {size!r}")
        for name in ("timeout_s", "reconnect_timeout_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigError(f"a policy's {name} is a number of seconds; got {value!r}")
        _check_mapping(self.mapping)

    def to_plain(self) -> dict[str, Any]:
        """This policy as a JSON object."""
        return {**vars(self), "mapping": dict(self.mapping)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> PolicySpec:
        """The exact opposite of `to_plain`."""
        return cls(**plain)


def _check_mapping(mapping: Any) -> None:
    unknown = set(mapping) - {"observation", "action"} if isinstance(mapping, Mapping) else {repr(mapping)}
    if unknown or not all(isinstance(part, Mapping) for part in mapping.values()):
        raise ConfigError(
            'a policy\'s mapping is {"observation": {feature: {…}}, "action": {…}}, or one of them; got '
            f"{sorted(map(str, unknown)) or mapping}"
        )
    try:
        json.dumps(mapping)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a policy's mapping is plain JSON ({error})") from error


@dataclass(frozen=True)
class TaskSpec:
    """A task to make on the far end.

    Attributes:
        env: an id, "module:id", "module:function" or "file.py:function"; for a pickled callable its name, to show.
        kwargs: keyword arguments for the task; anything that an info may hold.
        simulator: "gymnasium", "isaaclab", "metasim", or "module:Class" of a Backend.
        pickled: a callable by cloudpickle, or None. Only ever read from a settings file that its sender wrote.
        pickled_by: the Python version, "3.11", that pickled it.
        allow_calls: names that clients may read or call besides those that the task allows.
        policy: to open beside the task, or None.
        num_envs: None for one environment; a number for a batch of so many, stepped together.
    """

    env: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    simulator: str = "gymnasium"
    pickled: bytes | None = None
    pickled_by: str = ""
    allow_calls: tuple[str, ...] = ()
    policy: PolicySpec | None = None
    num_envs: int | None = None

    def __post_init__(self) -> None:
        count = self.num_envs
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ConfigError(f"num_envs={count!r}: a number of environments from 1 on")

    def to_plain(self) -> dict[str, Any]:
        """This task as a JSON object.

        Raises:
            InputError: a keyword argument cannot cross; the message names it.
        """
        # Sorted, so that the order in which arguments were written makes no other task of it.
        body, arrays = codec.encode(dict(sorted(self.kwargs.items())), where="env_kwargs")
        return {
            "env": self.env,
            "simulator": self.simulator,
            "kwargs": [_to_text(body), _to_text(b"".join(arrays))],
            "pickled": None if self.pickled is None else _to_text(self.pickled),
            "pickled_by": self.pickled_by,
            "allow_calls": list(self.allow_calls),
            **({} if self.policy is None else {"policy": self.policy.to_plain()}),
            **({} if self.num_envs is None else {"num_envs": self.num_envs}),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TaskSpec:
        """The exact opposite of `to_plain`; ConfigError when `plain` is not one."""
        try:
            body, payload = (base64.b64decode(part, validate=True) for part in plain["kwargs"])
            kwargs, views = codec.decode(body, len(payload))
            for view in views:
                view[:], payload = payload[: len(view)], payload[len(view) :]
            pickled, policy = plain["pickled"], plain.get("policy")
            return cls(
                env=str(plain["env"]),
                kwargs=kwargs,
                simulator=str(plain["simulator"]),
                pickled=None if pickled is None else base64.b64decode(pickled, validate=True),
                pickled_by=str(plain["pickled_by"]),
                allow_calls=tuple(str(name) for name in plain["allow_calls"]),
                policy=None if policy is None else PolicySpec.from_plain(policy),
                num_envs=plain.get("num_envs"),
            )
        except (KeyError, TypeError, ValueError, ProtocolError) as error:
            raise ConfigError(f"not a task specification: {error!r}") from error

    @property
    def digest(self) -> str:
        """Names this task, its arguments, its simulator, its policy and its batch; 16 hex digits."""
        return digest_of(self.to_plain())


def digest_of(plain: Mapping[str, Any]) -> str:
    """The digest of a task that is already plain."""
    names = [
        "env",
        "simulator",
        "kwargs",
        "pickled",
        *(key for key in ("policy", "num_envs") if plain.get(key) is not None),
    ]
    text = json.dumps({key: plain[key] for key in names}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
