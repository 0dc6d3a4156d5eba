"""How often a checkpoint passes the cube on: the fourth step of the road in README.md.

    python examples/act/measure.py ckpt/act_sim_transfer_cube_scripted_zscore_example
    python examples/act/measure.py CHECKPOINT --horizon 64 --horizon 16      # also asked more often

An episode starts from `reset(seed=n)` for n = 0 … 199, seeds that no demonstration has. The policy is asked for a chunk
of 64 actions, which is played to its end before the next question, as `remote-env eval` does; a smaller `--horizon`
asks sooner. An episode succeeds when reward 4 is reached within its 300 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A checkout that was not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gymnasium
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from remote_env.errors import RemoteEnvError, TaskError
from remote_env.evaluate.statistics import wilson_interval
from remote_env.policy.loading import load_policy
from remote_env.policy.policy import Policy
from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks

console = Console(stderr=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="a folder of export.py, or another policy: scripted:aloha-transfer-cube")
    parser.add_argument("--episodes", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode; default: %(default)s")
    parser.add_argument(
        "--horizon", type=int, action="append", help="actions played of a chunk; may be repeated; default: 64"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(arguments)


def run_episode(env: Any, policy: Policy, seed: int, horizon: int) -> int | None:
    """The step at which the episode succeeded, from 1 on, or None; a simulation that is wrecked is a failure."""
    state, _ = env.reset(seed=seed)
    policy.reset(["measured"])
    step = 0
    while True:
        (chunk,) = policy.infer({"state": np.asarray(state, np.float32)[None]}, episode_ids=["measured"])
        for action in chunk[:horizon]:
            try:
                state, _, terminated, truncated, info = env.step(action)
            except TaskError:
                return None
            step += 1
            if terminated or truncated:
                return step if info["is_success"] else None


def measure(policy: Policy, horizon: int, options: argparse.Namespace) -> dict[str, Any]:
    """Success over all seeds, with its interval and the seeds that failed."""
    seeds = range(options.seed, options.seed + options.episodes)
    with gymnasium.make(TRANSFER_CUBE_ID, obs_type="state") as env:
        bar = track(seeds, description=f"horizon {horizon}", console=console)
        ends = {seed: run_episode(env, policy, seed, horizon) for seed in bar}
    steps = [step for step in ends.values() if step is not None]
    return {
        "horizon": horizon,
        "episodes": len(seeds),
        "successes": len(steps),
        "rate": len(steps) / len(seeds),
        "interval_95": wilson_interval(len(steps), len(seeds)),
        "median_steps": float(np.median(steps)) if steps else None,
        "failed_seeds": [seed for seed, step in ends.items() if step is None],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    register_tasks()
    try:
        with load_policy(options.checkpoint) as policy:
            results = [measure(policy, horizon, options) for horizon in options.horizon or [64]]
    except RemoteEnvError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    for row in results:
        low, high = row["interval_95"]
        print(
            f"horizon {row['horizon']}: {row['successes']} of {row['episodes']} = {row['rate']:.1%} "
            f"(95 %: {low:.1%}–{high:.1%}); median step {row['median_steps']}; failed: {row['failed_seeds']}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
