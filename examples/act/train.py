"""Train a small chunking policy on collected demonstrations: the second step of the road in README.md.

    python examples/act/train.py                              # some 10 minutes on one core, no GPU
    python examples/act/train.py --steps 500                  # a quick look
    python examples/act/train.py --latent-size 8              # as ACT's conditional VAE

It learns to give, from the state at any step of an episode, the next 64 actions of the expert's plan, by the mean
absolute error of normalised actions. Two things work against errors that add up when the policy acts: chunks begin at
every step, also of disturbed episodes, and states get a little noise.

It leaves `policy.pt` (weights, sizes and normaliser, for export.py), `losses.csv` and `losses.png`. The same seed, data
and machine give the same policy. Ctrl-C saves what was learnt so far.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; it takes an environment of its own: see examples/act/README.md")

import numpy as np
from demonstrations import Demonstrations, Normalizer, load_demonstrations
from network import ChunkingPolicy, Sizes, StyleEncoder
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
CHECK_EVERY = 250  # steps between looks at the validation episodes
WARM_UP_STEPS = 200  # until the learning rate is reached

console = Console(stderr=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("what it learns from")
    what.add_argument("--data", type=Path, default=Path("outputs/act/demonstrations.npz"), help="default: %(default)s")
    what.add_argument("--validation", type=float, default=0.05, help="share of episodes; default: %(default)s")
    what.add_argument("--noise", type=float, default=0.02, help="on normalised states; default: %(default)s")
    what.add_argument(
        "--first-states", type=float, default=0.1, help="share of chunks from step 0 on; default: %(default)s"
    )
    how = parser.add_argument_group("how it learns")
    how.add_argument("--steps", type=int, default=8000, help="of the optimiser; default: %(default)s")
    how.add_argument("--batch", type=int, default=512, help="chunks per step; default: %(default)s")
    how.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    how.add_argument("--width", type=int, default=Sizes.width, help="of the network; default: %(default)s")
    how.add_argument("--blocks", type=int, default=Sizes.blocks, help="of the network; default: %(default)s")
    how.add_argument("--latent-size", type=int, default=0, help="of ACT's style variable; default: 0, without one")
    how.add_argument("--divergence-weight", type=float, default=10.0, help="of the style's loss; default: %(default)s")
    how.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    how.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/act"), help="default: %(default)s")
    return parser.parse_args(arguments)


@dataclass
class Learner:
    """What training moves.

    Attributes:
        policy: the network that is kept.
        style: the encoder of ACT's latent, or None without one.
        optimizer: of both.
        losses: (step, training loss, validation loss), the losses as mean absolute error of normalised actions.
    """

    policy: ChunkingPolicy
    style: StyleEncoder | None
    optimizer: torch.optim.Optimizer
    losses: list[tuple[int, float, float]] = field(default_factory=list)


def make_learner(options: argparse.Namespace, sizes: Sizes) -> Learner:
    """A new network and its optimiser."""
    policy = ChunkingPolicy(sizes)
    style = StyleEncoder(sizes) if sizes.latent_size else None
    parameters = [*policy.parameters(), *(style.parameters() if style else ())]
    return Learner(policy, style, torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=1e-4))


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Up over the first steps, then down to nothing along half a cosine."""
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    return float(options.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / options.steps)))


def batches(data: Demonstrations, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Noisy normalised states (B, S) and their chunks (B, K, D), without end."""
    rng = np.random.default_rng(options.seed)
    while True:
        episodes = rng.integers(data.num_episodes, size=options.batch)
        steps = rng.integers(data.num_steps, size=options.batch)
        steps[rng.random(options.batch) < options.first_states] = 0
        states, chunks = data.take(episodes, steps)
        noise = options.noise * rng.standard_normal(states.shape, np.float32)
        yield torch.from_numpy(states + noise), torch.from_numpy(chunks)


def learn_step(learner: Learner, state: Tensor, chunk: Tensor, divergence_weight: float) -> Tensor:
    """One step of the optimiser; the mean absolute error."""
    latent, divergence = learner.style(state, chunk) if learner.style else (None, 0.0)
    error = (learner.policy(state, latent) - chunk).abs().mean()
    learner.optimizer.zero_grad(set_to_none=True)
    (error + divergence_weight * divergence).backward()
    torch.nn.utils.clip_grad_norm_(learner.policy.parameters(), 1.0)
    learner.optimizer.step()
    return error.detach()


def validation_error(policy: ChunkingPolicy, data: Demonstrations) -> float:
    """Mean absolute error over every eighth step of the episodes that training never sees."""
    episodes, steps = np.mgrid[: data.num_episodes, : data.num_steps : 8].reshape(2, -1)
    states, chunks = data.take(episodes, steps)
    with torch.no_grad():
        return float((policy(torch.from_numpy(states)) - torch.from_numpy(chunks)).abs().mean())


def learn(learner: Learner, training: Demonstrations, validation: Demonstrations, options: argparse.Namespace) -> bool:
    """Train with a progress bar; whether Ctrl-C ended it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    recent: list[Tensor] = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("learning", total=options.steps)
        try:
            for step, (state, chunk) in zip(range(options.steps), batches(training, options), strict=False):
                for group in learner.optimizer.param_groups:
                    group["lr"] = learning_rate(step, options)
                recent.append(learn_step(learner, state, chunk, options.divergence_weight))
                progress.update(bar, advance=1)
                if (step + 1) % CHECK_EVERY == 0 or step + 1 == options.steps:
                    error = validation_error(learner.policy, validation)
                    learner.losses.append((step + 1, float(torch.stack(recent).mean()), error))
                    recent.clear()
                    progress.update(bar, description=f"validation {error:.4f}")
                    progress.console.print(_line(*learner.losses[-1]), highlight=False)
        except KeyboardInterrupt:
            return True
    return False


def _line(step: int, training: float, validation: float) -> str:
    return f"step {step:6d}  training {training:.4f}  validation {validation:.4f}"


def save(learner: Learner, normalizer: Normalizer, facts: dict[str, Any], output_dir: Path) -> None:
    """Write weights with all that export.py needs, the losses and their plot."""
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "weights": learner.policy.state_dict(),
        "sizes": asdict(learner.policy.sizes),
        "normalizer": normalizer.to_plain(),
        "facts": facts,
    }
    torch.save(content, output_dir / "policy.pt")
    with (output_dir / "losses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "training", "validation"])
        writer.writerows(learner.losses)
    plot(learner.losses, output_dir / "losses.png")


def plot(losses: Sequence[tuple[int, float, float]], path: Path) -> None:
    """Draw both losses over the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for column, label in ((1, "training, noisy states"), (2, "validation")):
        axes.plot([row[0] for row in losses], [row[column] for row in losses], label=label)
    axes.set(title="Chunks of 64 actions", xlabel="steps of the optimiser", ylabel="mean absolute error, normalised")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def train(options: argparse.Namespace) -> int:
    """Train and save; the exit status."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    everything = load_demonstrations(options.data, chunk_size=Sizes.chunk_size)
    training, validation = everything.split(options.validation, seed=options.seed)
    normalizer = training.normalizer()
    training, validation = training.normalized(normalizer), validation.normalized(normalizer)
    sizes = Sizes(
        len(everything.state_names),
        len(everything.action_names),
        width=options.width,
        blocks=options.blocks,
        latent_size=options.latent_size,
    )
    learner = make_learner(options, sizes)
    started = time.monotonic()
    is_interrupted = learn(learner, training, validation, options)
    took_s = round(time.monotonic() - started)
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    names = {"state_names": everything.state_names, "action_names": everything.action_names}
    facts = {
        **names,
        "flags": flags,
        "episodes": training.num_episodes,
        "took_s": took_s,
        "torch": str(torch.__version__),
    }
    save(learner, normalizer, facts, options.output_dir)
    console.print(
        f"{'interrupted' if is_interrupted else 'done'} after {took_s} s; policy.pt, losses.csv and losses.png are in "
        f"{options.output_dir}; next: export.py",
        soft_wrap=True,
    )
    return INTERRUPTED if is_interrupted else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    if not options.data.exists():
        console.print(f"[bold red]error:[/] no {options.data}; collect.py makes it", highlight=False)
        return 1
    return train(options)


if __name__ == "__main__":
    sys.exit(main())
