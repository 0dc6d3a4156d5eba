"""How often the scripted ALOHA experts succeed, over many random starts.

    python -m benchmarks.measure_experts [--seeds 200] [--json OUT]

An episode starts from `reset(seed=n)` for n = 0 … seeds-1 and runs for its 300 steps. "solved" is gym-aloha's rule:
reward 4 was reached. "handed over" is stricter and for the transfer only: the cube was held by the right gripper, by
both and by the left, in that order, and over the last ten steps the left one alone touches it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import mujoco
from rich.console import Console
from rich.progress import track
from rich.table import Table

from remote_env.evaluate.statistics import wilson_interval
from remote_env.tasks.aloha import AlohaEnv
from remote_env.tasks.aloha_expert import ScriptedExpert, make_expert
from remote_env.tasks.aloha_model import XML_NAMES
from remote_env.tasks.aloha_rewards import MAX_REWARD, contact_sequence

HAND_OVER = ("right", "both", "left")


def run_episode(env: AlohaEnv, expert: ScriptedExpert, seed: int) -> dict[str, Any]:
    env.reset(seed=seed)
    started = time.perf_counter()
    expert.reset(env.get_scene_state())
    plan_s = time.perf_counter() - started
    rewards, touching = [], []
    for step in range(expert.num_steps):
        _, reward, _, _, info = env.step(expert.action(step))
        rewards.append(reward)
        touching.append(info["touching"])
    held_at_last = [name for name in touching[-10:] if name != "none"]
    return {
        "seed": seed,
        "solved_at": rewards.index(MAX_REWARD) + 1 if MAX_REWARD in rewards else None,
        "handed_over": contact_sequence(touching) == HAND_OVER and set(held_at_last) == {"left"},
        "max_reward": max(rewards),
        "plan_s": plan_s,
    }


def measure(task: str, seeds: int) -> dict[str, Any]:
    env, expert = AlohaEnv(task, end_on_success=False), make_expert(task)
    progress = track(range(seeds), description=task, console=Console(stderr=True))
    episodes = [run_episode(env, expert, seed) for seed in progress]
    solved = [episode["solved_at"] for episode in episodes if episode["solved_at"]]
    return {
        "task": task,
        "episodes": seeds,
        "solved": len(solved),
        "success_rate": len(solved) / seeds,
        "interval_95": wilson_interval(len(solved), seeds),
        "handed_over": sum(episode["handed_over"] for episode in episodes) if task == "transfer_cube" else None,
        "median_steps": statistics.median(solved) if solved else None,
        "max_steps": max(solved, default=None),
        "median_plan_s": statistics.median(episode["plan_s"] for episode in episodes),
        "failures": [episode for episode in episodes if not episode["solved_at"]],
    }


def print_table(results: list[dict[str, Any]]) -> None:
    table = Table(title=f"scripted experts, MuJoCo {mujoco.__version__}, {platform.machine()}")
    for heading in ("task", "episodes", "solved", "rate", "95 %", "handed over", "steps (median, most)", "plan ms"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for row in results:
        low, high = row["interval_95"]
        cells = (row["episodes"], row["solved"], f"{row['success_rate']:.1%}", f"{low:.1%}–{high:.1%}")
        handed = "–" if row["handed_over"] is None else row["handed_over"]
        ends = (handed, f"{row['median_steps']}, {row['max_steps']}", f"{1e3 * row['median_plan_s']:.0f}")
        table.add_row(row["task"], *map(str, (*cells, *ends)))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="episodes per task")
    parser.add_argument("--task", choices=sorted(XML_NAMES), action="append", help="only this task")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    results = [measure(task, arguments.seeds) for task in arguments.task or XML_NAMES]
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps({"mujoco": mujoco.__version__, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
