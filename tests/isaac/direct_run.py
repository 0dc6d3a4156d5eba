"""Step `SwingEnv` itself, without any server, and write what it gave: python direct_run.py actions.npy out.npz."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from isaaclab.app import add_launcher_args, launch_simulation

SEED = 3


def main(actions_path: str, out_path: str) -> None:
    """Actions are (steps, N, 2) float32."""
    actions = np.load(actions_path)
    parser = argparse.ArgumentParser()
    add_launcher_args(parser)
    arguments = parser.parse_args(["--device", "cpu"])
    arguments.headless = True
    sys.path.insert(0, str(Path(__file__).parent))
    import isaac_tasks

    cfg = isaac_tasks.SwingEnvCfg()
    cfg.scene.num_envs, cfg.sim.device = actions.shape[1], "cpu"
    with launch_simulation(cfg, arguments):
        np.savez(out_path, **run(isaac_tasks.SwingEnv(cfg), actions))


def run(env: Any, actions: Any) -> dict[str, Any]:
    """Each step's values, stacked; of final observations, zeros where there is none."""
    import torch

    rows: dict[str, list[Any]] = {"observation": [env.reset(seed=SEED)[0]["policy"].numpy().copy()]}
    for action in actions:
        observation, reward, terminated, truncated, extras = env.step(torch.as_tensor(action.copy()))
        final = extras.pop("final_obs", None)
        step = {
            "observation": observation["policy"],
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "lengths": extras["lengths"],
            "log": extras["log"]["length"],
            "final": torch.zeros_like(observation["policy"]) if final is None else final["policy"],
        }
        for name, value in step.items():
            rows.setdefault(name, []).append(value.numpy().copy())
    return {name: np.stack(values) for name, values in rows.items()}


if __name__ == "__main__":
    paths, sys.argv[1:] = sys.argv[1:], []
    main(*paths)
