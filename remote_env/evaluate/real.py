"""Episodes on a robot, in real time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from remote_env.errors import TaskError
from remote_env.evaluate.actors import make_actor
from remote_env.evaluate.config import EvaluationConfig
from remote_env.evaluate.episodes import EpisodePlan, EpisodeResult
from remote_env.evaluate.memory import peak_memory_bytes
from remote_env.evaluate.robots import Robot, RobotConfig, RobotSpaces, RobotTask
from remote_env.evaluate.runner import actions_digest
from remote_env.evaluate.statistics import describe_numbers
from remote_env.policy.observation import ActionMapping, ObservationMapping
from remote_env.policy.policy import Policy

Judge = Callable[[EpisodePlan], bool | None]


class RobotRunner:
    """Runs episodes on a connected robot; whatever goes wrong, nothing further is sent.

    Args:
        robot: connected; it stays the caller's.
        robot_config: limits of its actions.
        task: what it is to do.
        policy: local or remote; it stays the caller's.
        config: rate, chunk size, and whether chunks are asked for ahead.
        judge: asked after an episode whether it succeeded, where the robot cannot say; None for unknown.

    Raises:
        ConfigError: robot and policy do not fit; both sides are listed.
    """

    def __init__(
        self,
        robot: Robot,
        robot_config: RobotConfig,
        task: RobotTask,
        policy: Policy,
        config: EvaluationConfig,
        judge: Judge,
    ) -> None:
        self._robot, self._robot_config, self._task = robot, robot_config, task
        self._config, self._judge = config, judge
        self._spaces = RobotSpaces(robot)
        mapping = ObservationMapping.between(
            self._spaces.observation,
            policy.metadata,
            given=task.mapping.get("observation"),
            state_names=self._spaces.state_names,
            instruction=task.instruction or config.task,
        )
        self._actions = ActionMapping.between(
            self._spaces.action,
            policy.metadata,
            task.mapping.get("action"),
            action_names=self._spaces.action_names,
        )
        self._actor = make_actor(policy, mapping, config)

    def run(self, plan: EpisodePlan) -> EpisodeResult:
        """Run one episode in real time.

        Raises:
            TaskError: the robot failed, or an action jumped further than it may.
            PolicyError, ConnectionLost, DeadlineExceeded: the policy failed or is gone.
        """
        started = time.perf_counter()
        self._reset(plan)
        self._actor.start(f"{plan.env}/{plan.index}")
        pace = Pace(self._config.fps)
        try:
            sent, succeeded = self._play(pace)
        finally:
            self._actor.finish()
        latencies, details = self._actor.report()
        success = succeeded if succeeded is not None else self._judge(plan)
        return EpisodeResult(
            env=plan.env,
            index=plan.index,
            seed=plan.seed,
            success=success,
            episode_return=float(bool(success)),
            length=len(sent),
            max_reward=float(bool(success)),
            end="terminated" if succeeded else "max_steps",
            actions_digest=actions_digest(sent),
            latencies_ms=tuple(latencies),
            wall_s=time.perf_counter() - started,
            worker_peak_bytes=peak_memory_bytes(),
            details={**details, **pace.report()},
        )

    def _reset(self, plan: EpisodePlan) -> None:
        reset = getattr(self._robot, "reset", None)
        if reset is not None:
            _ask(lambda: reset(seed=plan.seed), "reset")
        time.sleep(self._robot_config.settle_s)

    def _play(self, pace: Pace) -> tuple[list[Any], bool | None]:
        """The actions that were sent, and whether the robot said that it succeeded (None: it cannot say)."""
        sent: list[Any] = []
        steps = round(self._task.episode_s * self._config.fps)
        says = getattr(self._robot, "is_success", None)
        pace.begin()
        for _ in range(self._config.max_steps or steps):
            observation = self._spaces.gather(_ask(self._robot.get_observation, "get_observation"))
            action = self._actions.action(self._actor.act(observation))
            self._check(action, sent[-1] if sent else None)
            named = self._spaces.name_action(action)
            _ask(lambda named=named: self._robot.send_action(named), "send_action")  # type: ignore[misc]
            sent.append(action)
            if says is not None and _ask(says, "is_success"):
                return sent, True
            pace.wait()
        return sent, None if says is None else False

    def _check(self, action: Any, before: Any) -> None:
        limit = self._robot_config.max_action_jump
        if not np.isfinite(action).all():
            raise TaskError("the policy's action is not finite; it was not sent")
        if limit is None or before is None:
            return
        jumps = np.abs(action - before)
        worst = int(np.argmax(jumps))
        if jumps[worst] > limit:
            name = self._spaces.action_names[worst]
            raise TaskError(
                f"the policy moves {name} by {jumps[worst]:.3g} in one step, and max_action_jump is {limit:g}; the "
                "action was not sent"
            )

    def close(self) -> None:
        """Ask the policy nothing more; the robot stays connected."""
        self._actor.close()


def _ask(call: Callable[[], Any], name: str) -> Any:
    """What the robot's method gives; its errors as ours."""
    try:
        return call()
    except Exception as error:
        raise TaskError(
            f"the robot's {name}() failed: {type(error).__name__}: {error}; nothing further is sent"
        ) from error


@dataclass
class Pace:
    """Keeps a loop at its rate, and knows how well.

    A step that takes longer than its period is an overrun: the next begins at once and counts from there, so that
    actions never come in a burst.

    Attributes:
        rate_hz: of the loop.
    """

    rate_hz: float
    _due: float = 0.0
    _began: float = 0.0
    _busy_ms: list[float] = field(default_factory=list)
    _late_ms: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """The first step begins now."""
        self._began = time.monotonic()
        self._due = self._began + 1 / self.rate_hz

    def wait(self) -> None:
        """Sleep until the next step is due."""
        now = time.monotonic()
        self._busy_ms.append(1e3 * (now - self._began))
        if now > self._due:
            self._late_ms.append(1e3 * (now - self._due))
            self._due = now
        else:
            time.sleep(self._due - now)
        self._began = time.monotonic()
        self._due += 1 / self.rate_hz

    def report(self) -> dict[str, Any]:
        """How many steps overran, by how much, and how long the steps' work took."""
        return {
            "overruns": len(self._late_ms),
            "overrun_ms": describe_numbers(self._late_ms),
            "busy_ms": describe_numbers(self._busy_ms),
        }
