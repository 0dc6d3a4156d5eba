"""Collect demonstrations of the ALOHA cube transfer: the first step of the road in README.md.

On this machine, on an embedded server:

    python examples/act/collect.py --episodes 600

On a machine that you can log in to with `ssh user@box` (its Python needs numpy, gymnasium and mujoco):

    python examples/act/collect.py --host user@box --python /opt/sim/bin/python

The expert plans an episode from where the cube lies, and its plan is the label. Most episodes are disturbed while they
run: the arms are pushed off the plan, smoothly, and the label stays the plan. So the policy sees states beside the
expert's path and learns what leads back (Laskey et al. 2017, DART). Episodes that fail are dropped and counted.

It leaves one file, `demonstrations.npz`: states (N, 301, 41) and actions (N, 300, 14), float32, with names and seeds.
Seeds start at 1,000,000, far from those that evaluations use. Ctrl-C saves the episodes so far.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# A checkout that was not installed works too; login_flags.py lies one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from login_flags import add_login_flags, in_flags, login_arguments
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from remote_env import RemoteEnv
from remote_env.errors import RemoteEnvError
from remote_env.tasks.aloha import AlohaEnv
from remote_env.tasks.aloha_expert import ScriptedExpert, make_expert
from remote_env.tasks.aloha_model import ACTION_NAMES

Floats = NDArray[np.float32]

ENV_ID = "remote_env/AlohaTransferCube-v0"
FIRST_SEED = 1_000_000
GRIPPERS = (6, 13)  # of an action; never disturbed, for a gripper that slips loses the cube
HELD_FOR_STEPS = 10  # how long a push lasts, about
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended

console = Console(stderr=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_login_flags(parser)
    what = parser.add_argument_group("what it collects")
    what.add_argument("--episodes", type=int, default=600, help="that succeed; default: %(default)s")
    what.add_argument("--seed", type=int, default=FIRST_SEED, help="of the first episode; default: %(default)s")
    what.add_argument("--noise", type=float, default=0.015, help="of disturbed joints [rad]; default: %(default)s")
    what.add_argument("--disturbed", type=float, default=0.7, help="share of the episodes; default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/act/demonstrations.npz"), help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def disturbance(rng: np.random.Generator, num_steps: int, noise_rad: float) -> Floats:
    """Smooth random pushes on every arm joint.

    Args:
        rng: where they are drawn from.
        num_steps: of the episode.
        noise_rad: their standard deviation [rad].

    Returns:
        (num_steps, 14) to be added to actions; 0 for the grippers.
    """
    keep = 1 - 1 / HELD_FOR_STEPS
    pushes = np.zeros((num_steps, 14))
    for step in range(1, num_steps):
        pushes[step] = keep * pushes[step - 1] + np.sqrt(1 - keep**2) * noise_rad * rng.standard_normal(14)
    pushes[:, GRIPPERS] = 0
    return pushes.astype(np.float32)


def run_episode(
    env: Any, expert: ScriptedExpert, seed: int, options: argparse.Namespace
) -> tuple[Floats, Floats, bool]:
    """One episode from `seed`: states (301, 41), the expert's plan (300, 14), and whether the cube was passed on."""
    rng = np.random.default_rng(seed)
    state, _ = env.reset(seed=seed)
    expert.reset(env.get_state())
    plan = np.stack([expert.action(step) for step in range(expert.num_steps)])
    is_disturbed = rng.random() < options.disturbed
    applied = plan + disturbance(rng, len(plan), options.noise if is_disturbed else 0.0)
    states, is_success = [state], False
    for action in applied:
        state, _, _, _, info = env.step(action)
        states.append(state)
        is_success = is_success or info["is_success"]
    return np.array(states, np.float32), plan, is_success


def collect(env: Any, options: argparse.Namespace) -> Iterator[tuple[int, Floats, Floats]]:
    """Seed, states and actions of each episode that succeeds, with a progress bar."""
    expert = make_expert("transfer_cube")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failed, seed = 0, options.seed
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("collecting", total=options.episodes)
        while not progress.finished:
            states, actions, is_success = run_episode(env, expert, seed, options)
            failed += not is_success
            progress.update(bar, advance=is_success, description=f"collecting, {failed} failed")
            if is_success:
                yield seed, states, actions
            seed += 1


def save(episodes: Sequence[tuple[int, Floats, Floats]], path: Path) -> None:
    """Write the episodes into one compressed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds, states, actions = zip(*episodes, strict=True)
    np.savez_compressed(
        path,
        states=np.stack(states),
        actions=np.stack(actions),
        seeds=np.array(seeds),
        state_names=np.array(AlohaEnv("transfer_cube", obs_type="state").state_names),
        action_names=np.array(ACTION_NAMES),
    )
    console.print(f"{len(seeds)} episodes are in {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def gather(options: argparse.Namespace) -> int:
    """Collect and save; the exit status."""
    episodes: list[tuple[int, Floats, Floats]] = []
    # The task itself ends at the left gripper's first touch; the labels are to hold the rest of the hand-over too.
    env_kwargs = {"obs_type": "state", "end_on_success": False}
    is_interrupted = False
    with RemoteEnv(options.host, env=ENV_ID, env_kwargs=env_kwargs, **login_arguments(options)) as env:
        try:
            for episode in collect(env, options):
                episodes.append(episode)
        except KeyboardInterrupt:
            is_interrupted = True
    if episodes:
        save(episodes, options.output)
    else:
        console.print("interrupted before the first episode was over; there was nothing to save")
    return INTERRUPTED if is_interrupted else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    try:
        return gather(options)
    except KeyboardInterrupt:
        console.print("interrupted before the simulator was ready; there was nothing to save")
        return INTERRUPTED
    except RemoteEnvError as error:
        console.print(f"[bold red]error:[/] {escape(in_flags(error))}", highlight=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
