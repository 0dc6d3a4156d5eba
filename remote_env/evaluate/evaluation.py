"""An evaluation from its configuration to its results."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError, RemoteEnvError
from remote_env.evaluate.config import DEFAULT_FOLDER, DEFAULT_MODEL, EvaluationConfig
from remote_env.evaluate.environments import EnvironmentChoice, choose_environments
from remote_env.evaluate.episodes import EpisodePlan, EpisodeResult
from remote_env.evaluate.ledger import Ledger, claim_folder
from remote_env.evaluate.memory import peak_memory_bytes
from remote_env.evaluate.model import Model, far_model, find_model, open_model
from remote_env.evaluate.opening import settle_host
from remote_env.evaluate.plots import save_plots
from remote_env.evaluate.pool import WorkerPool, worker_context
from remote_env.evaluate.results import Results
from remote_env.evaluate.telling import Silent, Teller
from remote_env.evaluate.videos import save_videos
from remote_env.evaluate.worker import WorkerSetup

PACKAGES = ("remote-env", "numpy", "gymnasium", "mujoco", "onnxruntime", "torch")
WRITTEN = (
    *("results.json", "episodes.csv", "episodes.jsonl", "workers.log"),
    *("captures/*.hdf5", "videos/*.mp4", "plots/*.png"),
)
# What may differ when an evaluation is continued: it does not change what an episode is.
NOT_IDENTITY = frozenset(
    {
        "model",
        "envs",
        "num_rollout",
        "num_envs",
        "use_spawn",
        "output_dir",
        "verbose",
        "device",
        "begin",
        "video",
        "plots",
    }
    | {"token", "timeout_s", "reconnect_timeout_s", "episode_timeout_s", "mapping"}
)


def evaluate(config: EvaluationConfig, teller: Teller | None = None) -> Results:
    """Run the evaluation and write its results into the output folder.

    Args:
        config: what to evaluate, and how.
        teller: told of progress; None tells nobody.

    Returns:
        The results; also in `results.json` and `episodes.csv`, with videos and plots beside them.

    Raises:
        ConfigError: something cannot be had as asked; the message says what is.
        ConnectError: the policy server or a task server cannot be reached.
        PolicyError, TaskError, …: an episode failed; what was done before is in the ledger, and running the same
            with the same output folder goes on there.
        CaptureError: the disk does not take results; likewise.
        KeyboardInterrupt: likewise; results of what was done have been written.
    """
    teller = teller or Silent()
    config = dataclasses.replace(config, model=find_model(config.model))
    choices = tuple(settle_host(choice) for choice in choose_environments(config.envs))
    worker_context(spawn=config.use_spawn)
    with contextlib.ExitStack() as stack:
        model = _model(config, choices, stack, teller)
        folder = config.output_dir or default_folder(model)
        config = dataclasses.replace(config, output_dir=folder)
        stack.enter_context(claim_folder(folder, config.begin))
        if config.begin == "fresh":
            remove_results(folder)
        run = _Run(config, choices, model, folder, teller)
        ledger = stack.enter_context(Ledger(folder, run.identity(), config.begin))
        return run.finish(ledger)


def default_folder(model: Model) -> Path:
    """A folder of its own for this evaluation: "outputs/eval_<model>_<time>"."""
    name = Path(model.metadata.name or "policy").name
    slug = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name).strip("_.") or "policy"
    return DEFAULT_FOLDER / f"eval_{slug}_{time.strftime('%Y%m%d_%H%M%S')}"


def remove_results(folder: Path) -> None:
    """Remove what an evaluation writes into its folder, and nothing else."""
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _model(
    config: EvaluationConfig, choices: Sequence[EnvironmentChoice], stack: contextlib.ExitStack, teller: Teller
) -> Model:
    if config.rollout == "client":
        return open_model(config, stack, teller.warn)
    if config.asynchronous:
        raise ConfigError("--rollout server and --asynchronous exclude each other: there is no link to hide")
    own = all(choice.env is None for choice in choices)
    if own and not config.model.endswith(DEFAULT_MODEL):
        teller.warn(f"-m {config.model} is ignored: with --rollout server a task server's own policy acts")
    return far_model(config, own=own)


class _Run:
    """One call of `evaluate`: what it needs on its way."""

    def __init__(
        self,
        config: EvaluationConfig,
        choices: tuple[EnvironmentChoice, ...],
        model: Model,
        folder: Path,
        teller: Teller,
    ) -> None:
        self._config, self._choices, self._model, self._folder, self._teller = config, choices, model, folder, teller
        self._notes: list[str] = []

    def identity(self) -> dict[str, Any]:
        """What makes this evaluation the one it is, as the ledger keeps it."""
        settings = plain_config(self._config)
        return {
            "model": self._model.identity(),
            "environments": {choice.name: choice.to_plain() for choice in self._choices},
            "settings": {name: value for name, value in settings.items() if name not in NOT_IDENTITY},
            "mapping": settings["mapping"],
        }

    def plans(self) -> list[EpisodePlan]:
        """Every episode, environment by environment."""
        seed, numbers = self._config.seed, range(self._config.num_rollout)
        return [EpisodePlan(choice.name, number, seed + number) for choice in self._choices for number in numbers]

    def finish(self, ledger: Ledger) -> Results:
        """Run what is not in the ledger, then write everything."""
        self._check_rate()
        plans = self.plans()
        wanted = {plan.key for plan in plans}
        done = {key: result for key, result in ledger.results.items() if key in wanted}
        if done:
            self._teller.say(f"{len(done)} of {len(plans)} episodes are in {ledger.path} already")
        self._teller.say(f"results go to {self._folder}; Ctrl-C keeps what is done")
        before, started = len(done), time.perf_counter()
        try:
            self._run_episodes([plan for plan in plans if plan.key not in done], done, ledger)
            results = self._results(plans, done, before, started)
            results.write(self._folder)
            results = self._with_pictures(results)
            results.write(self._folder)
        except BaseException:
            with contextlib.suppress(RemoteEnvError):  # what stopped us is told; a full disk would hide it
                self._results(plans, done, before, started).write(self._folder)
            if done:
                kept = f"{len(done)} of {len(plans)} episodes are kept"
                self._teller.say(f"stopped: {kept}; the same again with -o {self._folder} goes on there")
            raise
        return results

    def _check_rate(self) -> None:
        rate = self._model.metadata.control_rate_hz
        if rate and abs(rate - self._config.fps) > 1e-6:
            self._teller.warn(f"the policy was made for {rate:g} Hz and --fps is {self._config.fps:g}")

    def _run_episodes(
        self, plans: list[EpisodePlan], done: dict[tuple[str, int], EpisodeResult], ledger: Ledger
    ) -> None:
        def take(result: EpisodeResult) -> None:
            ledger.append(result)
            done[result.key] = result
            self._teller.advance(result)
            if result.end == "error":
                where = f"{result.env}, episode {result.index} (seed {result.seed})"
                self._teller.warn(f"{where}: failed after {result.length} steps: {result.details['error']}")

        setup = WorkerSetup(
            self._config,
            {choice.name: choice for choice in self._choices},
            self._model.address,
            self._model.token,
            self._folder / "captures" if self._config.video else None,
            (self._folder / "workers.log").absolute(),
            None if self._config.use_spawn else Path(get_temp_dir()),
        )
        count = min(self._config.num_envs, len(plans))
        pool = WorkerPool(setup, count, spawn=self._config.use_spawn, tell=self._teller.warn)
        with contextlib.closing(pool), self._teller.progress(len(done) + len(plans), list(done.values())):
            pool.run(plans, take)

    def _results(
        self,
        plans: list[EpisodePlan],
        done: dict[tuple[str, int], EpisodeResult],
        before: int,
        started: float,
    ) -> Results:
        return Results(
            config=plain_config(self._config),
            model=self._model.to_plain(),
            episodes=tuple(done[plan.key] for plan in plans if plan.key in done),
            planned=len(plans),
            load_s=self._model.load_s,
            wall_s=time.perf_counter() - started,
            run_now=len(done) - before,
            parent_peak_bytes=peak_memory_bytes(),
            facts=facts(),
            notes=tuple(self._notes),
        )

    def _with_pictures(self, results: Results) -> Results:
        """The same with plots and videos; what cannot be drawn is a note, and no reason to lose the results."""
        notes = list(results.notes)
        plots: tuple[Path, ...] = ()
        try:
            plots = save_plots(results, self._folder / "plots") if self._config.plots else ()
        except ConfigError as error:
            notes.append(f"no plots: {error}")
        groups = results.by_environment()
        videos, why = save_videos(groups, self._choices, self._folder, self._config.video, self._teller.say)
        return dataclasses.replace(results, plots=plots, videos=videos, notes=(*notes, *why))


def plain_config(config: EvaluationConfig) -> dict[str, Any]:
    """The settings as JSON, without the token."""
    plain = dataclasses.asdict(config)
    del plain["token"]
    plain["output_dir"] = None if config.output_dir is None else str(config.output_dir)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def facts() -> dict[str, Any]:
    """Versions, and the kind of machine."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
