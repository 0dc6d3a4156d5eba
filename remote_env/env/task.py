"""What task a RemoteEnv runs: from what the caller named to what the far end is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from remote_env.env.places import Place
from remote_env.errors import ConfigError
from remote_env.protocol.task import PolicySpec, TaskSpec

_ALOHA_PREFIX = "remote_env/Aloha"
POLICY_KWARGS = {field.name for field in fields(PolicySpec)} - {"source"}


@dataclass(frozen=True)
class LocalFolder:
    """A folder or file of this machine that a task needs; sent along by content, once, and replaced by its far path.

    Attributes:
        path: where it is here.
    """

    path: str | os.PathLike[str]

    def resolved(self) -> Path:
        """Its absolute path; ConfigError when nothing is there."""
        path = Path(self.path).expanduser().absolute()
        if not path.exists():
            raise ConfigError(f"there is no {path} on this machine to send along")
        return path


@dataclass(frozen=True)
class PolicyChoice:
    """A policy to open beside the task.

    Attributes:
        source: as the far end finds it, or a checkpoint of this machine that is sent along.
        kwargs: what `PolicySpec` takes besides.
        token: of the policy server, if it is one that does not leave it where it is found.
    """

    source: str | LocalFolder
    kwargs: Mapping[str, Any]
    token: str | None = None

    @classmethod
    def of(cls, source: str | LocalFolder | None, kwargs: Mapping[str, Any] | None) -> PolicyChoice | None:
        """The choice that `policy=` and `policy_kwargs=` name, None when there is none.

        Raises:
            ConfigError: a keyword argument is unknown, or there are some without a policy.
        """
        given = dict(kwargs or {})
        token = given.pop("token", None)
        if source is None:
            if kwargs:
                raise ConfigError("policy_kwargs= is for a policy, so name one with policy=")
            return None
        if not isinstance(source, (str, LocalFolder)):
            raise ConfigError(
                f"policy={source!r}: give a path or an address as the far end knows it, 'scripted:…', "
                "'module:function', or a LocalFolder with a checkpoint of this machine"
            )
        if unknown := set(given) - POLICY_KWARGS:
            raise ConfigError(
                f"policy_kwargs has no {min(unknown)!r}; it takes {', '.join(sorted(POLICY_KWARGS))}, token"
            )
        PolicySpec("checked now", **given)  # and not when a server has been started for it
        return cls(source, given, token)

    def specify(self, place: Place, deadline: float) -> PolicySpec:
        """What to tell the far end, with a checkpoint of ours sent there."""
        if isinstance(self.source, LocalFolder):
            return PolicySpec(place.send_folder(self.source.resolved(), deadline), **self.kwargs)
        path = Path(self.source).expanduser()
        is_ours = not place.is_remote and path.exists()  # whatever folder the server works in
        return PolicySpec(str(path.absolute()) if is_ours else self.source, **self.kwargs)


@dataclass(frozen=True)
class TaskChoice:
    """What the caller asked to run.

    Attributes:
        env: a name, a callable, a `LocalFolder` that is a Python file with `make_env`, or None: what the server has.
        kwargs: keyword arguments for the task.
        simulator: which backend.
        beside: what is sent into the same folder as `env`, when that is a script that serves; None otherwise.
        policy: to open beside it, or None.
        num_envs: None for one environment; a number for a batch of so many.
    """

    env: str | Callable[..., Any] | LocalFolder | None
    kwargs: Mapping[str, Any]
    simulator: str
    beside: tuple[LocalFolder, ...] | None = None
    policy: PolicyChoice | None = None
    num_envs: int | None = None

    @property
    def label(self) -> str:
        """The task's name, to show."""
        if self.env is None:
            return "whatever is served"
        if isinstance(self.env, LocalFolder):
            return Path(self.env.path).name
        return self.env if isinstance(self.env, str) else getattr(self.env, "__qualname__", repr(self.env))

    def replaced(self, env: str | None, simulator: str | None) -> TaskChoice:
        """The same with another task or simulator, where one is given."""
        beside = None if env else self.beside
        return replace(self, env=env or self.env, simulator=simulator or self.simulator, beside=beside)

    def served_by(self, script: str | os.PathLike[str], beside: Sequence[str | os.PathLike[str]]) -> TaskChoice:
        """The same made by a Python file of the caller's, with files and folders beside it."""
        return replace(self, env=LocalFolder(script), beside=tuple(map(LocalFolder, beside)))

    def specify(self, place: Place, deadline: float, *, allow_calls: Sequence[str] = ()) -> TaskSpec:
        """What to tell the far end, with every `LocalFolder` sent there.

        Raises:
            ConfigError: a folder is not there, or the callable cannot be pickled.
            InputError: a keyword argument cannot cross.
        """
        kwargs = {
            name: place.send_folder(value.resolved(), deadline) if isinstance(value, LocalFolder) else value
            for name, value in self._with_models(place).items()
        }
        env, pickled = self._name(place, deadline)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}" if pickled is not None else ""
        policy = None if self.policy is None else self.policy.specify(place, deadline)
        return TaskSpec(env, kwargs, self.simulator, pickled, version, tuple(allow_calls), policy, self.num_envs)

    def _name(self, place: Place, deadline: float) -> tuple[str, bytes | None]:
        if isinstance(self.env, LocalFolder) and self.beside is not None:
            paths = [self.env.resolved(), *(item.resolved() for item in self.beside)]
            return f"{place.send_bundle(paths, deadline)}/{paths[0].name}:make_env", None
        if isinstance(self.env, LocalFolder):
            return f"{place.send_folder(self.env.resolved(), deadline)}:make_env", None
        if callable(self.env):
            return self.label, _pickle(self.env)
        return str(self.env), None

    def _with_models(self, place: Place) -> Mapping[str, Any]:
        """ALOHA's model files come from our own gym-aloha when the far end is another machine and none are named."""
        is_aloha = isinstance(self.env, str) and self.env.startswith(_ALOHA_PREFIX)
        if not is_aloha or place.name == "local" or "model_dir" in self.kwargs:
            return self.kwargs
        from remote_env.tasks.aloha_model import aloha_model_dir

        try:
            return {**self.kwargs, "model_dir": LocalFolder(aloha_model_dir())}
        except ConfigError:
            return self.kwargs  # the far end may have gym-aloha; if not, it says what to do


def _pickle(factory: Callable[..., Any]) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(factory))
    except Exception as error:
        raise ConfigError(
            f"env={factory!r} cannot be pickled ({error}); pass env='module:function' and upload=[...] instead"
        ) from error
