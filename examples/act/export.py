"""Make a checkpoint folder of a trained policy: the third step of the road in README.md.

    python examples/act/export.py --output ckpt/my_policy

It writes `policy.onnx` (normalised states in, normalised chunks out; any batch), `normalize.json` (how to normalise, by
dataset id) and `policy.json` (what the policy takes and gives), and checks with onnxruntime that the graph computes
what torch computes. Needs torch, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A checkout that was not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

try:
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; it takes an environment of its own: see examples/act/README.md")

import numpy as np
from network import ChunkingPolicy, Sizes
from rich.console import Console

from remote_env.policy.policy import Feature, PolicyMetadata

DATASET_ID = "sim_transfer_cube_scripted"
CONTROL_RATE_HZ = 50.0
LARGEST_DIFFERENCE = 1e-4  # between torch and the exported graph, in normalised actions

console = Console(stderr=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--policy", type=Path, default=Path("outputs/act/policy.pt"), help="what train.py left; default: %(default)s"
    )
    parser.add_argument("--dataset-id", default=DATASET_ID, help="in normalize.json; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("outputs/act/checkpoint"), help="default: %(default)s")
    return parser.parse_args(arguments)


def write_graph(network: ChunkingPolicy, path: Path) -> None:
    """Export the network; the batch is free."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    example = torch.zeros(2, network.sizes.state_size)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter, about torch itself
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=["state"],
            output_names=["actions"],
            dynamic_shapes=({0: batch},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def difference(network: ChunkingPolicy, path: Path) -> float:
    """The largest difference between torch and onnxruntime, over several batch sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for rows in (1, 2, 33):
        states = 2 * torch.randn(rows, network.sizes.state_size, generator=generator)
        expected = network(states).detach().numpy()
        (got,) = session.run(["actions"], {"state": states.numpy()})
        largest = max(largest, float(np.abs(got - expected).max()))
    return largest


def state_unit(name: str) -> str:
    """The unit of one number of the task's `state`, by its name."""
    if name.endswith("_velocity"):
        return "1/s" if "gripper" in name else "rad/s"
    axis = name.rpartition("_")[2]
    if axis in ("x", "y", "z"):
        return "m"
    if axis in ("vx", "vy", "vz"):
        return "m/s"
    if axis in ("wx", "wy", "wz"):
        return "rad/s"
    return "1" if axis in ("qw", "qx", "qy", "qz", "gripper") else "rad"


def metadata(content: dict[str, Any], name: str) -> PolicyMetadata:
    """What the policy takes and gives; whoever loads it adds the normaliser's name."""
    states, actions = (tuple(content["facts"][key]) for key in ("state_names", "action_names"))
    units = tuple(map(state_unit, states))
    return PolicyMetadata(
        name=name,
        observation={"state": Feature("state", (len(states),), "float32", names=states, units=units)},
        action_names=actions,
        action_units=tuple(map(state_unit, actions)),
        chunk_size=content["sizes"]["chunk_size"],
        control_rate_hz=CONTROL_RATE_HZ,
        extra={"env": "remote_env/AlohaTransferCube-v0", "env_kwargs": {"obs_type": "state"}},
    )


def export(options: argparse.Namespace) -> int:
    """Write the folder and check it; the exit status."""
    content = torch.load(options.policy, weights_only=True)
    network = ChunkingPolicy(Sizes(**content["sizes"])).eval()
    network.load_state_dict(content["weights"])
    options.output.mkdir(parents=True, exist_ok=True)
    write_graph(network, options.output / "policy.onnx")
    apart = difference(network, options.output / "policy.onnx")
    if apart > LARGEST_DIFFERENCE:
        console.print(
            f"[bold red]error:[/] the exported graph differs from torch by {apart:.1e}", highlight=False, soft_wrap=True
        )
        return 1
    normalize = {options.dataset_id: content["normalizer"]}
    plain = metadata(content, options.output.name).to_plain()
    kept = {key: value for key, value in plain.items() if key not in ("normalizer", "dataset_ids")}
    for name, value in (("normalize.json", normalize), ("policy.json", kept)):
        (options.output / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in options.output.iterdir())
    console.print(
        f"{options.output}: {size / 1e6:.1f} MB; differs from torch by {apart:.0e} at most; next: measure.py",
        soft_wrap=True,
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    if not options.policy.exists():
        console.print(f"[bold red]error:[/] no {options.policy}; train.py makes it", highlight=False, soft_wrap=True)
        return 1
    return export(options)


if __name__ == "__main__":
    sys.exit(main())
