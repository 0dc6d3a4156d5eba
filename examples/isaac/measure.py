"""How often the expert picks the cube: one batch of environments over a real server, each with a seed of its own.

    python examples/isaac/measure.py --python /opt/isaac/bin/python --seeds 50

prints one line of JSON. Environment i of a batch that is reset with the seed s starts as a single one does with s + i.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout that was not installed works too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from login_flags import add_login_flags, in_flags, login_arguments

from isaac import PICK_ID
from isaac.expert import PickExpert
from remote_env import RemoteVectorEnv
from remote_env.errors import RemoteEnvError

MAX_STEPS = 300


def measure(env: RemoteVectorEnv, seed: int) -> dict[str, Any]:
    """Run one episode in each environment; the seeds that failed, and how long it took."""
    env.reset(seed=seed)
    experts = [PickExpert() for _ in range(env.num_envs)]
    for expert, state in zip(experts, env.get_states(), strict=True):
        expert.reset(state)
    picked, ended = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, bool)
    started, step = time.perf_counter(), 0
    while step < MAX_STEPS and not ended.all():
        actions = np.stack([expert.action(step) for expert in experts])
        _, _, terminated, truncated, info = env.step(actions)
        picked |= np.asarray(info["is_success"]) & ~ended
        ended |= terminated | truncated
        step += 1
    seconds = time.perf_counter() - started
    return {
        "seeds": env.num_envs,
        "picked": int(picked.sum()),
        "failed_seeds": (np.flatnonzero(~picked) + seed).tolist(),
        "steps": step,
        "environment_steps_per_s": round(step * env.num_envs / seconds, 1),
    }


def main() -> int:
    """Serve the environments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_login_flags(parser)
    parser.add_argument("--seeds", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="the first; default: %(default)s")
    options = parser.parse_args()
    try:
        with RemoteVectorEnv(
            options.host,
            env=f"isaac:{PICK_ID}",
            num_envs=options.seeds,
            simulator="isaaclab",
            upload=[Path(__file__).parent],
            **login_arguments(options),
        ) as env:
            print(json.dumps(measure(env, options.seed)))
    except RemoteEnvError as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
