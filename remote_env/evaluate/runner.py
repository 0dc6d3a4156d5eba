"""Episodes of one environment with one policy, one after another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, TaskError
from remote_env.evaluate.acting import Actor
from remote_env.evaluate.actors import make_actor
from remote_env.evaluate.config import EvaluationConfig
from remote_env.evaluate.environments import EnvironmentChoice
from remote_env.evaluate.episodes import EpisodePlan, EpisodeResult
from remote_env.evaluate.memory import peak_memory_bytes
from remote_env.evaluate.opening import open_environment, state_names, step_limit, task_id
from remote_env.evaluate.scenes import ReadScene, Trace, scene_reader
from remote_env.policy.observation import ActionMapping, ObservationMapping
from remote_env.policy.policy import Policy

STEP_BOUND = 10_000  # of an episode that nothing else ends
WHERE_MAPPINGS_GO = "(in a YAML file for --mapping, whose sections are 'observation:' and 'action:')"
SUCCESS_KEYS = ("is_success", "success")


class EpisodeRunner:
    """One environment and the way from its observations through the policy to its actions.

    Args:
        choice: the environment.
        policy: local or remote; it stays the caller's.
        config: of the evaluation.
        captures: the folder for captures of the episodes that a video is to show; None for no captures.

    Raises:
        ConfigError: the environment cannot be made, or it and the policy do not fit; both sides are listed.
    """

    def __init__(
        self, choice: EnvironmentChoice, policy: Policy, config: EvaluationConfig, captures: Path | None
    ) -> None:
        self._choice, self._config, self._captures = choice, config, captures
        self._env = open_environment(choice, scenes=captures is not None)
        try:
            self._observations, self._actions = self._map(policy)
            self._actor: Actor = make_actor(policy, self._observations, config)
        except BaseException:
            self._env.close()
            raise
        self._max_steps = self._bound_steps()
        self._read_scene: ReadScene | None = None
        self._knows_scene = captures is None

    def _map(self, policy: Policy) -> tuple[ObservationMapping, ActionMapping]:
        """Which observation is which feature, and which number of an action which joint."""
        given: Mapping[str, Any] = {**self._config.mapping, **self._choice.mapping}
        try:
            observations = ObservationMapping.between(
                self._env.observation_space,
                policy.metadata,
                given=given.get("observation"),
                state_names=state_names(self._env),
                instruction=self._choice.task or self._config.task,
            )
            return observations, ActionMapping.between(self._env.action_space, policy.metadata, given.get("action"))
        except ConfigError as error:
            raise ConfigError(f"{error}\n{WHERE_MAPPINGS_GO}") from error

    def _bound_steps(self) -> int:
        bounds = (self._config.max_steps, self._choice.max_steps, step_limit(self._env))
        return min((bound for bound in bounds if bound), default=STEP_BOUND)

    def run(self, plan: EpisodePlan, attempts: int) -> EpisodeResult:
        """Run one episode from its reset to its end.

        Raises:
            PolicyError, ConnectionLost, DeadlineExceeded: the policy failed or is gone.
            TaskError, SessionLost: the environment failed or is gone. A TaskError that the task itself raises in the
                middle of an episode, such as for physics that has become unstable, fails that episode only.
        """
        started = time.perf_counter()
        trace = Trace()
        self._play(plan, trace)
        latencies, details = self._actor.report()
        end = _end(trace)
        if trace.error:
            details = {**details, "error": trace.error}
        result = EpisodeResult(
            env=plan.env,
            index=plan.index,
            seed=plan.seed,
            success=False if trace.error else find_success(trace.infos),
            episode_return=float(sum(trace.rewards)),
            length=len(trace.rewards),
            max_reward=max(trace.rewards),
            end=end,
            actions_digest=actions_digest(trace.actions),
            latencies_ms=tuple(latencies),
            wall_s=time.perf_counter() - started,
            worker_peak_bytes=peak_memory_bytes(),
            attempts=attempts,
            details=details,
        )
        keep_capture(self._captures, self._choice, self._config, result, trace, task_id(self._env, self._choice))
        return result

    def _play(self, plan: EpisodePlan, trace: Trace) -> None:
        observation, info = self._env.reset(seed=plan.seed)
        if not self._knows_scene:
            self._read_scene, self._knows_scene = scene_reader(self._env), True
        trace.infos.append(info)
        self._see(trace)
        self._actor.start(f"{plan.env}/{plan.index}")
        try:
            self._act(observation, trace)
        finally:
            self._actor.finish()

    def _act(self, observation: Any, trace: Trace) -> None:
        for _ in range(self._max_steps):
            action = self._actions.action(self._actor.act(observation))
            try:
                observation, reward, terminated, truncated, info = self._env.step(action)
            except TaskError as error:
                if not trace.rewards or getattr(error, "remote_type", "") not in ("", "TaskError"):
                    raise  # it fails always, or is a fault of the environment's code
                trace.error = str(error)
                return
            trace.actions.append(action)
            trace.rewards.append(float(reward))
            trace.terminated.append(bool(terminated))
            trace.truncated.append(bool(truncated))
            trace.infos.append(info)
            self._see(trace)
            if terminated or truncated:
                return

    def _see(self, trace: Trace) -> None:
        if self._read_scene is not None:
            trace.states.append(self._read_scene())

    def close(self) -> None:
        """End the environment."""
        try:
            self._actor.close()
        finally:
            self._env.close()


def keep_capture(
    folder: Path | None,
    choice: EnvironmentChoice,
    config: EvaluationConfig,
    result: EpisodeResult,
    trace: Trace,
    task: str,
) -> None:
    """Write the capture of an episode that a video is to show.

    Raises:
        CaptureError: the disk does not take it.
    """
    if folder is None or not wants_video(config.video, result):
        return
    trace.save(
        capture_path(folder, choice, result.index),
        rate_hz=config.fps,
        task=task,
        env_kwargs=dict(choice.kwargs),
        seed=result.seed,
    )


def capture_path(folder: Path, choice: EnvironmentChoice, index: int) -> Path:
    """Where the capture of an episode lies."""
    return folder / f"{choice.slug}_{index:04d}.hdf5"


def wants_video(videos: tuple[str, ...], result: EpisodeResult) -> bool:
    """Whether a video of this episode is asked for."""
    is_first, is_failed = result.index == 0, result.success is False
    return "all" in videos or ("first" in videos and is_first) or ("failed" in videos and is_failed)


def find_success(infos: list[dict[str, Any]]) -> bool | None:
    """Whether any step's info says that the task succeeded; None where none says anything.

    Raises:
        ConfigError: what it says is more than one truth, as of a batch of environments.
    """
    known = [info[key] for info in infos for key in SUCCESS_KEYS if key in info]
    if not known:
        return None
    if any(np.size(value) != 1 for value in known):
        raise ConfigError(f"the info's success is {known[0]!r}; an evaluation takes environments of one episode each")
    return any(bool(np.asarray(value).item()) for value in known)


def _end(trace: Trace) -> str:
    if trace.error:
        return "error"
    if trace.terminated[-1]:
        return "terminated"
    return "truncated" if trace.truncated[-1] else "max_steps"


def actions_digest(actions: list[Any]) -> str:
    """16 hex digits of these actions, to the bit."""
    digest = hashlib.sha256()
    for action in actions:
        digest.update(np.ascontiguousarray(action).tobytes())
    return digest.hexdigest()[:16]
