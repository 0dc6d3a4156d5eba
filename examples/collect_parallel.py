"""Collect episodes with four servers in parallel.

Each server has a thread of its own here, which takes the next seed as soon as its last episode is done. What an episode
holds depends on its seed alone, not on which server ran it. When a server is lost, the others run what it was at.

Four embedded servers on this machine:

    python examples/collect_parallel.py

Four machines server0 … server3, whose task servers listen at ports 8888 … 8891, or are started there:

    python examples/collect_parallel.py --host "server{i}" --port 8888 --python /opt/sim/bin/python

Four servers on one machine are the same without `{i}`. Each one's captures are in `captures/server<i>` of the output
directory, in the layout that `remote-env replay` and ACT's tools read. Ctrl-C keeps what was recorded.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A checkout that was not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from login_flags import add_login_flags, in_flags, login_arguments
from replay_tasks import TASKS, EpisodePolicy, Task, make_policy

from remote_env import RemoteEnv
from remote_env.errors import RemoteEnvError
from remote_env.record import Recorder

DEFAULT_RATE_HZ = 30.0
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_login_flags(parser)
    what = parser.add_argument_group("what it collects")
    what.add_argument("--servers", type=_positive, default=4, help="default: %(default)s")
    what.add_argument("--task", default="aloha-transfer-cube", help="a task of replay_tasks.py, or the id of any")
    what.add_argument("--policy", help="scripted, random or module:function; default: the expert, else random")
    what.add_argument("--episodes", type=_positive, default=8, help="in all; default: %(default)s")
    what.add_argument("--max-steps", type=_positive, default=1000, help="of each; default: %(default)s")
    what.add_argument("--seed", type=int, default=0, help="of the first episode; each next is one more")
    what.add_argument("--no-states", action="store_true", help="for a task that tells no scene states")
    out = Path("outputs/collect_parallel")
    parser.add_argument("--output-dir", type=Path, default=out, help="default: %(default)s")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


class Work:
    """The seeds that are still to be run; threads share it.

    Args:
        seeds: of the episodes.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._waiting, self._under_way = list(seeds), 0
        self._changed = threading.Condition()
        self.is_stopped = False

    @property
    def left(self) -> int:
        """How many episodes were not run."""
        return len(self._waiting) + self._under_way

    def __iter__(self) -> Iterator[int]:
        """Seeds for one thread, until all episodes are done; another's loss may bring one back."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.is_stopped or self._waiting or not self._under_way)
                if self.is_stopped or not self._waiting:
                    return
                seed = self._waiting.pop(0)
                self._under_way += 1
            yield seed

    def put_down(self, seed: int, *, is_done: bool) -> None:
        """The seed that a thread took was run, or was not and waits for another."""
        with self._changed:
            self._under_way -= 1
            if not is_done:
                self._waiting.insert(0, seed)
            self._changed.notify_all()

    def stop(self) -> None:
        """Have every thread end."""
        with self._changed:
            self.is_stopped = True
            self._changed.notify_all()


@dataclass
class Collector:
    """One server and the thread that steps it.

    Attributes:
        number: of the server.
        env: its environment.
        no_states: the task tells none.
        episodes: recorded so far.
        steps: in them.
        error: why it gave up, "" while it has not.
    """

    number: int
    env: RemoteEnv
    no_states: bool
    episodes: int = 0
    steps: int = 0
    error: str = ""

    def run(self, work: Work, task: Task, options: argparse.Namespace) -> None:
        """Record episodes until there are no more; close the server's environment."""
        try:
            with self.env as env, self._recorder(task, options) as recorder:
                policy = make_policy(options.policy, task, env)
                for seed in work:
                    self._record(work, policy, recorder, seed, options.max_steps)
        except RemoteEnvError as error:
            self.error = in_flags(error)
            print(f"server {self.number} is left out: {self.error}", file=sys.stderr)

    def _recorder(self, task: Task, options: argparse.Namespace) -> Recorder:
        return Recorder(
            options.output_dir / "captures" / f"server{self.number}",
            rate_hz=float(self.env.metadata.get("render_fps") or DEFAULT_RATE_HZ),
            task=task.label,
            env_kwargs=task.env_kwargs,
            host=host_of(options, self.number) or "local",
            observe=task.observe,
        )

    def _record(self, work: Work, policy: EpisodePolicy, recorder: Recorder, seed: int, max_steps: int) -> None:
        """Record the episode of that seed, or give the seed back."""
        is_done = False
        try:
            is_done = self._run_episode(work, policy, recorder, seed, max_steps)
        finally:
            if not is_done:
                recorder.abandon()
            work.put_down(seed, is_done=is_done)
        if is_done:
            self.episodes += 1
            self.steps += recorder.steps

    def _run_episode(self, work: Work, policy: EpisodePolicy, recorder: Recorder, seed: int, max_steps: int) -> bool:
        """Record one episode; False when it was stopped."""
        env = self.env
        observation, info = env.reset(seed=seed)
        state: Any = None if self.no_states else env.get_state()
        recorder.start(observation, info, state=state, seed=seed)
        act = policy(state, seed)
        for step in range(max_steps):
            if work.is_stopped:
                return False
            action = act(observation, step)
            observation, reward, terminated, truncated, info = env.step(action)
            state = None if self.no_states else env.get_state()
            recorder.record(action, observation, reward, terminated, truncated, info, state=state)
            if terminated or truncated:
                break
        recorder.finish()
        return True


def host_of(options: argparse.Namespace, number: int) -> str | None:
    """Where the server of that number runs; None: on this machine."""
    return None if options.host is None else options.host.replace("{i}", str(number))


def make_collector(options: argparse.Namespace, task: Task, number: int) -> Collector:
    """One server's environment; nothing is started yet."""
    login = login_arguments(options)
    if options.port is not None:
        login["port"] = options.port + number
    env = RemoteEnv(
        host_of(options, number),
        env=task.env_id,
        env_kwargs=task.env_kwargs,
        simulator=task.simulator,
        upload=task.upload,
        capture_state=not options.no_states,
        progress=False,  # several at once
        **login,
    )
    return Collector(number, env, options.no_states)


def collect(collectors: Sequence[Collector], task: Task, work: Work, options: argparse.Namespace) -> None:
    """Run all threads to their end; after a Ctrl-C each ends at its next step."""
    threads = [_thread(one, work, task, options) for one in collectors]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        work.stop()
        for thread in threads:
            thread.join()


def _thread(one: Collector, work: Work, task: Task, options: argparse.Namespace) -> threading.Thread:
    return threading.Thread(target=one.run, args=(work, task, options), name=f"server{one.number}")


def tell(collectors: Sequence[Collector], seconds: float, work: Work, options: argparse.Namespace) -> None:
    """Say what each server gave."""
    for one in collectors:
        where = host_of(options, one.number) or "local"
        print(f"server {one.number} ({where}): {one.episodes} episodes, {one.steps} steps")
    steps = sum(one.steps for one in collectors)
    print(f"{steps} steps in {seconds:.1f} s, starts included; captures are in {options.output_dir / 'captures'}")
    if work.left:
        print(f"{work.left} episodes were not run", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    task = TASKS.get(options.task, Task(options.task))
    work = Work(range(options.seed, options.seed + options.episodes))
    collectors = [make_collector(options, task, number) for number in range(options.servers)]
    began, is_interrupted = time.monotonic(), False
    try:
        collect(collectors, task, work, options)
    except KeyboardInterrupt:
        is_interrupted = True
    tell(collectors, time.monotonic() - began, work, options)
    return INTERRUPTED if is_interrupted else int(work.left > 0)


if __name__ == "__main__":
    sys.exit(main())
