"""Whether anything is lost or done twice when links fail, how long it takes to go on, and what memory that needs.

    python -m benchmarks.reliability [PROOF …] [--steps 10000] [--json OUT]

Each proof walks over a task that counts and hashes every call, while its link is broken again and again, and compares
every value that came, and the task's own hash, with the same walk undisturbed in this process. Proofs, all by default:

    steps       one step at a time, through a proxy that cuts at random bytes about every 50 steps
    ahead       the same with up to 32 steps under way
    mixed       the same with states read and set, pictures, calls by name and resets among the steps
    images      480x640x3 observations, which nearly every cut falls into
    batch       four environments, stepped together
    silent      links that carry nothing and tell nobody, noticed by the heartbeat
    channel     a real sshd whose processes that serve the login are killed about every 50 steps
    openssh     the same with tunnel="openssh"
    sshtunnel   the same with tunnel="sshtunnel"
    ssh-ahead   as channel, with up to 32 steps under way
    memory      resident memory of both ends over images: one at a time and ahead, undisturbed and cut

Ctrl-C ends everything that was started, and shows what has been proved.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.rivals import machine
from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.protocol.task import TaskSpec
from remote_env.testing import FaultProxy

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from server_process import serving  # noqa: E402  a supervisor as the tests start it
from ssh_server import SshServer  # noqa: E402  the tests' own sshd
from trajectories import (  # noqa: E402  the walks of tests/test_trajectories.py
    TASK,
    WINDOW,
    Events,
    Seen,
    Tell,
    Walk,
    here,
    now_and_then,
    random_cuts,
    resident_bytes,
    silent_until_noticed,
    walk,
    walk_ahead,
    walk_batch,
    walk_mixed,
)

MEAN_STEPS = 50
SILENT_EVERY_STEPS = 400
HEARTBEAT = {"heartbeat_s": 0.25, "heartbeat_timeout_s": 1.0}
SAMPLE_EVERY = 500
BATCH = 4

Bar = Callable[[int], None]
Row = dict[str, Any]


@dataclass
class Trial:
    """One walk over a link that fails.

    Attributes:
        take: the walk.
        steps: how many.
        kwargs: of the task.
        num_envs: None for one environment.
        arguments: of the client.
    """

    take: Walk
    steps: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_envs: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def ahead(self) -> int:
        """How many steps are under way at once."""
        return WINDOW if self.take is walk_ahead else 0

    def undisturbed(self) -> Seen:
        """What is to be seen."""
        return here(walk if self.ahead else self.take, self.steps, self.num_envs, **self.kwargs)


def judge(trial: Trial, seen: Seen, events: Events, broken: int, wall_s: float) -> Row:
    """The figures of a walk.

    Args:
        trial: that was made.
        seen: what the client saw.
        events: of its link.
        broken: connections, or logins, that were broken.
        wall_s: how long it took [s].
    """
    waits = events.resumed_s
    quantiles = [float(value) for value in np.percentile(waits, [50, 99, 100])] if waits else [0.0] * 3
    return {
        "steps": seen.steps,
        "broken": broken,
        "resumed": len(waits),
        "doubled": seen.doubled,
        "lost": seen.lost,
        "same": seen.is_like(trial.undisturbed()),
        **dict(zip(("p50_s", "p99_s", "max_s"), quantiles, strict=True)),
        "wall_s": wall_s,
    }


# Through a proxy


@contextmanager
def proxied(trial: Trial, events: Events) -> Iterator[tuple[Any, FaultProxy]]:
    """A client whose link passes through a proxy."""
    task = TaskSpec(TASK, trial.kwargs, num_envs=trial.num_envs)
    kind = RemoteEnv if trial.num_envs is None else RemoteVectorEnv
    with (
        serving(task=task.to_plain(), digest=task.digest) as server,
        FaultProxy(("127.0.0.1", server.port), seed=1) as proxy,
        kind(
            f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, on_link=events, progress=False, **trial.arguments
        ) as env,
    ):
        try:
            yield env, proxy
        finally:
            proxy.cut_every(None)


def prove_cuts(trial: Trial, bar: Bar) -> Row:
    """The walk, cut at random bytes."""
    events = Events()
    with proxied(trial, events) as (env, proxy):
        began = time.perf_counter()
        seen = trial.take(env, trial.steps, _both(bar, random_cuts(proxy, MEAN_STEPS, trial.ahead)))
        return judge(trial, seen, events, proxy.cuts, time.perf_counter() - began)


def prove_silence(trial: Trial, bar: Bar) -> Row:
    """The walk over a link that falls silent until the heartbeat has noticed."""
    events, noticed_s = Events(), []

    def strike() -> None:
        while env._life.monitor.silence[1]:  # the heartbeat beats again
            time.sleep(0.01)
        began = time.perf_counter()
        silent_until_noticed(proxy, events)
        noticed_s.append(time.perf_counter() - began)

    with proxied(trial, events) as (env, proxy), now_and_then(strike, SILENT_EVERY_STEPS) as tell:
        began = time.perf_counter()
        seen = trial.take(env, trial.steps, _both(bar, tell))
        wall_s = time.perf_counter() - began
    row = judge(trial, seen, events, len(noticed_s), wall_s)
    return {**row, "noticed_s": [round(value, 3) for value in sorted(noticed_s)]}


def _both(first: Tell, second: Tell) -> Tell:
    def tell(steps: int) -> None:
        first(steps)
        second(steps)

    return tell


# Over SSH


def prove_killed_logins(trial: Trial, bar: Bar) -> Row:
    """The walk over a real sshd, all processes of which that serve the login are killed."""
    events, killed = Events(), 0

    def strike() -> None:
        nonlocal killed
        killed += bool(sshd.connection_pids())
        sshd.signal_connections(signal.SIGKILL)

    with SshServer() as sshd:
        login = dict(sshd.login)
        login["ssh_config_file"] = login.pop("config_file")
        far = {"env": TASK, "python": sys.executable, "progress": False, "on_link": events, **login, **trial.arguments}
        with RemoteEnv(sshd.target, **far) as env, now_and_then(strike, MEAN_STEPS) as tell:
            began = time.perf_counter()
            seen = trial.take(env, trial.steps, _both(bar, tell))
            wall_s = time.perf_counter() - began
    return judge(trial, seen, events, killed, wall_s)


# Memory


def measure_memory(steps: int, bar: Bar) -> dict[str, Row]:
    """Resident megabytes of client and simulator every 500 steps of images, in four ways."""
    ways = {
        "one at a time": (walk, False),
        "ahead": (walk_ahead, False),
        "one at a time, cut": (walk, True),
        "ahead, cut": (walk_ahead, True),
    }
    rows = {}
    for index, (name, (take, is_cut)) in enumerate(ways.items()):
        rows[name] = _watch_memory(Trial(take, steps, {"image": True}), is_cut, _from(bar, index * steps))
    return rows


def _from(bar: Bar, start: int) -> Bar:
    return lambda steps: bar(start + steps)


def _watch_memory(trial: Trial, is_cut: bool, bar: Bar) -> Row:
    events, client, simulator = Events(), [], []
    with proxied(trial, events) as (env, proxy):
        pid = env.status()["pid"]
        cut = random_cuts(proxy, MEAN_STEPS, trial.ahead) if is_cut else bar

        def tell(steps: int) -> None:
            bar(steps)
            cut(steps)
            if steps % SAMPLE_EVERY == 0:
                client.append(resident_bytes() / 1e6)
                simulator.append(resident_bytes(pid) / 1e6)

        trial.take(env, trial.steps, tell)
    return {"steps": trial.steps, "resumed": len(events.resumed_s), "client_MB": client, "simulator_MB": simulator}


# All of them


def proofs(steps: int) -> dict[str, tuple[Callable[[Trial, Bar], Row], Trial]]:
    """What can be proved: its name, how, and the walk."""
    drawn = {"episode_length": 200, "render_mode": "rgb_array"}
    ended = {"episode_length": 200}
    ahead_far = {"env_kwargs": ended}
    return {
        "steps": (prove_cuts, Trial(walk, steps, ended)),
        "ahead": (prove_cuts, Trial(walk_ahead, steps, ended)),
        "mixed": (prove_cuts, Trial(walk_mixed, steps, drawn)),
        "images": (prove_cuts, Trial(walk, steps, {"image": True, "episode_length": 200})),
        "batch": (prove_cuts, Trial(walk_batch, steps, ended, num_envs=BATCH)),
        "silent": (prove_silence, Trial(walk, steps, {"step_s": 0.002}, arguments=HEARTBEAT)),
        "channel": (prove_killed_logins, Trial(walk, steps, arguments={"tunnel": "channel"})),
        "openssh": (prove_killed_logins, Trial(walk, steps, arguments={"tunnel": "openssh"})),
        "sshtunnel": (prove_killed_logins, Trial(walk, steps, arguments={"tunnel": "sshtunnel"})),
        "ssh-ahead": (prove_killed_logins, Trial(walk_ahead, steps, ended, arguments=ahead_far)),
    }


MEMORY = "memory"


def show(results: dict[str, Any]) -> None:
    """Print what has been proved."""
    console = _wide_console()
    rows = {name: row for name, row in results.items() if "same" in row}
    if rows:
        table = Table(title="links that fail")
        columns = ("proof", "steps", "links broken", "resumed", "doubled", "lost", "same", "p50 s", "p99 s", "max s")
        for column in (*columns, "wall s"):
            table.add_column(column, justify="left" if column == "proof" else "right")
        for name, row in rows.items():
            counts = [f"{row[key]:,}" for key in ("steps", "broken", "resumed", "doubled", "lost")]
            seconds = [f"{row[key]:.3f}" for key in ("p50_s", "p99_s", "max_s")]
            table.add_row(name, *counts, "yes" if row["same"] else "NO", *seconds, f"{row['wall_s']:.0f}")
        console.print(table)
    if noticed := results.get("silent", {}).get("noticed_s"):
        console.print(f"silent: noticed after {np.median(noticed):.2f} s (p50), {max(noticed):.2f} s at most")
    if MEMORY in results:
        show_memory(results[MEMORY])


def show_memory(rows: dict[str, Row]) -> None:
    """Print resident memory: of the first sample, the largest, and the last."""
    table = Table(title=f"resident MB, every {SAMPLE_EVERY} steps of 480x640x3")
    for column in ("", "resumed", "client: first", "largest", "last", "simulator: first", "largest", "last"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        figures = [f(row[end]) for end in ("client_MB", "simulator_MB") for f in (lambda v: v[0], max, lambda v: v[-1])]
        table.add_row(name, f"{row['resumed']:,}", *(f"{figure:.1f}" for figure in figures))
    _wide_console().print(table)


def _wide_console() -> Console:
    """So wide that no figure is cut off, in a file too."""
    console = Console()
    console.width = max(console.width, 120)
    return console


@contextmanager
def _own_cache() -> Iterator[None]:
    """What is started here is not found by other programs, and leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="remote-env-reliability-") as folder:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _prove(names: list[str], options: argparse.Namespace, results: dict[str, Any]) -> None:
    known = proofs(options.steps)
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _own_cache(), Progress(*columns, console=Console(stderr=True)) as progress:
        for name in names:
            count = options.memory_steps * 4 if name == MEMORY else options.steps
            task = progress.add_task(name, total=count)

            def bar(steps: int, task: Any = task, count: int = count) -> None:
                if steps % 10 == 0 or steps == count:
                    progress.update(task, completed=steps)

            if name == MEMORY:
                results[name] = measure_memory(options.memory_steps, bar)
            else:
                prove, trial = known[name]
                results[name] = prove(trial, bar)
            if options.json:
                options.json.write_text(json.dumps(results, indent=2))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*proofs(1), MEMORY]
    parser.add_argument("proof", nargs="*", metavar="PROOF", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--steps", type=int, default=10_000, help="of each walk (default %(default)s)")
    parser.add_argument("--memory-steps", type=int, default=10_000, help="of each way (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--verbose", action="store_true", help="let the client tell of each cut")
    options = parser.parse_args()
    if unknown := set(options.proof) - set(known):
        parser.error(f"no such proof: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    options.proof = options.proof or known
    return options


def main() -> int:
    """Prove, and show; 1 when something was lost, done twice or changed, 130 after Ctrl-C."""
    options = parse_arguments()
    logging.getLogger("remote_env").setLevel(logging.WARNING if options.verbose else logging.ERROR)
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    status = 0
    try:
        _prove(options.proof, options, results)
    except KeyboardInterrupt:
        status = 130
    show({name: row for name, row in results.items() if name != "machine"})
    failed = [name for name, row in results.items() if isinstance(row, dict) and row.get("same") is False]
    return status or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
