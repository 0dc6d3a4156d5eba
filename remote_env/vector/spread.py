"""SpreadVectorEnv: one vector environment over several servers, stepped side by side from one thread."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from remote_env.env.ending import end_by_signals
from remote_env.errors import ConfigError, InputError, RemoteEnvError, SessionLost, Unsupported
from remote_env.protocol import codec
from remote_env.protocol.chunks import Transitions
from remote_env.session.actions import compile_action_check
from remote_env.vector.ahead import step_ahead
from remote_env.vector.hosts import Host, check_same, hide_tokens, host_name, make_parts
from remote_env.vector.part import Part, Step
from remote_env.vector.questions import SpreadQuestions
from remote_env.vector.remote_vector_env import RemoteVectorEnv, check_mask, check_seeds
from remote_env.vector.rows import copy_rows, cut_rows, join_infos, join_rows

if TYPE_CHECKING:
    from typing_extensions import Self

ON_FAILURE = ("raise", "restart")
MAX_SEED = 2**31


class SpreadVectorEnv(SpreadQuestions, VectorEnv[Any, Any, Any]):
    """A Gymnasium vector environment whose environments are spread over several servers.

    `RemoteVectorEnv([host, …], num_envs=N)` makes it. The first hosts have one environment more where N does not
    divide. A step is sent to all servers before the first result is awaited, so that it takes as long as the slowest.
    What it returns is what one batch of all environments returns.

    Args:
        hosts: as `RemoteEnv`'s host, each; None is a server that this process starts on its own machine. A dict has
            arguments that only this one is to have: `{"host": "user@box", "python": "~/sim/bin/python"}`.
        ports: for all, or one for each.
        num_envs: how many environments in all; None: take what the servers at `ports` hold.
        on_failure: what to do when a simulator or its server is lost (`SessionLost`).
            "raise" (the default): its error, which names the environments (`env_ids`); `reset()` begins anew.
            "restart": begin another session there, with a new server if need be and we had started it, and reset its
            environments with fresh seeds, drawn from `np_random` and hence repeatable after `reset(seed=…)`. The step
            returns for them the reward 0, `truncated`, and in `infos["final_info"]` the reason (`host_lost`) and the
            seed (`restart_seed`), in every autoreset mode; whether the lost simulator ran the step is not known. In
            mode SameStep the observation is the new episode's and `final_obs` the last that was returned; else the
            observation is the last that was returned once more, and in mode NextStep the next step brings the new
            episode's, while in mode Disabled the next reset, with a mask or without, begins one. All servers wait for
            the restart. A task that raises, and a step that is late, are no such failures. A restart that fails raises
            its own error, and so does a reset with a mask that should have let others go on.
        **arguments: of `RemoteVectorEnv`, for each server.
    """

    def __init__(
        self,
        hosts: Sequence[Host] | Host,
        ports: Sequence[int | None] | int | None = None,
        *,
        num_envs: int | None = None,
        on_failure: Literal["raise", "restart"] | None = None,
        **arguments: Any,
    ) -> None:
        several: list[Any] = list(hosts) if isinstance(hosts, (list, tuple)) else [hosts]
        several = [hide_tokens(host) if isinstance(host, Mapping) else host for host in several]
        ports = arguments.pop("port", ports)
        on_failure = "raise" if on_failure is None else on_failure
        arguments = hide_tokens(arguments)
        self._given = {"hosts": several, "ports": ports, "num_envs": num_envs, "on_failure": on_failure, **arguments}
        if on_failure not in ON_FAILURE:
            raise ConfigError(f"on_failure={on_failure!r}: allowed are {', '.join(ON_FAILURE)}")
        self._parts = make_parts(several, ports, num_envs, arguments, restarts=on_failure == "restart")
        self._num_envs, self._restarts = num_envs, on_failure == "restart"
        self._is_ready = False
        self._ahead: deque[list[Step]] = deque()  # the steps under way, each as its parts
        self._failed: RemoteEnvError | None = None  # until the next reset
        self._spec: EnvSpec | None = None
        self.render_mode = arguments.get("render_mode")

    # Starting

    @property
    def servers(self) -> tuple[RemoteVectorEnv, ...]:
        """What is on each server: for `status()`, `logs()`, `facts` and the like; stepped only through this object."""
        return tuple(part.env for part in self._parts)

    def start(self) -> Self:
        """Start or attach to all servers side by side, and connect; returns self. Raises as `RemoteVectorEnv.start`.

        Raises:
            ConfigError: the servers have different spaces, or reset their environments in different ways.
        """
        if self._is_ready:
            return self
        if self.closed:
            raise ConfigError("this environment was closed; make another")
        try:
            for part in self._parts:
                self._telling(part, part.env.setup_tunnel)  # one after another: a login may ask for a password
            with ThreadPoolExecutor(len(self._parts), "start") as pool:
                list(pool.map(lambda part: self._telling(part, part.env.start), self._parts))
            self._join()
        except BaseException:
            with contextlib.ExitStack() as ends:  # so that it can be started again
                for part in self._parts:
                    ends.callback(part.env._life.end)
            raise
        self._is_ready = True
        return self

    def _telling(self, part: Part, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RemoteEnvError as error:
            raise part.told(error) from error

    def _join(self) -> None:
        """Note who has which environments, of which spaces."""
        first, start = self._parts[0], 0
        for part in self._parts:
            place = part.env._life.place
            if place is not None and place.is_remote:
                end_by_signals(part.env._life)  # which only the main thread can see to
            for name in ("single_observation_space", "single_action_space"):
                check_same(name, first, part, getattr(first.env, name), getattr(part.env, name))
            modes = (each.env.metadata["autoreset_mode"].value for each in (first, part))
            check_same("autoreset mode", first, part, *modes)
            part.first, part.count = start, part.env.num_envs
            start += part.count
        self._num_envs = start
        single_observation, single_action = first.env.single_observation_space, first.env.single_action_space
        self._spaces = {
            "single_observation_space": single_observation,
            "single_action_space": single_action,
            "observation_space": batch_space(single_observation, start),
            "action_space": batch_space(single_action, start),
        }
        self._metadata = first.env.metadata
        self.render_mode = first.env.render_mode
        self.resets_itself = self._metadata["autoreset_mode"] is not AutoresetMode.DISABLED
        self.check_actions = compile_action_check(self._spaces["action_space"], "actions")

    @property
    def metadata(self) -> dict[str, Any]:  # type: ignore[override]
        """The tasks', from the servers; starts them."""
        return dict(self.start()._metadata)

    @property
    def observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of the batch; starts the servers."""
        return self.start()._spaces["observation_space"]

    @property
    def action_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of the batch; starts the servers."""
        return self.start()._spaces["action_space"]

    @property
    def single_observation_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of one environment; starts the servers."""
        return self.start()._spaces["single_observation_space"]

    @property
    def single_action_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """Of one environment; starts the servers."""
        return self.start()._spaces["single_action_space"]

    @property
    def num_envs(self) -> int:  # type: ignore[override]
        """How many environments there are; starts the servers where that is not known."""
        if self._num_envs is None:
            self.start()
        assert self._num_envs is not None  # noqa: S101  start set it
        return self._num_envs

    # Episodes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, side by side; as `RemoteVectorEnv.reset`, also with a `reset_mask`.

        Raises:
            InputError: seeds or mask do not fit the batch, or a mask came after a failure; nothing was sent.
            And as `RemoteVectorEnv.reset`.
        """
        self.start()
        seeds = check_seeds(seed, self.num_envs)
        mask = options.get("reset_mask") if isinstance(options, dict) else None
        if mask is not None:
            check_mask(mask, self.num_envs)
        if mask is not None and not mask.all() and self._failed is not None:
            raise InputError(f"a step failed ({self._failed}): reset() all environments, without a reset_mask")
        if isinstance(seeds, int):
            VectorEnv.reset(self, seed=seeds)
        asked = [part for part in self._parts if mask is None or mask[part.slice].any()]
        codec.encode(options, where="options")  # before anything is abandoned
        self._ahead.clear()
        infos = self._reset_parts(asked, seeds, options)
        self._failed = None
        joined = join_infos([infos.get(part, {}) for part in self._parts], [part.count for part in self._parts])
        return self._observation(), joined

    def _reset_parts(self, asked: list[Part], seeds: Any, options: Any) -> dict[Part, dict[str, Any]]:
        """The infos of the parts that are asked, once all of them have answered."""
        with self._failing():
            for part in asked:
                part.begin_reset(*_share(part, seeds, options))
        infos, errors = {}, []
        for part in asked:
            try:
                infos[part] = part.finish_reset()
            except RemoteEnvError as error:
                errors.append(error)
        if not errors:
            return infos
        if infos or not all(isinstance(error, (InputError, Unsupported)) for error in errors):
            self._failed = errors[0]  # else nobody has done anything
        raise errors[0]

    def _observation(self) -> Any:
        return join_rows(self.single_observation_space, [part.observation for part in self._parts])

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments, side by side; as `RemoteVectorEnv.step`.

        After an error that leaves the episodes unknown, only `reset()` goes on.
        """
        self.start()
        self._check_going()
        self._check_settled()
        self._send(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Send a step without waiting for its result; `step_wait` takes the results in order.

        Raises:
            InputError: the actions are no batch of the task's, or as many steps are under way as may be: in autoreset
                mode Disabled one, since an end on one server is not known on the others. Nothing was sent.
        """
        self.start()
        self._check_going()
        if len(self._ahead) >= self.step_window:
            raise InputError(f"{len(self._ahead)} steps are under way, and no more may be; take one with step_wait()")
        self._send(actions, is_ahead=True)

    @property
    def step_window(self) -> int:
        """How many steps may be under way at once."""
        self.start()
        return min(part.env.step_window for part in self._parts) if self.resets_itself else 1

    def _send(self, actions: Any, *, is_ahead: bool = False) -> None:
        self.check_actions(actions)
        space = self.single_action_space
        if is_ahead and self._restarts:  # they may have to be sent again, when their sender has changed them
            actions = copy_rows(space, actions)
        steps = [part.begin_step(cut_rows(space, actions, part.slice)) for part in self._parts]
        for index, (part, step) in enumerate(zip(self._parts, steps, strict=True)):
            try:
                part.send(step)
            except BaseException as error:
                if index or not isinstance(error, InputError):
                    self._failed = error if isinstance(error, RemoteEnvError) else InputError(f"{error!r} in a step")
                raise
        self._ahead.append(steps)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The transition of the first step that is under way, as `step` returns it.

        After a Ctrl-C or `DeadlineExceeded` it can be called again: the step is not lost.
        """
        self._check_going()
        if not self._ahead:
            raise InputError("no step is under way; call step_async() first")
        with self._failing():
            for index, part in enumerate(self._parts):
                part.take([steps[index] for steps in self._ahead], self._fresh_seeds)
        taken = [step.result for step in self._ahead[0]]
        observations, rewards, terminated, truncated, infos = zip(*taken, strict=True)
        transition = (
            join_rows(self.single_observation_space, observations),
            *map(np.concatenate, (rewards, terminated, truncated)),
            join_infos(infos, [part.count for part in self._parts]),
        )
        self._ahead.popleft()
        return transition

    def step_many(self, actions: Any, *, stop: bool = True, want: Literal["all", "last"] = "all") -> Transitions:
        """Run several steps, sent ahead as far as `step_window` allows: about one round trip for all of them.

        Args:
            actions: (K, num_envs, …), or a list of K batches of actions; at most 4096.
            stop: in autoreset mode Disabled, end with the first step that ends an episode; each step costs a round trip
                there. In the other modes nothing ends it.
            want: "all" observations and infos, or those of the "last" step that ran.

        Returns:
            `Transitions` as of `RemoteVectorEnv.step_many`, without states.

        Raises:
            InputError: the actions are not the task's, none or too many; nothing was sent.
            And as `step`; `completed` of a TaskError has the `Transitions` of the steps before.
        """
        self.start()
        self._check_going()
        self._check_settled()
        return step_ahead(self, actions, stop=stop, want=want)

    def resume(self) -> tuple[Any, Any, Any, Any, dict[str, Any]] | None:
        """Wait for the step that a deadline or Ctrl-C cut short; its transition, None when there is none."""
        return self.step_wait() if self._ahead else None

    def _fresh_seeds(self, count: int) -> list[int]:
        return [int(seed) for seed in self.np_random.integers(MAX_SEED, size=count)]

    def _check_settled(self) -> None:
        if self._ahead:
            raise InputError(
                f"{len(self._ahead)} steps are under way: take them with step_wait(), or reset() to abandon"
            )

    def _check_going(self) -> None:
        if self._failed is None:
            return
        if isinstance(self._failed, SessionLost):
            raise copy.copy(self._failed)
        raise InputError(f"a step failed on one of the servers ({self._failed}): call reset()")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Note what leaves the episodes on the servers out of step: all but waits that can be taken up again."""
        try:
            yield
        except TimeoutError:
            raise
        except RemoteEnvError as error:
            self._failed = error
            raise

    # Life

    def restart(self) -> Self:
        """Kill all simulators, and begin sessions with fresh ones; the next call must be `reset()`. Returns self."""
        self._ahead.clear()
        for part in self._parts:
            part.abandon()
            self._telling(part, part.env.restart)
        return self.start()

    def close(self, keep: bool | None = None) -> None:  # type: ignore[override]
        """End or leave all servers, as `RemoteVectorEnv.close` does; may be called again."""
        self._end(keep)
        self.closed = True

    def _end(self, keep: bool | None) -> None:
        with contextlib.ExitStack() as ends:  # each, whatever becomes of the others
            for part in self._parts:
                ends.callback(part.env.close, keep)

    @property
    def spec(self) -> EnvSpec:
        """What Gymnasium needs to make this environment again."""
        if self._spec is not None:
            return self._spec
        given = {**self._given, "host": self._given["hosts"], "port": self._given["ports"]}
        return RemoteVectorEnv._make_spec({name: value for name, value in given.items() if name not in _OURS})

    @spec.setter
    def spec(self, spec: EnvSpec) -> None:
        self._spec = spec

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> Literal[False]:
        self.close()
        return False

    def __getstate__(self) -> dict[str, Any]:
        if self._is_ready:
            raise ConfigError(
                f"a {type(self).__name__} that runs cannot be pickled; pickle it before its first use, or make another"
            )
        return self._given

    def __setstate__(self, given: dict[str, Any]) -> None:
        self.__init__(**given)  # type: ignore[misc]

    def __str__(self) -> str:
        hosts = ", ".join(map(host_name, self._given["hosts"]))
        return f"<{type(self).__name__} {self._parts[0].env._life.task.label} on {hosts}>"

    __repr__ = __str__


_OURS = ("hosts", "ports")


def _share(part: Part, seeds: Any, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any] | None]:
    """What of a reset's arguments is a part's."""
    seed = seeds[part.slice] if isinstance(seeds, list) else None if seeds is None else seeds + part.first
    if isinstance(options, dict) and options.get("reset_mask") is not None:
        options = {**options, "reset_mask": options["reset_mask"][part.slice]}
    return seed, options
