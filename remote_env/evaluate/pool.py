"""The workers of an evaluation: who runs which episode, and what happens when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from remote_env.errors import DeadlineExceeded, TaskError
from remote_env.evaluate.episodes import EpisodePlan, EpisodeResult
from remote_env.evaluate.worker import WorkerSetup, work

ATTEMPTS = 2  # how often an episode may take its worker along
ENDING_S = 5.0  # for a worker to close its environment; then it is killed
REAPING_S = 2.0  # for the system to say how a process ended
TAIL_LINES = 8


@dataclass
class _Member:
    """A worker process, and what it does."""

    process: Any
    pipe: Connection
    plan: EpisodePlan | None = None
    deadline: float = 0.0


class WorkerPool:
    """Worker processes; each takes the next episode of the list when it is done with one.

    Args:
        setup: what each worker is told.
        count: how many at the same time, at most.
        spawn: start them with "spawn" instead of "forkserver".
        tell: told of workers that died.
    """

    def __init__(self, setup: WorkerSetup, count: int, *, spawn: bool, tell: Callable[[str], None]) -> None:
        self._setup, self._count, self._tell = setup, count, tell
        self._context = worker_context(spawn=spawn)
        self._members: list[_Member] = []
        self._todo: deque[EpisodePlan] = deque()
        self._attempts: dict[tuple[str, int], int] = {}

    def run(self, plans: Iterable[EpisodePlan], on_result: Callable[[EpisodeResult], None]) -> None:
        """Run every episode, each once.

        Args:
            plans: in the order in which they are begun.
            on_result: told of each episode that is done, in the order in which they end.

        Raises:
            RemoteEnvError: an episode raised it, or took its worker along twice (TaskError).
            DeadlineExceeded: an episode took longer than `episode_timeout_s`, twice.
        """
        self._todo = deque(plans)
        while self._todo or any(member.plan for member in self._members):
            self._hand_out()
            for member in self._wait():
                result = self._collect(member)
                if result is not None:
                    on_result(result)

    def _hand_out(self) -> None:
        for member in self._members:
            if member.plan is None and self._todo:
                self._give(member, self._todo.popleft())
        while self._todo and len(self._members) < self._count:
            self._members.append(self._start())
            self._give(self._members[-1], self._todo.popleft())

    def _start(self) -> _Member:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, self._setup), name="evaluation worker")
        with bare_start():
            process.start()
        theirs.close()
        return _Member(process, ours)

    def _give(self, member: _Member, plan: EpisodePlan) -> None:
        attempts = self._attempts[plan.key] = self._attempts.get(plan.key, 0) + 1
        member.plan = plan
        member.deadline = time.monotonic() + self._setup.config.episode_timeout_s
        try:
            member.pipe.send((plan, attempts))
        except OSError:
            return  # it died while it idled; `_wait` finds its end

    def _wait(self) -> list[_Member]:
        """The busy workers that have answered, died, or are late."""
        busy = [member for member in self._members if member.plan is not None]
        until = min(member.deadline for member in busy)
        waiting: dict[Any, _Member] = {member.pipe: member for member in busy}
        waiting |= {member.process.sentinel: member for member in busy}
        ready = connection.wait(list(waiting), max(until - time.monotonic(), 0.0))
        found = {id(member): member for member in (waiting[each] for each in ready)}
        now = time.monotonic()
        found |= {id(member): member for member in busy if member.deadline <= now}
        return list(found.values())

    def _collect(self, member: _Member) -> EpisodeResult | None:
        """What a worker has to say; None when it has died, and its episode waits to be run again."""
        plan = member.plan
        assert plan is not None  # noqa: S101  only busy workers are waited for
        try:
            if not member.pipe.poll():
                raise EOFError
            kind, value = member.pipe.recv()
        except (EOFError, OSError):
            self._bury(member, plan)
            return None
        member.plan = None
        if kind == "error":
            raise value
        if kind == "absent":
            self._dismiss(member, plan, value)
            return None
        return value  # type: ignore[no-any-return]

    def _dismiss(self, member: _Member, plan: EpisodePlan, error: Exception) -> None:
        """Go on without a worker that gets no environment, as of a server that takes fewer sessions."""
        self._members.remove(member)
        _end([member], ENDING_S)
        if not self._members:
            raise error
        self._count = len(self._members)
        self._attempts[plan.key] -= 1
        self._todo.appendleft(plan)
        self._tell(f"{plan.env}: {error}; going on with {self._count} side by side")

    def _bury(self, member: _Member, plan: EpisodePlan) -> None:
        """Take a worker that died or hangs off the list, and its episode back onto the list of what is to do."""
        late = member.process.is_alive() and time.monotonic() >= member.deadline
        self._members.remove(member)
        (exitcode,) = _end([member], 0.0 if late else REAPING_S)
        what = f"{plan.env}, episode {plan.index} (seed {plan.seed})"
        why = f"took longer than {self._setup.config.episode_timeout_s:g} s" if late else _why(exitcode)
        if self._attempts[plan.key] >= ATTEMPTS:
            kind = DeadlineExceeded if late else TaskError
            raise kind(f"{what}: the worker {why}, {ATTEMPTS} times. {self._tail()}")
        self._tell(f"{what}: the worker {why}; the episode is run again")
        self._todo.appendleft(plan)

    def _tail(self) -> str:
        try:
            lines = self._setup.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            lines = []
        said = " | ".join(line.strip() for line in lines if line.strip())
        return f"It said last ({self._setup.log}): {said}" if said else f"Nothing was printed ({self._setup.log})"

    def close(self) -> None:
        """End all workers: those that idle at once, those in an episode after at most `ENDING_S`."""
        members, self._members = self._members, []
        _end(members, ENDING_S)


@contextlib.contextmanager
def bare_start() -> Iterator[None]:
    """Have processes that are started meanwhile be spared Ctrl-C and the program that evaluates.

    Ctrl-C reaches the whole group, and an interpreter that is not up yet would print a traceback for it; `work` ends
    the blocking. And a worker needs nothing of the main program: running that again in each takes time, and would start
    an evaluation in each where it has no `if __name__ == "__main__"`.
    """
    resource_tracker.ensure_running()  # its start would end the blocking
    main, blocked = sys.modules["__main__"], hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocked else set()
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_context(*, spawn: bool) -> Any:
    """How processes are started: never by a plain fork, which copies locks that threads hold.

    A fork server is started at once: what it imports for all workers it imports while the policy is loaded.
    """
    if spawn or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["remote_env.evaluate.worker"])
    with bare_start():
        forkserver.ensure_running()
    return context


def _why(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"


def _end(members: list[_Member], patience_s: float) -> list[int | None]:
    """End these processes and reap them; their exit codes."""
    for member in members:
        member.pipe.close()
        if member.plan is not None and member.process.is_alive():
            member.process.terminate()
    deadline = time.monotonic() + patience_s
    for member in members:
        member.process.join(max(deadline - time.monotonic(), 0.0))
        if member.process.is_alive():
            member.process.kill()
        member.process.join()
    codes = [member.process.exitcode for member in members]
    for member in members:
        member.process.close()
    return codes
