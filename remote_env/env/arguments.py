"""What a RemoteEnv was made with."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from remote_env.env.task import LocalFolder
from remote_env.errors import ConfigError
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.protocol.image_stream import CODECS
from remote_env.session import LinkEvent
from remote_env.session.coder_choice import AUTO

# What other clients of remote simulators call it, and we by another name.
_OTHER_NAMES = {
    "remote_host": "host",
    "ssh_host": "host",
    "hostname": "host",
    "address": "host",
    "user": 'host="user@box"',
    "username": 'host="user@box"',
    "remote_port": "port",
    "local_port": 'host="tcp://127.0.0.1:PORT"',
    "use_tunnel": "tunnel",
    "python_path": "python",
    "python_executable": "python",
    "interpreter": "python",
    "remote_script_path": "server_script",
    "script": "server_script",
    "task": "env",
    "task_name": "env",
    "env_id": "env",
    "id": "env",
    "kwargs": "env_kwargs",
    "model_path": "policy",
    "checkpoint": "policy",
    "environment": "server_env",
    "env_vars": "server_env",
    "workdir": "cwd",
    "num_envs": "RemoteVectorEnv(num_envs=…)",
    "key_filename": "identity_file",
    "identity": "identity_file",
    "ssh_key": "identity_file",
    "password": "ask_secret",
    "jump_host": "via",
    "proxy_jump": "via",
    "timeout": "step_timeout_s",
    "timeout_s": "step_timeout_s",
    "keep_alive": "keep",
    "session_id": "session",
}

_LINK_LIMITS_S = {
    "reconnect_timeout_s": 3000.0,
    "heartbeat_s": 3600.0,
    "heartbeat_timeout_s": 3600.0,
    "tcp_user_timeout_s": 3600.0,
}


@dataclass(frozen=True)
class Arguments:
    """The arguments of a `RemoteEnv`, which says what each means and has the defaults."""

    host: str | None
    port: int | None
    env: str | Callable[..., Any] | LocalFolder | None
    env_kwargs: Mapping[str, Any] | None
    policy: str | LocalFolder | None
    policy_kwargs: Mapping[str, Any] | None
    simulator: str
    render_mode: str | None
    capture_state: bool
    observation_keys: Sequence[str] | None
    observation_float32: bool
    image_every: int
    codecs: Mapping[str, str] | str | None
    timing: bool
    state_changes: bool | None
    python: str | None
    requirements: Sequence[str]
    server_script: str | os.PathLike[str] | None
    upload: Sequence[str | os.PathLike[str]]
    server_env: Mapping[str, str] | None
    cwd: str | None
    allow_calls: Sequence[str]
    max_sessions: int
    keep: bool
    reuse: bool
    session: str | None
    cleanup_old: bool
    start_timeout_s: float
    reset_timeout_s: float
    step_timeout_s: float | None
    idle_timeout_s: float
    lease_timeout_s: float | None
    resume: str
    reconnect_timeout_s: float
    heartbeat_s: float
    heartbeat_timeout_s: float
    tcp_user_timeout_s: float
    ssh_keepalive_s: float | None
    ssh_keepalive_count: int | None
    on_link: Callable[[LinkEvent], None] | None
    busy_poll_s: float
    token: str | None
    tunnel: str
    via: str | Sequence[str] | None
    launch: str | None
    launch_host: str | None
    insecure: bool
    ssh_port: int | None
    identity_file: str | None
    ask_secret: Callable[[Any], str | None] | None
    accept_new_host_key: bool
    known_hosts_file: str | None
    ssh_config_file: str | None
    connect_timeout_s: float
    progress: bool | None
    on_progress: Callable[[str], None] | None
    render: str | None = None
    local_model: Any = None
    local_mapping: Any = None
    local_view: Mapping[str, Any] | None = None
    local_pixels: Mapping[str, str] | bool | None = None

    def __post_init__(self) -> None:
        if self.token is not None:
            object.__setattr__(self, "token", Secret(self.token))
        if self.policy_kwargs and self.policy_kwargs.get("token") is not None:
            hidden = {**self.policy_kwargs, "token": Secret(self.policy_kwargs["token"])}
            object.__setattr__(self, "policy_kwargs", hidden)
        for name in ("ask_secret", "on_progress", "on_link"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ConfigError(f"{name}={function!r} cannot be called; give a function")
            if function is not None:
                object.__setattr__(self, name, Callback(function))
        for name in ("requirements", "upload", "allow_calls", "observation_keys"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is one string; write a list: [{getattr(self, name)!r}]"
                )
        if self.port is not None and not (isinstance(self.port, int) and 0 < self.port < 65536):
            raise ConfigError(f"port={self.port!r}: the task server's port is a number from 1 to 65535")
        if self.session is not None and self.port is not None:
            raise ConfigError("session= names a server by its id and port= by its port; give one of them")
        if self.lease_timeout_s is not None and self.lease_timeout_s <= 0:
            raise ConfigError(f"lease_timeout_s={self.lease_timeout_s!r}: seconds above 0, or None for no lease")
        self._check_link()
        self._check_codecs()
        self.delivery.check()

    def _check_codecs(self) -> None:
        """A name that there is not is told before a server starts, even where no image will cross."""
        given = self.codecs or {}
        for path, codec in given.items() if isinstance(given, Mapping) else [("all images", given)]:
            allowed = CODECS if isinstance(given, Mapping) else (*CODECS, AUTO)
            if codec not in allowed:
                raise ConfigError(f"unknown codec {codec!r} for {path!r}; there are {', '.join(allowed)}")

    @property
    def delivery(self) -> DeliveryPlan:
        """What observations are to bring, but for the codecs that a text names for all images."""
        keys = self.observation_keys
        codecs = {} if self.codecs is None or isinstance(self.codecs, str) else self.codecs
        return DeliveryPlan(
            None if keys is None else tuple(keys),
            self.observation_float32,
            self.image_every,
            codecs,
            self.timing,
            self._sends_changes if self.state_changes is None else self.state_changes,
        )

    @property
    def _sends_changes(self) -> bool:
        """Whether states come with every step, from another machine."""
        wants_states = self.capture_state or self.render is not None
        return wants_states and not self.is_near

    @property
    def is_near(self) -> bool:
        """Whether the server runs on this machine, with nothing in between."""
        host = self.host
        return host in (None, "local") or str(host).startswith(("tcp://127.", "tcp://localhost", "tcp://[::1]"))

    def _check_link(self) -> None:
        if self.resume not in ("auto", "never"):
            raise ConfigError(
                f"resume={self.resume!r}: 'auto' goes on where the link was cut, 'never' raises SessionLost"
            )
        for name, limit in _LINK_LIMITS_S.items():
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 < value <= limit:
                raise ConfigError(f"{name}={value!r}: seconds above 0, at most {limit:g}")
        if self.heartbeat_timeout_s < self.heartbeat_s:
            raise ConfigError(
                f"heartbeat_timeout_s={self.heartbeat_timeout_s!r} is less than heartbeat_s={self.heartbeat_s!r}: "
                "an answer has to have that long at least"
            )

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all arguments."""
        return frozenset(field.name for field in fields(cls))

    def to_plain(self) -> dict[str, Any]:
        """The arguments by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def unknown_arguments(names: Iterable[str], owner: str = "RemoteEnv") -> TypeError:
    """The error for arguments that there are not; it names those that were meant."""
    told = [f"{name}= (did you mean {_meant(name)}?)" for name in sorted(names)]
    return TypeError(f"{owner} has no argument {', '.join(told)}")


def _meant(name: str) -> str:
    if name in _OTHER_NAMES:
        other = _OTHER_NAMES[name]
        return other if "=" in other else f"{other}="
    close = difflib.get_close_matches(name, sorted(Arguments.names()), 1)
    return f"{close[0]}=" if close else "env_kwargs={...}, for the task's own"


class Callback:
    """A function of the caller's that copies as itself: Gymnasium copies specs, and a method's object may not copy.

    Args:
        function: called with what this is called with.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function: Callable[..., Any] = function._function if isinstance(function, Callback) else function

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        return self._function(*args)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Callback:
        return self

    def __eq__(self, other: object) -> bool:
        return self._function == (other._function if isinstance(other, Callback) else other)

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return repr(self._function)


class Secret(str):
    """A token that does not show itself where arguments are printed, as in `EnvSpec`'s repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'<token>'"
