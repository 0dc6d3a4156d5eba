"""Making the environments that were chosen, here or by a task server."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import gymnasium

from remote_env.env import RemoteEnv
from remote_env.env.places import PlaceOptions, open_place
from remote_env.errors import ConfigError, Unsupported
from remote_env.evaluate.environments import EnvironmentChoice
from remote_env.server.gymnasium_backend import make_env

LIST_TIMEOUT_S = 30.0


def settle_host(choice: EnvironmentChoice) -> EnvironmentChoice:
    """The same with the port of the only task server on its host, where no port and no task is given.

    Raises:
        ConfigError: none of yours runs there, or several do; the message lists them.
        ConnectError: the host cannot be reached.
    """
    if choice.host is None or choice.port is not None or choice.env is not None or choice.host.startswith("tcp://"):
        return choice
    place = open_place(choice.host, PlaceOptions(**{k: v for k, v in choice.remote.items() if k in _PLACE}))
    try:
        records = place.list(time.monotonic() + LIST_TIMEOUT_S)
    finally:
        place.close()
    if len(records) != 1:
        shown = ", ".join(f"{choice.name}:{record.port} ({record.task_label})" for record in records)
        raise ConfigError(
            f"-e {choice.name}: {len(records) or 'no'} task servers of yours run there{': ' if shown else ''}{shown}; "
            "give the port of one (-e box:8888), or a YAML file with host: and env: to start one"
        )
    return replace(choice, port=records[0].port)


_PLACE = frozenset(PlaceOptions.__dataclass_fields__) - {"token"}


def open_environment(
    choice: EnvironmentChoice, *, render_mode: str | None = None, scenes: bool = False
) -> gymnasium.Env[Any, Any]:
    """The environment, ready to be reset; the caller closes it.

    Args:
        choice: which.
        render_mode: for it.
        scenes: have each step of a remote one bring its scene state, where it has one.

    Raises:
        ConfigError: it cannot be made as asked.
        ConnectError: its host cannot be reached.
    """
    kwargs = dict(choice.kwargs)
    if choice.host is None:
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        return make_env(choice.env, kwargs)
    host = None if choice.host == "local" else choice.host
    arguments: dict[str, Any] = {"env": choice.env, "env_kwargs": kwargs or None, "render_mode": render_mode}
    arguments |= {"progress": False, **choice.remote}
    env = RemoteEnv(host, choice.port, capture_state=scenes, **arguments)
    try:
        env.start()
        if scenes and not _gives_scenes(env):
            env.close()
            env = RemoteEnv(host, choice.port, **arguments).start()
    except BaseException:
        env.close()
        raise
    return env


def _gives_scenes(env: RemoteEnv) -> bool:
    try:
        env.reset(seed=0)
    except Unsupported:
        return False
    return True


def state_names(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """The names of the numbers in the environment's state vector, where it tells them."""
    try:
        return tuple(str(name) for name in env.get_wrapper_attr("state_names"))
    except (AttributeError, TypeError):
        return ()


def task_id(env: gymnasium.Env[Any, Any], choice: EnvironmentChoice) -> str:
    """What the environment is registered as, also behind a task server; "" when that is unknown."""
    if choice.env is None and isinstance(env.unwrapped, RemoteEnv):
        return str(env.unwrapped.remote_spec.get("id") or "")
    return choice.env or ""


def step_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """After how many steps the environment itself ends an episode; None when it does not, or does not say."""
    if isinstance(env.unwrapped, RemoteEnv):
        limit = env.unwrapped.remote_spec.get("max_episode_steps")
    else:
        limit = env.spec.max_episode_steps if env.spec is not None else None
    return int(limit) if limit else None
