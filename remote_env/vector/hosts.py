"""The hosts of a batch that is spread over servers: how many environments each has, with which arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remote_env.env.arguments import Secret
from remote_env.errors import ConfigError
from remote_env.vector.part import Part
from remote_env.vector.remote_vector_env import RemoteVectorEnv

Host = str | Mapping[str, Any] | None


def make_parts(
    hosts: Sequence[Host], ports: Any, num_envs: int | None, arguments: Mapping[str, Any], *, restarts: bool
) -> list[Part]:
    """Of each host its part; nothing is started.

    Raises:
        ConfigError: the numbers of hosts, ports and environments do not fit each other.
    """
    each = zip(hosts, one_each("ports", ports, len(hosts)), spread_evenly(num_envs, len(hosts)), strict=True)
    return [
        Part(
            RemoteVectorEnv(**{**arguments, "port": port, **_own(host), "num_envs": count}),
            f"host {number} of {len(hosts)} ({host_name(host)})",
            restarts=restarts,
        )
        for number, (host, port, count) in enumerate(each, 1)
    ]


def hide_tokens(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, whose tokens do not show where they are printed."""
    return {name: Secret(value) if name == "token" and value else value for name, value in arguments.items()}


def spread_evenly(num_envs: int | None, hosts: int) -> list[int | None]:
    """How many environments each host is to have; None for as many as it holds.

    Raises:
        ConfigError: there are no hosts, or more than environments.
    """
    if not hosts:
        raise ConfigError("no hosts: give one at least")
    if num_envs is None:
        return [None] * hosts
    if not isinstance(num_envs, int) or isinstance(num_envs, bool) or num_envs < hosts:
        raise ConfigError(f"num_envs={num_envs!r} for {hosts} hosts: each is to have one environment at least")
    least, more = divmod(num_envs, hosts)
    return [least + (index < more) for index in range(hosts)]


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """A list with one value for each, of such a list or of one for all.

    Raises:
        ConfigError: they are more or fewer.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"{name}={value!r}: {len(value)} for {count} hosts; give one each, or one for all")
    return list(value)


def check_same(what: str, first: Part, part: Part, ours: Any, theirs: Any) -> None:
    """Raise ConfigError where two parts differ in what all of a batch share."""
    if ours != theirs:
        raise ConfigError(
            f"{part.label} has another {what} than {first.label}: {theirs} is not {ours}; a batch is of environments "
            "that are alike"
        )


def host_name(host: Host) -> str:
    """What it is called."""
    return str((host.get("host") if isinstance(host, Mapping) else host) or "local")


def _own(host: Host) -> dict[str, Any]:
    """The arguments that one host has for itself."""
    own = dict(host) if isinstance(host, Mapping) else {"host": host}
    if "num_envs" in own:
        raise ConfigError("num_envs= is of all hosts together; it cannot be one's own")
    return own
