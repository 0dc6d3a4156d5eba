"""Train stable-baselines3's PPO on an environment whose simulator may run on another machine.

On this machine, no server needed:

    python examples/train_ppo.py --steps 25000

On a machine that you can log in to with `ssh user@box` (its Python needs numpy, gymnasium and the task):

    python examples/train_ppo.py --host user@box --python /opt/sim/bin/python --env CartPole-v1

It leaves `checkpoint.zip` (for `PPO.load`), `learning_curve.csv` and `learning_curve.png` in the output directory;
Ctrl-C saves what was learnt so far. Needs stable-baselines3 and matplotlib: pip install stable-baselines3 matplotlib.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A checkout that was not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from login_flags import add_login_flags, in_flags, login_arguments
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from remote_env import RemoteEnv
from remote_env.errors import RemoteEnvError

MEAN_OVER = 20  # episodes, in the bar and the plot
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended

console = Console(stderr=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_login_flags(parser)
    what = parser.add_argument_group("what it learns")
    what.add_argument("--env", default="CartPole-v1", help="any Gymnasium id that PPO can learn; default: %(default)s")
    what.add_argument("--steps", type=int, default=25_000, help="of the environment, in all; default: %(default)s")
    what.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/train_ppo"), help="default: %(default)s")
    return parser.parse_args(arguments)


@dataclass
class LearningCurve:
    """The finished episodes so far.

    Attributes:
        steps: environment steps taken by the end of each episode.
        returns: sum of rewards of each episode.
    """

    steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    def add(self, step: int, total: float) -> None:
        """Note a finished episode."""
        self.steps.append(step)
        self.returns.append(total)

    @property
    def recent_mean(self) -> float:
        """Mean return of the last episodes; 0 before the first."""
        recent = self.returns[-MEAN_OVER:]
        return sum(recent) / len(recent) if recent else 0.0

    def means(self) -> list[float]:
        """For each episode, the mean return of those that end with it."""
        windows = (self.returns[max(0, end - MEAN_OVER) : end] for end in range(1, len(self.returns) + 1))
        return [sum(window) / len(window) for window in windows]


def make_model(env: Any, seed: int) -> Any:
    """PPO with its published defaults, on the CPU, where its small networks run fastest."""
    import torch
    from stable_baselines3 import PPO

    torch.set_num_threads(1)  # these networks are too small to share, and the simulator wants the other cores
    return PPO("MlpPolicy", env, seed=seed, device="cpu")


def learn(model: Any, steps: int) -> tuple[LearningCurve, bool]:
    """Train with a progress bar; the curve, and whether Ctrl-C ended it."""
    from stable_baselines3.common.callbacks import BaseCallback

    curve = LearningCurve()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("learning", total=steps)

        class Follow(BaseCallback):  # type: ignore[misc]  # stable-baselines3 need not be installed for the type check
            def _on_step(self) -> bool:
                for info in self.locals["infos"]:
                    if "episode" in info:
                        curve.add(self.num_timesteps, float(info["episode"]["r"]))
                text = f"return {curve.recent_mean:.1f}" if curve.returns else "learning"
                progress.update(bar, completed=self.num_timesteps, description=text)
                return True

        try:
            model.learn(steps, callback=Follow())
        except KeyboardInterrupt:
            return curve, True
    return curve, False


def save(model: Any, curve: LearningCurve, options: argparse.Namespace) -> None:
    """Write checkpoint, curve and plot."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    model.save(options.output_dir / "checkpoint.zip")
    with (options.output_dir / "learning_curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "return"])
        writer.writerows(zip(curve.steps, curve.returns, strict=True))
    plot(curve, f"PPO on {options.env}, {options.host or 'local'}", options.output_dir / "learning_curve.png")


def plot(curve: LearningCurve, title: str, path: Path) -> None:
    """Draw each episode's return and their running mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(curve.steps, curve.returns, ".", color="tab:gray", markersize=3, label="episode")
    axes.plot(curve.steps, curve.means(), color="tab:blue", label=f"mean of {MEAN_OVER}")
    axes.set(title=title, xlabel="environment steps", ylabel="return")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def train(options: argparse.Namespace) -> int:
    """Train and save; the exit status."""
    with RemoteEnv(options.host, env=options.env, **login_arguments(options)) as env:
        model = make_model(env, options.seed)
        curve, is_interrupted = learn(model, options.steps)
        save(model, curve, options)
    what = "interrupted" if is_interrupted else "done"
    console.print(
        f"{what} after {model.num_timesteps} steps, {len(curve.returns)} episodes; mean return of the last "
        f"{MEAN_OVER}: {curve.recent_mean:.1f}; checkpoint and learning curve are in {options.output_dir}"
    )
    return INTERRUPTED if is_interrupted else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    try:
        import matplotlib  # noqa: F401
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        console.print(
            f"[bold red]error:[/] this example needs {error.name}: pip install stable-baselines3 matplotlib "
            "(in a checkout, make test-ecosystem makes an environment that has both: .venv-ecosystem)",
            highlight=False,
        )
        return 1
    try:
        return train(options)
    except KeyboardInterrupt:
        console.print("interrupted before there was anything to save")
        return INTERRUPTED
    except RemoteEnvError as error:
        console.print(f"[bold red]error:[/] {escape(in_flags(error))}", highlight=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
