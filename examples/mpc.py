#!/usr/bin/env python3
"""Random-shooting MPC: each decision tries many futures beside the simulator, in one round trip, and takes the best.

On this machine, no server needed:

    python examples/mpc.py

On a machine that you can log in to with `ssh user@box` (its Python needs numpy and gymnasium):

    python examples/mpc.py --host user@box --python /opt/sim/bin/python

Prints the return of one episode of Pendulum-v1 so controlled, and that of random actions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout that was not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from login_flags import add_login_flags, in_flags, login_arguments

from remote_env import RemoteEnv
from remote_env.errors import RemoteEnvError

DRAWS, HELD = 8, 3  # each future is 8 random torques, of 3 steps each


def control(env: RemoteEnv, futures: int, seed: int) -> float:
    """The return of an episode in which each decision begins the best of so many random futures."""
    generator, total, is_over = np.random.default_rng(seed), 0.0, False
    env.reset(seed=seed)
    while not is_over:
        torques = generator.uniform(-2, 2, (futures, DRAWS, 1)).astype(np.float32)
        actions = torques.repeat(HELD, axis=1)
        best = env.try_chunks(actions).returns.argmax()
        ran = env.step_many(actions[best, :HELD], want="last")
        total += float(ran.rewards.sum())
        is_over = bool(ran.terminated[-1] or ran.truncated[-1])
    return total


def act_at_random(env: RemoteEnv, seed: int) -> float:
    """The return of an episode of random actions."""
    env.reset(seed=seed)
    torques = np.random.default_rng(seed).uniform(-2, 2, (200, 1)).astype(np.float32)
    return float(env.step_many(torques, want="last").rewards.sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, and print their returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_login_flags(parser)
    parser.add_argument("--futures", type=int, default=128, help="that each decision tries; default: 128")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes and the futures; default: 0")
    options = parser.parse_args(arguments)
    if options.futures < 1:
        parser.error(f"--futures {options.futures}: at least one is needed")
    try:
        with RemoteEnv(options.host, env="Pendulum-v1", **login_arguments(options)) as env:
            print(f"random actions: {act_at_random(env, options.seed):.1f}")
            print(f"best of {options.futures} futures: {control(env, options.futures, options.seed):.1f}")
    except RemoteEnvError as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the server is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
