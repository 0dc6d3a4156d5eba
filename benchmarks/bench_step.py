"""What a step costs beyond the physics: RemoteEnv against raw ping-pong and the plain pickle server, interleaved.

    python -m benchmarks.bench_step [--json OUT] [--seconds 20] [--skip-aloha]

Every process is pinned to one CPU (unpinned is printed beside it where it matters). All rivals of a table are open at
once and take turns; the figures are over all turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import remote_env  # noqa: F401  registers Remote-v0
from benchmarks.rivals import PickleServer, RawPingPong, machine

HEADER_AND_ACTION = 40 + 56
HEADER_AND_RESULT = 40 + 10
FREE_PORT = 18_800

Step = Callable[[Any], Any]


def measure(rivals: dict[str, Step], action: Any, turns: int, steps: int) -> dict[str, dict[str, float]]:
    """Steps/s and latencies of each rival, all taking turns.

    Returns:
        Rival -> steps_per_s (median over the turns), p50_us and p99_us over all its steps.
    """
    latencies: dict[str, list[Any]] = {name: [] for name in rivals}
    for step in rivals.values():
        _run(step, action, max(steps // 10, 5))
    for _ in track(range(turns), description="turns", console=Console(stderr=True)):
        for name, step in rivals.items():
            latencies[name].append(_run(step, action, steps))
    return {name: _summary(turns) for name, turns in latencies.items()}


def _run(step: Step, action: Any, steps: int) -> Any:
    clock, stamps = time.perf_counter, np.empty(steps + 1)
    stamps[0] = clock()
    for index in range(1, steps + 1):
        step(action)
        stamps[index] = clock()
    return np.diff(stamps)


def _summary(turns: list[Any]) -> dict[str, float]:
    every = np.concatenate(turns) * 1e6
    return {
        "steps_per_s": float(np.median([len(turn) / turn.sum() for turn in turns])),
        "p50_us": float(np.percentile(every, 50)),
        "p99_us": float(np.percentile(every, 99)),
    }


def show(title: str, results: dict[str, dict[str, float]], baseline: str) -> None:
    """Print one table, each rival relative to `baseline`."""
    table = Table(title=title)
    for column in ("", "steps/s", "p50 µs", "p99 µs", f"× {baseline}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in results.items():
        ratio = row["steps_per_s"] / results[baseline]["steps_per_s"]
        table.add_row(
            name, f"{row['steps_per_s']:,.0f}", f"{row['p50_us']:,.1f}", f"{row['p99_us']:,.1f}", f"{ratio:.2f}"
        )
    Console().print(table)


def bench_wire(family: str, *, image: bool, seconds: float) -> dict[str, dict[str, float]]:
    """RemoteEnv through `gymnasium.make` against its rivals, on one kind of socket."""
    size = 480 * 640 * 3 if image else 14 * 8
    raw = RawPingPong(family, request_size=HEADER_AND_ACTION, reply_size=HEADER_AND_RESULT + size)
    pickled = PickleServer(family, image=image)
    common: dict[str, Any] = {"env": "benchmarks.trivial_env:TrivialEnv", "env_kwargs": {"image": image}}
    ours = gymnasium.make("Remote-v0", port=FREE_PORT if family == "tcp" else None, **common)
    ours.reset()
    rivals: dict[str, Step] = {"raw ping-pong": raw.step, "pickle server": pickled.step, "RemoteEnv": ours.step}
    if not image and family == "unix":
        busy = gymnasium.make("Remote-v0", busy_poll_s=0.001, **common)
        busy.reset()
        rivals["RemoteEnv, busy_poll_s=0.001"] = busy.step
    action = np.zeros(14, np.float32)
    try:
        steps = 100 if image else 2000
        pace = sum(_run(step, action, steps).sum() for step in rivals.values())
        return measure(rivals, action, max(3, int(seconds / pace)), steps)
    finally:
        raw.close()
        pickled.close()
        ours.close()
        if not image and family == "unix":
            busy.close()


def bench_aloha(turns: int) -> dict[str, dict[str, float]]:
    """The ALOHA transfer task on its expert's trajectory, without rendering, against gym-aloha."""
    from benchmarks.aloha_rivals import expert_actions, make_gym_aloha, time_episode

    actions = expert_actions(seed=0)
    task = "remote_env/AlohaTransferCube-v0"
    from remote_env.tasks import register_tasks

    register_tasks()
    envs = {
        "gym-aloha, rendering stubbed out": make_gym_aloha(stub_rendering=True),
        "AlohaEnv in this process": gymnasium.make(task, obs_type="agent_pos", disable_env_checker=True),
        "RemoteEnv": gymnasium.make("Remote-v0", env=task, env_kwargs={"obs_type": "agent_pos"}),
        "RemoteEnv, busy_poll_s=0.001": gymnasium.make(
            "Remote-v0", env=task, env_kwargs={"obs_type": "agent_pos"}, busy_poll_s=0.001
        ),
    }
    latencies: dict[str, list[Any]] = {name: [] for name in envs}
    try:
        for _ in track(range(turns), description="episodes", console=Console(stderr=True)):
            for name, env in envs.items():
                env.reset(seed=0)
                latencies[name].append(time_episode(env, actions))
    finally:
        for env in envs.values():
            env.close()
    return {name: _summary(rows) for name, rows in latencies.items()}


def bench_aloha_as_shipped() -> dict[str, float]:
    """gym-aloha with its own camera rendering, in a process whose OpenGL dm_control may choose."""
    command = [sys.executable, "-m", "benchmarks.aloha_rivals"]
    environment = {"MUJOCO_GL": "egl", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return _summary([np.array(json.loads(done.stdout.splitlines()[-1]))])


def show_breakdown(results: dict[str, dict[str, float]]) -> None:
    """Print what RemoteEnv.step adds to raw ping-pong, and where it goes."""
    from benchmarks.breakdown import time_parts

    overhead = results["RemoteEnv"]["p50_us"] - results["raw ping-pong"]["p50_us"]
    table = Table(title=f"RemoteEnv.step adds {overhead:.1f} µs (p50) to raw ping-pong; its parts, each timed alone")
    table.add_column("part")
    table.add_column("µs", justify="right")
    for part, microseconds in time_parts().items():
        table.add_row(part, f"{microseconds:.2f}")
    Console().print(table)


def main() -> int:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each table runs (default 20)")
    parser.add_argument("--skip-aloha", action="store_true", help="only the wire")
    options = parser.parse_args()
    every_cpu = os.sched_getaffinity(0)
    one_cpu = {max(every_cpu)}
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    os.sched_setaffinity(0, one_cpu)
    for family in ("unix", "tcp"):
        for image in (False, True):
            name = f"{'480x640x3 uint8' if image else '14 float64'}, {family}, one CPU"
            results[name] = bench_wire(family, image=image, seconds=options.seconds)
            show(name, results[name], "pickle server")
    show_breakdown(results["14 float64, unix, one CPU"])
    os.sched_setaffinity(0, every_cpu)
    results["14 float64, unix, unpinned"] = bench_wire("unix", image=False, seconds=options.seconds)
    show("14 float64, unix, unpinned", results["14 float64, unix, unpinned"], "pickle server")
    if not options.skip_aloha:
        for name, cpus in (("ALOHA, one CPU", one_cpu), ("ALOHA, unpinned", every_cpu)):
            os.sched_setaffinity(0, cpus)
            results[name] = bench_aloha(turns=max(3, int(options.seconds / 2)))
            results[name]["gym-aloha as shipped"] = bench_aloha_as_shipped()
            show(name, results[name], "AlohaEnv in this process")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
