"""An evaluation on a robot, from its configuration to its results."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError, RemoteEnvError
from remote_env.evaluate.config import EvaluationConfig
from remote_env.evaluate.episodes import EpisodePlan, EpisodeResult
from remote_env.evaluate.evaluation import default_folder, facts, plain_config, remove_results
from remote_env.evaluate.ledger import Ledger, claim_folder
from remote_env.evaluate.memory import peak_memory_bytes
from remote_env.evaluate.model import Model, find_model, open_policy_here
from remote_env.evaluate.plots import save_plots
from remote_env.evaluate.real import Judge, RobotRunner
from remote_env.evaluate.results import Results
from remote_env.evaluate.robots import RobotConfig, RobotTask, make_robot
from remote_env.evaluate.telling import Silent, Teller


def ask_operator(plan: EpisodePlan) -> bool | None:
    """What the person at the terminal says of an episode; None without one."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    answer = ""
    while answer not in ("y", "n", "?"):
        answer = input(f"episode {plan.index}: did it succeed? [y/n/?] ").strip().lower()
    return {"y": True, "n": False}.get(answer)


def evaluate_robot(
    config: EvaluationConfig,
    robot_config: RobotConfig,
    task: RobotTask,
    teller: Teller | None = None,
    *,
    judge: Judge = ask_operator,
    folders: tuple[Path, ...] = (),
) -> Results:
    """Run the task's episodes on the robot and write results as `evaluate` does.

    The robot is connected for the time of the episodes. After any error, and after Ctrl-C, nothing further is sent and
    it is disconnected.

    Args:
        config: policy, number of episodes, rate, chunks, output folder.
        robot_config: the robot.
        task: what it is to do.
        teller: told of progress.
        judge: asked whether an episode succeeded, where the robot cannot say.
        folders: where else the robot's module may lie.

    Raises:
        ConfigError: something cannot be had as asked.
        TaskError: the robot failed.
        PolicyError, ConnectError, ConnectionLost, …: the policy failed, or cannot be reached.
        CaptureError: the disk does not take results.
    """
    teller = teller or Silent()
    config = dataclasses.replace(config, model=find_model(config.model))
    with contextlib.ExitStack() as stack:
        model, policy = open_policy_here(config, teller.warn)
        stack.enter_context(policy)
        folder = config.output_dir or default_folder(model)
        config = dataclasses.replace(config, output_dir=folder)
        stack.enter_context(claim_folder(folder, config.begin))
        if config.begin == "fresh":
            remove_results(folder)
        robot = make_robot(robot_config, folders)
        ledger = stack.enter_context(Ledger(folder, _identity(config, robot_config, task, model), config.begin))
        run = _Run(config, task, model, ledger, teller)
        connected = stack.enter_context(_Connected(robot, robot_config))
        runner = stack.enter_context(
            contextlib.closing(RobotRunner(connected, robot_config, task, policy, config, judge))
        )
        return run.finish(runner)


def _identity(config: EvaluationConfig, robot_config: RobotConfig, task: RobotTask, model: Model) -> dict[str, Any]:
    settings = {"chunk_size": config.chunk_size, "fps": config.fps, "seed": config.seed, "max_steps": config.max_steps}
    ahead = (config.chunk_size_threshold, config.aggregate) if config.asynchronous else None
    robot = {"target": robot_config.target, "kwargs": dict(robot_config.kwargs)}
    task_plain = dataclasses.asdict(task)
    return {"model": model.identity(), "robot": robot, "task": task_plain, "settings": settings, "asynchronous": ahead}


class _Connected:
    """The robot, connected, and disconnected whatever happens."""

    def __init__(self, robot: Any, robot_config: RobotConfig) -> None:
        self._robot, self._target = robot, robot_config.target

    def __enter__(self) -> Any:
        try:
            self._robot.connect()
        except Exception as error:
            with contextlib.suppress(Exception):
                self._robot.disconnect()
            raise ConfigError(f"{self._target} does not connect: {type(error).__name__}: {error}") from error
        return self._robot

    def __exit__(self, *_: object) -> None:
        self._robot.disconnect()


class _Run:
    """The episodes of one evaluation."""

    def __init__(self, config: EvaluationConfig, task: RobotTask, model: Model, ledger: Ledger, teller: Teller) -> None:
        self._config, self._task, self._model, self._ledger, self._teller = config, task, model, ledger, teller
        self._folder = ledger.path.parent
        seed = config.seed
        self._plans = [EpisodePlan(task.name, number, seed + number) for number in range(config.num_rollout)]
        self._done: dict[tuple[str, int], EpisodeResult] = {}

    def finish(self, runner: RobotRunner) -> Results:
        wanted = {plan.key for plan in self._plans}
        self._done = {key: result for key, result in self._ledger.results.items() if key in wanted}
        before, started = len(self._done), time.perf_counter()
        self._teller.say(f"results go to {self._folder}; Ctrl-C stops the robot and keeps what is done")
        try:
            self._run(runner)
        except BaseException:
            with contextlib.suppress(RemoteEnvError):
                self._results(before, started).write(self._folder)
            kept = f"{len(self._done)} of {len(self._plans)} episodes are kept"
            self._teller.say(f"stopped: {kept}; the same again with -o {self._folder} goes on there")
            raise
        results = self._results(before, started)
        results.write(self._folder)
        if self._config.plots:
            results = dataclasses.replace(results, plots=save_plots(results, self._folder / "plots"))
            results.write(self._folder)
        return results

    def _run(self, runner: RobotRunner) -> None:
        with self._teller.progress(len(self._plans), list(self._done.values())):
            for plan in self._plans:
                if plan.key in self._done:
                    continue
                result = runner.run(plan)
                self._ledger.append(result)
                self._done[plan.key] = result
                self._teller.advance(result)
                time.sleep(self._task.pause_s)

    def _results(self, before: int, started: float) -> Results:
        return Results(
            config=plain_config(self._config),
            model=self._model.to_plain(),
            episodes=tuple(self._done[plan.key] for plan in self._plans if plan.key in self._done),
            planned=len(self._plans),
            load_s=self._model.load_s,
            wall_s=time.perf_counter() - started,
            run_now=len(self._done) - before,
            parent_peak_bytes=peak_memory_bytes(),
            facts=facts(),
        )
