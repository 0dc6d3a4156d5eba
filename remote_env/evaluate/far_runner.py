"""Episodes whose loop runs on the far end, with the policy beside the simulator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from remote_env.env import LocalFolder, RemoteEnv
from remote_env.errors import Unsupported
from remote_env.evaluate.config import EvaluationConfig
from remote_env.evaluate.environments import EnvironmentChoice
from remote_env.evaluate.episodes import EpisodePlan, EpisodeResult
from remote_env.evaluate.memory import peak_memory_bytes
from remote_env.evaluate.opening import task_id
from remote_env.evaluate.runner import actions_digest, keep_capture
from remote_env.evaluate.scenes import Trace


class FarRunner:
    """One environment with a policy beside it, both on the far end; `EpisodeRunner` is the same with the loop here.

    Args:
        choice: the environment. Where a task server runs already, its own policy acts; else one is started with the
            policy that `config` names.
        config: of the evaluation.
        captures: the folder for captures; None for none.

    Raises:
        ConfigError, ConnectError: it cannot be had.
        PolicyError: the far end cannot open the policy, or it does not fit the task.
        Unsupported: the task server has no policy.
    """

    def __init__(self, choice: EnvironmentChoice, config: EvaluationConfig, captures: Path | None) -> None:
        self._choice, self._config, self._captures = choice, config, captures
        # No more than is used: what an episode brings back takes round trips of its own on a slow link.
        self._wants: tuple[str, ...] = ("action", *(("info", "state") if captures is not None else ()))
        self._env = _open(choice, config)
        try:
            if self._env.policy_metadata is None:
                raise Unsupported(
                    f"-e {choice.name}: that task server has no policy; start it with --policy, or leave out "
                    "--rollout server"
                )
        except BaseException:
            self._env.close()
            raise

    def run(self, plan: EpisodePlan, attempts: int) -> EpisodeResult:
        """Run one episode; errors as `EpisodeRunner.run`."""
        started = time.perf_counter()
        rollout = self._roll(plan)
        end = "terminated" if rollout.terminated else "truncated" if rollout.truncated else "max_steps"
        result = EpisodeResult(
            env=plan.env,
            index=plan.index,
            seed=plan.seed,
            success=rollout.success,
            episode_return=float(sum(map(float, rollout.rewards))),
            length=rollout.steps,
            max_reward=float(max(rollout.rewards)),
            end=end,
            actions_digest=actions_digest(list(rollout.actions)),
            wall_s=time.perf_counter() - started,
            worker_peak_bytes=peak_memory_bytes(),
            attempts=attempts,
            details={"inferences": rollout.inferences, "inference_s": rollout.inference_s},
        )
        task = task_id(self._env, self._choice)
        keep_capture(self._captures, self._choice, self._config, result, _trace(rollout), task)
        return result

    def _roll(self, plan: EpisodePlan) -> Any:
        bounds = [bound for bound in (self._config.max_steps, self._choice.max_steps) if bound]
        arguments: dict[str, Any] = {
            "seed": plan.seed,
            "chunk_size": self._config.chunk_size,
            "max_episode_steps": min(bounds, default=None),
            "progress": False,
        }
        try:
            return self._env.rollout(n_episodes=1, want=self._wants, **arguments)[0]
        except Unsupported:
            if "state" not in self._wants:
                raise
            self._wants = ("action", "info")
            return self._env.rollout(n_episodes=1, want=self._wants, **arguments)[0]

    def close(self) -> None:
        """End the environment."""
        self._env.close()


def _open(choice: EnvironmentChoice, config: EvaluationConfig) -> RemoteEnv:
    host = None if choice.host == "local" else choice.host
    arguments: dict[str, Any] = {"env": choice.env, "env_kwargs": dict(choice.kwargs) or None, "progress": False}
    if choice.env is not None:
        path = Path(config.model).expanduser()
        arguments["policy"] = LocalFolder(path) if path.exists() else config.model
        mapping = {**config.mapping, **choice.mapping}
        kwargs = {
            "dataset_id": config.dataset_id,
            "device": config.device,
            "instruction": choice.task or config.task,
            "mapping": mapping,
            "token": config.token,
            "chunk_size": config.chunk_size,
        }
        arguments["policy_kwargs"] = {name: value for name, value in kwargs.items() if value} or None
    return RemoteEnv(host, choice.port, **arguments, **choice.remote)


def _trace(rollout: Any) -> Trace:
    steps = rollout.steps
    return Trace(
        infos=rollout.infos,
        states=list(rollout.states),
        actions=list(rollout.actions),
        rewards=[float(reward) for reward in rollout.rewards],
        terminated=[False] * (steps - 1) + [rollout.terminated],
        truncated=[False] * (steps - 1) + [rollout.truncated],
    )
