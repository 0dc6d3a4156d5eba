"""What `-e` names: bundled tasks, YAML files, Gymnasium ids, functions, and task servers."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium

from remote_env.errors import ConfigError
from remote_env.evaluate.config import check_names, read_yaml
from remote_env.protocol.codec import encode
from remote_env.tasks import INSERTION_ID, TRANSFER_CUBE_ID, register_tasks

_STATE, _PIXELS = {"obs_type": "state"}, {"obs_type": "pixels_agent_pos"}
# Name -> the environment's id and its arguments.
BUNDLED: dict[str, tuple[str, dict[str, Any]]] = {
    "aloha": (TRANSFER_CUBE_ID, _STATE),
    "aloha-transfer-cube": (TRANSFER_CUBE_ID, _STATE),
    "aloha-insertion": (INSERTION_ID, _STATE),
    "aloha-pixels": (TRANSFER_CUBE_ID, _PIXELS),
    "aloha-insertion-pixels": (INSERTION_ID, _PIXELS),
}
YAML_KEYS = ("name", "env", "env_kwargs", "host", "port", "remote", "max_steps", "task", "mapping")
_HOST_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+):(?P<port>\d{1,5})")
_VERSIONED = re.compile(r"-v\d+$")
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


@dataclass(frozen=True)
class EnvironmentChoice:
    """One environment to evaluate on.

    Attributes:
        name: in results; file names use it too.
        env: as `RemoteEnv(env=…)` takes it; None: what the task server at `host` serves.
        kwargs: the environment's arguments.
        host: of a task server, as `RemoteEnv(host)` takes it; None: the environment runs in the worker's own process.
        port: the task server's, on that host.
        remote: further arguments of `RemoteEnv`.
        max_steps: of an episode; None leaves it to the environment.
        task: the instruction for policies that take a text.
        mapping: of observations and actions, where it does not go by itself.
    """

    name: str
    env: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    host: str | None = None
    port: int | None = None
    remote: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    task: str = ""
    mapping: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """What makes this environment the one it is, as JSON."""
        return {
            "name": self.name,
            "env": self.env,
            "kwargs": dict(self.kwargs),
            "host": self.host,
            "port": self.port,
            "max_steps": self.max_steps,
            "task": self.task,
            "mapping": dict(self.mapping),
        }

    @property
    def slug(self) -> str:
        """The name as file names can hold it."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.name).strip("_.") or "env"


def choose_environments(texts: Sequence[str]) -> tuple[EnvironmentChoice, ...]:
    """The environments that these texts name; equal names get a number.

    Raises:
        ConfigError: a text names none.
    """
    choices: list[EnvironmentChoice] = []
    for text in texts:
        choice = choose_environment(text)
        taken = {other.slug for other in choices}
        number = 2
        while choice.slug in taken:
            choice = replace(choice, name=f"{choice.name.partition('#')[0]}#{number}")
            number += 1
        choices.append(choice)
    return tuple(choices)


def choose_environment(text: str) -> EnvironmentChoice:
    """The environment that `text` names.

    In this order: "tcp://host:port" and "ssh://user@box" (its port is SSH's) are task servers; a name ending in .yaml
    or .yml is a file; a bundled name; a Gymnasium id ("Pendulum-v1", "gym_aloha:gym_aloha/AlohaInsertion-v0");
    "host:port" is a task server, on this machine reached directly and elsewhere over SSH; "module:function" or
    "file.py:function" makes a `gymnasium.Env`; "user@box", an IP address or a name with a dot is a host whose one task
    server is taken.

    Raises:
        ConfigError: it names nothing that we know; the message lists what there is, the closest first.
    """
    if text.startswith(("tcp://", "ssh://")):
        return _at_url(text)
    if text.lower().endswith((".yaml", ".yml")):
        return read_environment(text)
    bundled = BUNDLED.get(text.replace("_", "-"))
    if bundled is not None:
        return EnvironmentChoice(text, bundled[0], bundled[1])
    if _is_registered(text):
        return EnvironmentChoice(text, text)
    found = _HOST_PORT.fullmatch(text)
    if found is not None:
        return _at_port(text, found["host"], int(found["port"]))
    if ":" in text and "@" not in text:
        return EnvironmentChoice(text, text)
    if _is_host(text):
        return EnvironmentChoice(text, host=text)
    raise _unknown(text)


def _is_registered(text: str) -> bool:
    register_tasks()
    return text in gymnasium.registry


def _at_url(text: str) -> EnvironmentChoice:
    return EnvironmentChoice(text.partition("://")[2], host=text)


def _at_port(text: str, host: str, port: int) -> EnvironmentChoice:
    port = _port(text, str(port))
    if is_this_machine(host):
        return EnvironmentChoice(text, host=f"tcp://{host}:{port}")
    return EnvironmentChoice(text, host=host, port=port)


def _port(text: str, port: str) -> int:
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"-e {text}: {port!r} is no port; a task server's is a number from 1 to 65535")
    return int(port)


def is_this_machine(host: str) -> bool:
    """Whether `host` is a loopback name or address."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    if "@" in text or text == "localhost":
        return True
    try:
        return bool(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None or _is_ssh_alias(text)


def _is_ssh_alias(text: str) -> bool:
    """Whether ~/.ssh/config has a host of this very name."""
    try:
        lines = Path("~/.ssh/config").expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, RuntimeError):
        return False
    words = (line.split() for line in lines)
    return any(text in line[1:] for line in words if line and line[0].lower() == "host")


def _unknown(text: str) -> ConfigError:
    names = [*BUNDLED, *(name for name in gymnasium.registry if _VERSIONED.search(name))]
    lowered = {name.lower(): name for name in names}
    close = [lowered[name] for name in difflib.get_close_matches(text.lower(), list(lowered), 3, 0.5)]
    known = list(dict.fromkeys([*(name for name in close if name in BUNDLED), *BUNDLED]))
    meant = f"; did you mean {' or '.join(close)}?" if close else "."
    return ConfigError(
        f"-e {text}: no such environment{meant} Bundled are: {', '.join(known)}. A Gymnasium id ('Pendulum-v1', "
        "'module:id'), 'module:function', 'file.py:function', a YAML file, or a task server ('user@box', 'box:8888', "
        "'tcp://127.0.0.1:8888') does too"
    )


def read_environment(path: str) -> EnvironmentChoice:
    """The environment that a YAML file describes: `env:` (as -e takes it), `env_kwargs:`, `host:` and more.

    Raises:
        ConfigError: there is no such file, or it holds what is not known.
    """
    given = read_yaml(path)
    check_names(given, YAML_KEYS, f"-e {path}")
    if not given.get("env") and not given.get("host"):
        raise ConfigError(f"-e {path} names neither env: nor host:; its keys may be {', '.join(YAML_KEYS)}")
    base = choose_environment(str(given["env"])) if given.get("env") else EnvironmentChoice("")
    port = given.get("port")
    choice = replace(
        base,
        name=str(given.get("name") or Path(path).stem),
        kwargs={**base.kwargs, **_section(path, given, "env_kwargs")},
        host=given.get("host", base.host),
        port=base.port if port is None else _port(path, str(port)),
        remote=_section(path, given, "remote"),
        max_steps=given.get("max_steps"),
        task=str(given.get("task") or ""),
        mapping=_section(path, given, "mapping"),
    )
    _check_remote(path, choice)
    encode(dict(choice.kwargs), where=f"-e {path}: env_kwargs")
    return choice


def _section(path: str, given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"-e {path}: {name} holds {value!r}; write keys with values below it")
    return dict(value)


def _check_remote(path: str, choice: EnvironmentChoice) -> None:
    from remote_env.env.arguments import Arguments

    if choice.remote and choice.host is None:
        raise ConfigError(f"-e {path}: remote: holds arguments of RemoteEnv, so host: must say where ('local' does)")
    allowed = Arguments.names() - {"host", "port", "env", "env_kwargs", "render_mode", "capture_state"}
    check_names(choice.remote, allowed, f"-e {path}: remote")
    if choice.max_steps is not None and (not isinstance(choice.max_steps, int) or choice.max_steps < 1):
        raise ConfigError(f"-e {path}: max_steps={choice.max_steps!r}: a whole number from 1 on")
