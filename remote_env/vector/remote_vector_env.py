"""RemoteVectorEnv: a `gymnasium.vector.VectorEnv` whose environments are stepped together on another machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from remote_env.env import LocalFolder, RemoteEnv
from remote_env.env.arguments import Arguments, unknown_arguments
from remote_env.env.client import Client
from remote_env.env.starting import choose_task
from remote_env.errors import ConfigError, InputError, Unsupported
from remote_env.protocol.batch import check_env_ids
from remote_env.protocol.vector_step import Transition
from remote_env.session import BatchSession, BatchStates
from remote_env.state import SceneState

_OF_ONE_ENVIRONMENT = {
    "policy": "a policy beside the simulator acts in one environment; step the batch with actions of your own",
    "policy_kwargs": "a policy beside the simulator acts in one environment; step the batch with actions of your own",
    "local_pixels": "images of a batch cross as they are; codecs= makes them smaller",
}
_FOR_THE_FAR_END = ("autoreset_mode", "vectorization_mode", "vector_kwargs")


class RemoteVectorEnv(Client[BatchSession], VectorEnv[Any, Any, Any]):  # type: ignore[misc]  # spaces are properties
    """An ordinary Gymnasium vector environment, made and stepped as one on a server: one round trip per step.

    What it returns is what the far end's own vector environment returns, bit for bit: a batch of Gymnasium
    environments is Gymnasium's `SyncVectorEnv` or `AsyncVectorEnv`, and a simulator that steps its environments
    together has its own.

    Args:
        host: as `RemoteEnv`; or a list of them, over which the environments are spread: see `SpreadVectorEnv`, which is
            made then.
        port: as `RemoteEnv`.
        env: as `RemoteEnv`; each of the environments is made so.
        num_envs: how many environments; None: take what the server at `port` holds.
        autoreset_mode: how environments that ended are reset: "NextStep" (Gymnasium's default), "SameStep", "Disabled",
            or a `gymnasium.vector.AutoresetMode`; for Gymnasium environments. Simulators with batches of their own have
            one way; see `metadata["autoreset_mode"]`.
        vectorization_mode: of Gymnasium environments: "sync" (the default): one after another in the simulator's
            process; "async": each in a process of its own there, with its observations in shared memory; or "native":
            the vector environment that is registered for the id, or the one that the function makes when it is given
            `num_envs`.
        vector_kwargs: for the far end's vector environment, as `gymnasium.make_vec` takes them.
        render: as `RemoteEnv`; `local_view` has `env_ids` too: which environment `mirror` shows, or several in a grid.
        capture_state: have each step and reset bring the `SceneState`s of all environments with it, and those in which
            environments ended.
        **arguments: all others of `RemoteEnv`, but those of a policy, and `local_pixels`.
    """

    def __new__(cls, host: Any = None, *arguments: Any, **named: Any) -> Any:
        """A `SpreadVectorEnv`, given several hosts or what to do when one fails."""
        if isinstance(host, (list, tuple)) or named.get("on_failure") is not None:
            from remote_env.vector.spread import SpreadVectorEnv

            return SpreadVectorEnv(host, *arguments, **named)
        return super().__new__(cls)

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        env: str | Callable[..., Any] | LocalFolder | None = None,
        num_envs: int | None = None,
        autoreset_mode: str | AutoresetMode | None = None,
        vectorization_mode: str | None = None,
        vector_kwargs: Mapping[str, Any] | None = None,
        capture_state: bool = False,
        **arguments: Any,
    ) -> None:
        _check_arguments(arguments)
        if isinstance(autoreset_mode, AutoresetMode):
            autoreset_mode = autoreset_mode.value
        self._own = {
            "num_envs": num_envs,
            "autoreset_mode": autoreset_mode,
            "vectorization_mode": vectorization_mode,
            "vector_kwargs": vector_kwargs,
        }
        given = {"host": host, "port": port, "env": env, "capture_state": capture_state, **arguments}
        defaults = RemoteEnv._defaults()
        known = Arguments(**{name: given.get(name, defaults[name]) for name in Arguments.names()})
        task = choose_task(replace(known, env_kwargs=_task_kwargs(known.env_kwargs, self._own)), num_envs)
        if task.env is not None and num_envs is None:
            raise ConfigError("num_envs= says how many environments the batch is to have; a single one is RemoteEnv's")
        self._set_up(known, task, BatchSession)

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {**RemoteEnv._defaults(), **(RemoteVectorEnv.__init__.__kwdefaults__ or {})}

    @classmethod
    def _make_spec(cls, kwargs: dict[str, Any]) -> EnvSpec:
        # What `make_vec` would take for its own arguments travels with the task's.
        env_kwargs = _task_kwargs(kwargs.get("env_kwargs"), kwargs)
        others = {name: value for name, value in kwargs.items() if name not in _FOR_THE_FAR_END}
        return EnvSpec(
            "Remote-v0",
            "remote_env.env:RemoteEnv",
            disable_env_checker=True,
            order_enforce=False,
            kwargs={**others, **({"env_kwargs": env_kwargs} if env_kwargs else {})},
            vector_entry_point="remote_env.vector:RemoteVectorEnv",
        )

    def start_remote_server(
        self,
        server_script: str | None = None,
        task_name: str | None = None,
        num_envs: int | None = None,
        simulator: str | None = None,
        cleanup_old: bool | None = None,
    ) -> RemoteVectorEnv:
        """Find the server at `port`, or start one; nothing when that is done already. See `RemoteEnv`.

        Args:
            server_script: a local Python file with a `make_env(**kwargs)`, which is sent along and serves.
            task_name: the task, instead of `env=`.
            num_envs: how many environments, where `num_envs=` was not given.
            simulator: instead of `simulator=`.
            cleanup_old: instead of `cleanup_old=`.
        """
        life = self._life
        if life.server is not None:
            return self
        count = life.task.num_envs
        if num_envs is not None and count not in (None, num_envs):
            raise ConfigError(f"num_envs={num_envs}: this RemoteVectorEnv was made with num_envs={count}; make another")
        if num_envs is None and count is None and (task_name or server_script):
            raise ConfigError("num_envs= says how many environments the batch is to have; a single one is RemoteEnv's")
        life.task = replace(life.task, num_envs=count if num_envs is None else num_envs)
        self._start_server(server_script, task_name, simulator, cleanup_old)
        return self

    # The Gymnasium interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, as `gymnasium.vector.VectorEnv.reset`.

        After `SessionLost` this starts anew, as `RemoteEnv.reset` does.

        Args:
            seed: of environment i seed + i, or one each in a sequence; None: none.
            options: for the tasks. `reset_mask`, a (num_envs,) bool array, resets only where it is true, if the far end
                can.

        Raises:
            InputError: seeds or mask do not fit the batch, or the options cannot cross; nothing was sent.
            Unsupported: the far end knows no reset_mask.
            TaskError, DeadlineExceeded, SessionLost: as `RemoteEnv.reset`.
        """
        session = self._renewed()
        seeds = self._begin_reset(session, seed, options)
        transition = session.reset(seeds, options, self._reset_timeout_s, want_state=self._capture_state)
        return self._end_reset(session, transition)

    def reset_async(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Send a reset without waiting for its result, which `reset_wait` returns; arguments and errors as `reset`."""
        session = self._renewed()
        seeds = self._begin_reset(session, seed, options)
        session.reset_async(seeds, options, self._reset_timeout_s, want_state=self._capture_state)

    def reset_wait(self) -> tuple[Any, dict[str, Any]]:
        """What the reset that is under way brings, as `reset` returns it.

        Raises:
            InputError: none is under way.
            And as `reset`.
        """
        session = self._running()
        return self._end_reset(session, session.reset_wait(self._reset_timeout_s))

    def _begin_reset(self, session: BatchSession, seed: Any, options: Any) -> int | list[int | None] | None:
        seeds = check_seeds(seed, session.num_envs)
        if isinstance(options, dict) and options.get("reset_mask") is not None:
            check_mask(options["reset_mask"], session.num_envs)
        if isinstance(seeds, int):
            VectorEnv.reset(self, seed=seeds)
        return seeds

    def _end_reset(self, session: BatchSession, transition: Transition) -> tuple[Any, dict[str, Any]]:
        if self._local is not None and session.state is not None:
            self._local.begin(session.state, self)
        return transition[0], transition[4]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments; one round trip.

        Args:
            actions: a batch, in `action_space`; passed on unclipped, in the dtype it has.

        Returns:
            observations, rewards (num_envs,), terminated (num_envs,) bool, truncated (num_envs,) bool, infos, as the
            far end's vector environment returns them.

        Raises:
            InputError: the actions are not those of a batch of this size, or not finite; nothing was sent.
            TaskError: a task raised, or its process ended (`vectorization_mode="async"`, where the next reset makes all
                of them anew); how far the others have come is not known: reset.
            DeadlineExceeded: no reply within `step_timeout_s`; the step may still run: `resume()` settles it.
            SessionLost: the simulator that held these episodes is gone; reset to start new ones.
        """
        session = self._life.session
        if session is None:
            session = self._running()
        transition = session.step(actions, self._step_timeout_s, want_state=self._capture_state)
        if self._local is not None:
            self._local.show(session.state)
        return transition

    def render(self) -> Any:
        """What the far end's vector environment renders, a tuple of one frame per environment; one round trip.

        With `render="local"` the scenes of all environments as they are, drawn here.
        """
        local = self._local
        if local is not None:
            return tuple(local.render(state, self) for state in self.get_states())
        return self._running().render(self._step_timeout_s)

    def close(self, keep: bool | None = None) -> None:  # type: ignore[override]
        """See `RemoteEnv.close`."""
        super().close(keep)
        self.closed = True

    @property
    def num_envs(self) -> int:  # type: ignore[override]
        """How many environments there are; starts the server where that is not known."""
        return self._life.task.num_envs or self._running().num_envs

    @property
    def observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of the batch, from the server; starts it."""
        return self._running().observation_space

    @property
    def action_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of the batch, from the server; starts it."""
        return self._running().action_space

    @property
    def single_observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of one environment, from the server; starts it."""
        return self._running().single_observation_space

    @property
    def single_action_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of one environment, from the server; starts it."""
        return self._running().single_action_space

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Of each environment an attribute, or what its method returns, by a name that the server opens to clients.

        Raises:
            InputError: the name is not open; the message lists those that are.
            Unsupported: the far end's vector environment has no `call`.
        """
        return super().call(name, *args, **kwargs)

    def get_attr(self, name: str) -> Any:
        """Of each environment an attribute; as `call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment, by a name that the server opens to clients.

        Args:
            name: of the attribute.
            values: a list or tuple with one value each, or one for all.
        """
        self.call("set_attr", name, values)

    # More than Gymnasium asks for

    def get_states(self, env_ids: Sequence[int] | None = None) -> list[SceneState]:
        """The scenes of these environments now, in this order; no round trip when the last step brought them.

        Args:
            env_ids: which; None: all.

        Raises:
            InputError: there is no such environment.
            Unsupported: the task has no scene states.
        """
        session = self._running()
        ids = check_ids(env_ids, session.num_envs)
        held = session.state
        if held is None:
            return session.get_states(ids, self._step_timeout_s).rows()
        return BatchStates(held.layout, ids, held.values[ids]).rows()

    def get_state(self, env_id: int = 0) -> SceneState:
        """The scene of one environment now."""
        return self.get_states([env_id])[0]

    def set_states(self, states: Sequence[SceneState], env_ids: Sequence[int] | None = None) -> None:
        """Put these environments into these scenes, one each; the others stay as they are.

        By their values: what `native` holds of a single environment does not go along.

        Args:
            states: one per environment, all of one layout.
            env_ids: which; None: all.

        Raises:
            InputError: they are not as many as the environments, or not of one layout; nothing was sent.
            Unsupported: the task cannot.
            TaskError: a state does not fit the task's scene.
        """
        session = self._running()
        ids = check_ids(env_ids, session.num_envs)
        if not all(isinstance(state, SceneState) for state in states):
            raise InputError("set_states takes a list of SceneState, as get_states returns it")
        if len(states) != len(ids):
            raise InputError(f"{len(states)} states for {len(ids)} environments; give one each")
        if not states:
            return
        layout = states[0].layout
        if any(state.layout != layout for state in states):
            raise InputError("the states have different layouts; those of one call are all of the same task")
        session.set_states(layout, np.stack([state.values for state in states]), ids, self._step_timeout_s)
        if self._local is not None:
            everywhere = check_ids(None, session.num_envs)
            self._local.show(session.get_states(everywhere, self._step_timeout_s))

    @property
    def final_states(self) -> dict[int, SceneState]:
        """The scenes in which environments ended in the last step (`capture_state=True`), by environment.

        Where the far end resets in the same step it has to have kept them; a simulator that cannot leaves this empty.
        """
        session = self._life.session
        held = None if session is None else session.final_state
        return {} if held is None else dict(zip(held.env_ids.tolist(), held.rows(), strict=True))

    # Life

    def _task_metadata(self) -> dict[str, Any]:
        mode = AutoresetMode[self._running().autoreset_mode]
        return {**super()._task_metadata(), "autoreset_mode": mode}

    def _all_arguments(self) -> dict[str, Any]:
        return {**super()._all_arguments(), **self._own}


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    if unknown := set(arguments) - Arguments.names():
        raise unknown_arguments(unknown, "RemoteVectorEnv")
    for name, why in _OF_ONE_ENVIRONMENT.items():
        if arguments.get(name) not in (None, False):
            raise Unsupported(f"{name}= is for RemoteEnv: {why}")


def _task_kwargs(env_kwargs: Mapping[str, Any] | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """The task's keyword arguments with those of its vector environment, as the far end takes them."""
    kwargs = dict(env_kwargs or {})
    vector_kwargs = {**(kwargs.get("vector_kwargs") or {}), **(own.get("vector_kwargs") or {})}
    if own.get("autoreset_mode") is not None:
        vector_kwargs["autoreset_mode"] = own["autoreset_mode"]
    vector_kwargs = {
        name: value.value if isinstance(value, AutoresetMode) else value for name, value in vector_kwargs.items()
    }
    if vector_kwargs:
        kwargs["vector_kwargs"] = vector_kwargs
    if own.get("vectorization_mode") is not None:
        kwargs["vectorization_mode"] = own["vectorization_mode"]
    return kwargs


def check_seeds(seed: Any, num_envs: int) -> int | list[int | None] | None:
    """Seeds of a batch as they travel; InputError when they are none."""
    if seed is None or isinstance(seed, (int, np.integer)):
        return None if seed is None else int(seed)
    seeds = seed.tolist() if isinstance(seed, np.ndarray) else list(seed) if isinstance(seed, Sequence) else seed
    is_list = isinstance(seeds, list) and not isinstance(seed, (str, bytes))
    if not is_list or not all(each is None or isinstance(each, (int, np.integer)) for each in seeds):
        raise InputError(f"seed={seed!r}: a whole number, a sequence of one for each environment, or None")
    if len(seeds) != num_envs:
        raise InputError(f"{len(seeds)} seeds for {num_envs} environments; give one each, or one for all")
    return [None if each is None else int(each) for each in seeds]


def check_mask(mask: Any, num_envs: int) -> None:
    """Raise InputError for what is no mask of a batch."""
    is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (num_envs,)
    if not is_mask or not mask.any():
        raise InputError(
            f"options['reset_mask'] is {mask!r}; it is a bool array of the shape ({num_envs},), true at least once"
        )


def check_ids(env_ids: Any, num_envs: int) -> Any:
    """The numbers of environments; InputError when there are no such."""
    try:
        return check_env_ids(env_ids, num_envs)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
