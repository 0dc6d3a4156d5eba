"""Environment steps per second of batches, against their width: RemoteVectorEnv beside Gymnasium's own, interleaved.

    python -m benchmarks.bench_vector [--json OUT] [--quick] [--skip-aloha]

All on this machine. CartPole costs next to nothing, so that what a batch itself costs shows; ALOHA (without cameras)
costs what physics costs. For each width all rivals are open at once and take turns; figures are medians over the turns
and percentiles over all steps. `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from rich.console import Console
from rich.table import Table

from benchmarks.bench_step import measure
from benchmarks.rivals import machine
from remote_env import RemoteVectorEnv
from remote_env.tasks import register_tasks

LOCAL_ASYNC, LOCAL_SYNC = "AsyncVectorEnv", "SyncVectorEnv"
REMOTE_ASYNC, REMOTE_SYNC, REMOTE_NATIVE = "ours, async", "ours, sync", "ours, native"
TWO_SERVERS = "ours, sync, 2 servers"
ALOHA = "remote_env/AlohaTransferCube-v0"
ALOHA_KWARGS = {"obs_type": "agent_pos"}
AIM_OF_LOCAL = 0.9  # for ALOHA, from N = 4 on
MAX_PROCESSES = 64  # of one rival; beyond, two cores mostly switch between them

Row = dict[str, float]
Make = Callable[[], Any]


def cartpole_rivals(count: int) -> dict[str, Make]:
    """Who steps a batch of CartPoles of this width."""
    common: dict[str, Any] = {"env": "CartPole-v1", "num_envs": count, "progress": False}
    rivals: dict[str, Make] = {
        LOCAL_SYNC: lambda: SyncVectorEnv([_cartpole] * count),
        REMOTE_SYNC: lambda: RemoteVectorEnv(**common),
        REMOTE_NATIVE: lambda: RemoteVectorEnv(**common, vectorization_mode="native"),
    }
    if count > 1:
        rivals[TWO_SERVERS] = lambda: RemoteVectorEnv([None, None], **common)  # type: ignore[arg-type]
    if count <= MAX_PROCESSES:
        rivals[LOCAL_ASYNC] = lambda: AsyncVectorEnv([_cartpole] * count)
        rivals[REMOTE_ASYNC] = lambda: RemoteVectorEnv(**common, vectorization_mode="async")
    return rivals


def aloha_rivals(count: int) -> dict[str, Make]:
    """Who steps a batch of ALOHA tasks of this width."""
    common: dict[str, Any] = {"env": ALOHA, "env_kwargs": ALOHA_KWARGS, "num_envs": count, "progress": False}
    return {
        LOCAL_ASYNC: lambda: AsyncVectorEnv([_aloha] * count),
        REMOTE_ASYNC: lambda: RemoteVectorEnv(**common, vectorization_mode="async"),
        REMOTE_SYNC: lambda: RemoteVectorEnv(**common),
    }


def _cartpole() -> Any:
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def _aloha() -> Any:
    register_tasks()
    return gymnasium.make(ALOHA, disable_env_checker=True, **ALOHA_KWARGS)  # type: ignore[arg-type]


def bench_width(rivals: Mapping[str, Make], turns: int, steps: int) -> dict[str, Row]:
    """Of each rival env_steps_per_s, and p50_us and p99_us of a step of the whole batch."""
    with ExitStack() as stack:
        envs = {}
        for name, make in rivals.items():
            envs[name] = env = make()
            stack.callback(env.close)
            env.reset(seed=0)
        count = env.num_envs
        actions = _start_actions(env)
        rows = measure({name: env.step for name, env in envs.items()}, actions, turns, steps)
    return {
        name: {"env_steps_per_s": row.pop("steps_per_s") * count, "us_per_env": row["p50_us"] / count, **row}
        for name, row in rows.items()
    }


def _start_actions(env: Any) -> Any:
    """Actions that keep going: the arms stay where they are, the carts are pushed to and fro by turns."""
    if isinstance(env.single_action_space, gymnasium.spaces.Discrete):
        return np.arange(env.num_envs) % 2
    return np.asarray(env.reset(seed=0)[0], env.action_space.dtype).reshape(env.action_space.shape)


def show(title: str, results: Mapping[int, Mapping[str, Row]]) -> None:
    """Print what each width brings, and its relation to Gymnasium's own AsyncVectorEnv, in this process."""
    table = Table(title=title)
    for column in ("N", "", "env steps/s", "p50 µs", "p99 µs", "µs per env", "× async"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for count, rows in results.items():
        for name, row in rows.items():
            ratio = row["env_steps_per_s"] / rows[LOCAL_ASYNC]["env_steps_per_s"] if LOCAL_ASYNC in rows else None
            figures = (f"{row[key]:,.1f}" for key in ("p50_us", "p99_us", "us_per_env"))
            shown = "" if ratio is None else f"{ratio:.2f}"
            table.add_row(str(count), name, f"{row['env_steps_per_s']:,.0f}", *figures, shown)
        table.add_section()
    Console().print(table)


def judge(cartpole: Mapping[int, Mapping[str, Row]], aloha: Mapping[int, Mapping[str, Row]]) -> dict[str, Any]:
    """The aims, and whether they are met."""
    shares = {
        count: rows[REMOTE_ASYNC]["env_steps_per_s"] / rows[LOCAL_ASYNC]["env_steps_per_s"]
        for count, rows in aloha.items()
        if count >= 4
    }
    widths = sorted(cartpole)
    growth = {  # of the cost per environment, from a batch wide enough that the round trip hardly shows
        name: cartpole[widths[-1]][name]["us_per_env"] / cartpole[widths[-2]][name]["us_per_env"]
        for name in (REMOTE_SYNC, LOCAL_SYNC)
    }
    return {
        f"ALOHA, async: at least {AIM_OF_LOCAL} of local from N = 4 on": {
            "by_width": shares,
            "met": bool(shares) and min(shares.values()) >= AIM_OF_LOCAL,
        },
        f"CartPole: cost per environment at N = {widths[-1]} over that at N = {widths[-2]} (linear: 1.0)": {
            "by_rival": growth,
            "met": growth[REMOTE_SYNC] <= 1.1,
        },
    }


def main() -> int:
    """Run both tables and judge them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="few widths and turns, to show that it runs")
    parser.add_argument("--skip-aloha", action="store_true", help="only CartPole")
    options = parser.parse_args()
    turns, cartpole_steps, aloha_steps = (3, 1000, 60) if options.quick else (11, 4000, 240)
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    cartpole, aloha = {}, {}
    for count in (1, 8) if options.quick else (1, 4, 16, 64, 256):
        cartpole[count] = bench_width(cartpole_rivals(count), turns, max(10, cartpole_steps // count))
    show("CartPole-v1", cartpole)
    if not options.skip_aloha:
        for count in (1, 4) if options.quick else (1, 2, 4, 8, 16):
            aloha[count] = bench_width(aloha_rivals(count), turns, max(10, aloha_steps // count))
        show("ALOHA, without cameras", aloha)
    results.update(cartpole=cartpole, aloha=aloha, aims=judge(cartpole, aloha))
    print(json.dumps(results["aims"], indent=2))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
