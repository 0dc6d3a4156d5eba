"""A worker: a process that owns one environment and runs the episodes that its parent sends it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from remote_env.errors import ConnectError, RemoteEnvError, TaskError
from remote_env.evaluate.config import EvaluationConfig
from remote_env.evaluate.environments import EnvironmentChoice
from remote_env.evaluate.episodes import EpisodePlan
from remote_env.evaluate.far_runner import FarRunner
from remote_env.evaluate.runner import EpisodeRunner
from remote_env.policy.address import open_policy
from remote_env.policy.policy import Policy

PARENT_ENDING_S = 1.0  # from the end of its pipes to its own
NO_MORE_WORK_S = 0.05  # a parent that lives on so long after it closed the pipe has just no more work


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told at its start.

    Attributes:
        config: of the evaluation.
        environments: by name.
        policy: where to reach the policy: an address.
        token: for it; None looks where clients look.
        captures: folder for captures; None for none.
        log: a file for what the environment prints.
        temporary: multiprocessing's own folder in the parent, with the fork server's socket; None without one.
        environ: the parent's environment variables now; those of a fork server are of when it was started.
    """

    config: EvaluationConfig
    environments: dict[str, EnvironmentChoice]
    policy: str
    token: str | None = field(repr=False)
    captures: Path | None
    log: Path
    temporary: Path | None = None
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


def work(pipe: Connection, setup: WorkerSetup) -> None:
    """Run episodes until the parent closes the pipe; answers are ("result", …) or ("error", exception)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(setup.environ)
    _end_with_parent(setup.temporary)
    _redirect_output(setup.log)
    worker = _Worker(setup)
    try:
        worker.serve(pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        _clear_up(setup.temporary, NO_MORE_WORK_S)
    finally:
        worker.close()


def _end_with_parent(temporary: Path | None) -> None:
    """Have this process end when its parent does, also in the middle of an episode, and clear up after that."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        _clear_up(temporary, 0.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _clear_up(temporary: Path | None, patience_s: float) -> None:
    """Remove what a parent that was killed has left; one that ends by itself does so by itself."""
    parent = parent_process()
    if temporary is None or parent is None or not connection.wait([parent.sentinel], patience_s):
        return
    if _is_killed(parent.pid):
        shutil.rmtree(temporary, ignore_errors=True)


def _is_killed(pid: int | None) -> bool:
    """Whether the process that closed its end of our pipe is gone, shortly after."""
    until = time.monotonic() + PARENT_ENDING_S
    while pid is not None and time.monotonic() < until:
        if not _is_alive(pid):
            return True
        time.sleep(0.02)
    return False


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not, where the system tells that."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:  # not Linux
        return True
    except OSError:
        return False


def _redirect_output(log: Path) -> None:
    """Send what is printed here, by C libraries too, to a file: the terminal shows the parent's progress."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:  # the program was started with it closed
                stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()


class _Worker:
    """The policy's client and the environment of the moment."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._policy: Policy | None = None
        self._runner: EpisodeRunner | FarRunner | None = None
        self._env = ""

    def serve(self, pipe: Connection) -> None:
        while True:
            plan, attempts = pipe.recv()
            answer: tuple[str, Any]
            try:
                answer = self._answer(plan, attempts)
            except RemoteEnvError as error:
                answer = ("error", error)
            except Exception as error:  # noqa: BLE001  an environment may raise anything; the parent tells it
                message = f"{plan.env}, episode {plan.index}: {type(error).__name__}: {error}"
                answer = ("error", TaskError(message, remote_traceback=traceback.format_exc()))
            pipe.send(answer)

    def _answer(self, plan: EpisodePlan, attempts: int) -> tuple[str, Any]:
        """The episode's result; or why this worker has no environment, where another may have one."""
        policy = self._opened_policy() if self._setup.config.rollout == "client" else None
        try:
            runner = self._runner_for(plan, policy)
        except ConnectError as error:
            return "absent", error
        return "result", runner.run(plan, attempts)

    def _runner_for(self, plan: EpisodePlan, policy: Policy | None) -> EpisodeRunner | FarRunner:
        if self._runner is None or self._env != plan.env:
            self._close_runner()
            choice = self._setup.environments[plan.env]
            config, captures = self._setup.config, self._setup.captures
            self._runner = (
                FarRunner(choice, config, captures)
                if policy is None
                else EpisodeRunner(choice, policy, config, captures)
            )
            self._env = plan.env
        return self._runner

    def _opened_policy(self) -> Policy:
        if self._policy is None:
            config = self._setup.config
            self._policy = open_policy(
                self._setup.policy,
                dataset_id="",
                device="cpu",
                chunk_size=config.chunk_size,
                token=self._setup.token,
                timeout_s=config.timeout_s,
                reconnect_timeout_s=config.reconnect_timeout_s,
                task=config.task,
                log=lambda text: print(text, flush=True),
            )
        return self._policy

    def _close_runner(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def close(self) -> None:
        """End the environment and the link to the policy."""
        try:
            self._close_runner()
        finally:
            if self._policy is not None:
                self._policy.close()
