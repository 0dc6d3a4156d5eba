"""What each way to a server costs: channel, openssh, sshtunnel, beside raw TCP and `ssh -L`, through a real sshd.

    python -m benchmarks.bench_tunnel [--json OUT] [--turns 30] [--starts 7] [--quick]

sshd, servers and clients are pinned to one CPU. All rivals of a table are open at once and take turns; the figures are
over all turns. `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.rivals import machine
from benchmarks.tunnel_ways import AnsweringServer, PlainForward, RawSocket, ThroughTunnel
from remote_env import RemoteEnv
from remote_env.ssh import SshConnection
from remote_env.ssh.tunnel import KINDS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from ssh_server import SshServer  # noqa: E402  the tests' own sshd

SMALL_BYTES, LARGE_BYTES = 200, 1_000_000
TASK = "benchmarks.trivial_env:TrivialScene"
FREE_PORT = 18_900
RAW, PLAIN = "raw TCP", "ssh -L, raw socket"

Call = Callable[[], Any]
Row = dict[str, float]


def take_turns(rivals: dict[str, Call], turns: int, calls: int) -> dict[str, Any]:
    """The seconds of each call of each rival, all taking turns."""
    seconds: dict[str, list[Any]] = {name: [] for name in rivals}
    for call in rivals.values():
        _time(call, max(calls // 5, 3))
    for _ in track(range(turns), description="turns", console=Console(stderr=True)):
        for name, call in rivals.items():
            seconds[name].append(_time(call, calls))
    return {name: np.concatenate(every) for name, every in seconds.items()}


def _time(call: Call, calls: int) -> Any:
    clock, stamps = time.perf_counter, np.empty(calls + 1)
    stamps[0] = clock()
    for index in range(1, calls + 1):
        call()
        stamps[index] = clock()
    return np.diff(stamps)


# Bytes


def bench_bytes(server: SshServer, turns: int) -> dict[str, dict[str, Row]]:
    """A round trip of 200 bytes, and a reply of 1 MB, through each way."""
    login = SshConnection(server.target, **server.login)
    with ExitStack() as stack:
        connection = stack.enter_context(login)
        answering = AnsweringServer()
        stack.callback(answering.close)
        ways: dict[str, Any] = {
            RAW: RawSocket(answering.port),
            PLAIN: PlainForward(connection.login.ssh_arguments(), answering.port),
            **{kind: ThroughTunnel(kind, connection, answering.port) for kind in KINDS},
        }
        for way in ways.values():
            stack.callback(way.close)
        results = {}
        for size, calls in ((SMALL_BYTES, 300), (LARGE_BYTES, 20)):
            rivals = {name: (lambda way=way, size=size: way.ask(size)) for name, way in ways.items()}
            results[f"{size} bytes"] = _judge(take_turns(rivals, turns, calls), size)
        return results


def _judge(seconds: dict[str, Any], size: int) -> dict[str, Row]:
    """p50 and p99 [µs], MB/s at the median, and p50 relative to `ssh -L`."""
    base = float(np.median(seconds[PLAIN]))
    return {
        name: {
            "p50_us": float(np.percentile(every, 50)) * 1e6,
            "p99_us": float(np.percentile(every, 99)) * 1e6,
            "MB_per_s": size / float(np.median(every)) / 1e6,
            "x_ssh_L": float(np.median(every)) / base,
        }
        for name, every in seconds.items()
    }


# Environments


def _far(server: SshServer, **more: Any) -> RemoteEnv:
    """A RemoteEnv over the benchmark's sshd, served by this interpreter."""
    login = dict(server.login)
    login["ssh_config_file"] = login.pop("config_file")
    arguments = {"env": TASK, "python": sys.executable, "server_env": {"PYTHONPATH": str(ROOT)}, "progress": False}
    return RemoteEnv(server.target, **{**login, **arguments, **more})


def bench_calls(server: SshServer, turns: int) -> dict[str, Row]:
    """Reset, step and get state [ms] through each way to connect, and what the way adds to a step over TCP."""
    with ExitStack() as stack:
        envs = {
            "local, Unix socket": RemoteEnv(env=TASK, progress=False),
            "local, TCP": RemoteEnv(port=FREE_PORT, env=TASK, progress=False),
            **{kind: _far(server, tunnel=kind) for kind in KINDS},
        }
        action = np.zeros(14, np.float32)
        for env in envs.values():
            stack.enter_context(env)
            env.reset(seed=0)
        tables = {
            "reset": take_turns({name: env.reset for name, env in envs.items()}, turns, 20),
            "step": take_turns({name: (lambda env=env: env.step(action)) for name, env in envs.items()}, turns, 300),
            "get state": take_turns({name: env.get_state for name, env in envs.items()}, turns, 50),
        }
    results = {name: {call: float(np.median(table[name])) * 1e3 for call, table in tables.items()} for name in envs}
    for row in results.values():
        row["tunnel overhead"] = row["step"] - results["local, TCP"]["step"]
    return results


def bench_images(server: SshServer, turns: int) -> dict[str, Row]:
    """A step with a 480x640x3 observation [ms] through each way to connect."""
    with ExitStack() as stack:
        envs = {
            "local, Unix socket": RemoteEnv(env=TASK, env_kwargs={"image": True}, progress=False),
            **{kind: _far(server, tunnel=kind, env_kwargs={"image": True}) for kind in KINDS},
        }
        action = np.zeros(14, np.float32)
        for env in envs.values():
            stack.enter_context(env)
            env.reset(seed=0)
        seconds = take_turns({name: (lambda env=env: env.step(action)) for name, env in envs.items()}, turns, 20)
    size = 480 * 640 * 3
    return {
        name: {
            "p50 ms": float(np.median(every)) * 1e3,
            "p99 ms": float(np.percentile(every, 99)) * 1e3,
            "MB/s": size / float(np.median(every)) / 1e6,
        }
        for name, every in seconds.items()
    }


# Starts


def bench_starts(server: SshServer, starts: int) -> dict[str, Row]:
    """Seconds until the first observation: cold with the files there already, warm, and what Python alone takes."""
    ssh = ["ssh", *SshConnection(server.target, **server.login).login.ssh_arguments()]
    words = [sys.executable, "-c", "'import numpy, gymnasium'"]
    rivals: dict[str, Call] = {
        "ssh host python -c 'import numpy, gymnasium'": lambda: subprocess.run([*ssh, *words], check=True),
        "cold start": lambda: _first_observation(server),
    }
    with _far(server, keep=True) as kept:  # its server stays warm
        kept.reset(seed=0)
    try:
        rivals["warm re-attach, reuse=True"] = lambda: _first_observation(server, reuse=True, keep=True)
        seconds = take_turns(rivals, starts, 1)
    finally:
        with _far(server, reuse=True, keep=False) as last:
            last.reset(seed=0)
            last.close(keep=False)
    base = float(np.median(seconds[next(iter(rivals))]))
    return {
        name: {
            "p50 s": float(np.median(every)),
            "slowest s": float(every.max()),
            "more than ssh + import, s": float(np.median(every)) - base,
        }
        for name, every in seconds.items()
    }


def _first_observation(server: SshServer, **more: Any) -> None:
    env = _far(server, **more)
    try:
        env.reset(seed=0)
    finally:
        env.close()


# Printing


def show(title: str, rows: dict[str, Row]) -> None:
    """Print one table."""
    table = Table(title=title)
    table.add_column("")
    columns = list(next(iter(rows.values())))
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:,.{3 if abs(row[column]) < 10 else 1}f}" for column in columns))
    Console().print(table)


@contextmanager
def _one_cpu() -> Iterator[None]:
    """All that is started inside runs on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> int:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--turns", type=int, default=30, help="how often each rival has its turn (default %(default)s)")
    parser.add_argument("--starts", type=int, default=7, help="how often each start is timed (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two turns of each, to see that it runs")
    options = parser.parse_args()
    turns, starts = (2, 1) if options.quick else (options.turns, options.starts)
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    with _one_cpu(), SshServer() as server:
        for size, rows in bench_bytes(server, turns).items():
            results[f"round trip, reply of {size}"] = rows
            show(f"round trip, reply of {size}, one CPU", rows)
        for title, bench in (("ms, median, one CPU", bench_calls), ("a step with a 480x640x3 image", bench_images)):
            results[title] = bench(server, turns)
            show(title, results[title])
        results["starts"] = bench_starts(server, starts)
        show("until the first observation, one CPU", results["starts"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
