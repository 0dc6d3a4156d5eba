"""Ask a policy server for actions: the smallest whole client, and a first look at how fast a server answers.

In one terminal, from the root of the repository:

    python servers/start_policy_server.py -m ckpt/act_sim_transfer_cube_scripted_zscore_example --port 5000 --device cpu

In another:

    python examples/policy_client_example.py --host localhost --port 5000 --num_requests 5 --delay 1.0

The observations are made up: random numbers of just the features that the server says its policy takes. Each reply is a
chunk of actions, whose shape and latency are printed, and at the end the median and the 99th percentile.

A server on this machine and of this account is found with its token. For one elsewhere set REMOTE_ENV_TOKEN, or give
--token-file. Servers of other projects: --dialect ilstudio, openpi or lerobot; where such a server does not say what
its policy takes, --state_size and --num_cameras do.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing

import numpy as np

from remote_env.errors import RemoteEnvError
from remote_env.policy import Feature, MetaObs, PolicyMetadata
from remote_env.policy.client import PolicyClient
from remote_env.policy.dialects import DIALECTS

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
INSTRUCTION = "transfer the cube to the other arm"


def read_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0], epilog="Ctrl-C ends it with the summary so far.", allow_abbrev=False
    )
    parser.add_argument("--host", default="localhost", help="or dialect://host:port; default: localhost")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    parser.add_argument("--num_requests", type=int, default=5, help="default: 5")
    parser.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="between requests; default: 1.0")
    parser.add_argument("--dialect", choices=tuple(DIALECTS), default="renv", help="default: renv")
    parser.add_argument(
        "--token-file",
        type=Path,
        help="holds the server's token; default: REMOTE_ENV_TOKEN, else the file of a server on this machine",
    )
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for a reply; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up observations; default: 0")
    parser.add_argument(
        "--state_size", type=int, default=14, help="of a policy whose server does not tell; default: 14"
    )
    parser.add_argument("--num_cameras", type=int, default=0, help="likewise, of 480×640 each; default: 0")
    flags = parser.parse_args(arguments)
    if flags.num_requests < 1 or flags.delay < 0 or flags.timeout <= 0:
        parser.error("--num_requests is at least 1, --delay at least 0, --timeout above 0")
    return flags


def read_token(path: Path | None) -> str | None:
    """The token in that file; None, for the client to look where it usually is, without one."""
    if path is None:
        return None
    try:
        return path.expanduser().read_text().strip()
    except OSError as error:
        sys.exit(f"error: cannot read the token: {error}")


def make_value(feature: Feature, random: np.random.Generator) -> Any:
    """One made-up row of a feature: numbers from −1 to 1, noise as image, a fixed text."""
    if feature.kind == "text":
        return [INSTRUCTION]
    if feature.dtype == "uint8":
        return random.integers(0, 256, (1, *feature.shape), np.uint8)
    low = 0.0 if feature.kind == "image" else -1.0
    return random.uniform(low, 1.0, (1, *feature.shape)).astype(feature.dtype)


def make_observation(metadata: PolicyMetadata, random: np.random.Generator) -> dict[str, Any]:
    """One made-up observation of just the features that the policy takes."""
    return {name: make_value(feature, random) for name, feature in metadata.observation.items()}


def ask(client: PolicyClient, flags: argparse.Namespace, random: np.random.Generator) -> tuple[str, float]:
    """One request; the reply's shape to show, and its latency [s]."""
    metadata = client.metadata
    if metadata.observation:
        observation = make_observation(metadata, random)
        begin = time.perf_counter()
        chunk = client.policy.infer(observation, episode_ids=["example"])
        latency_s = time.perf_counter() - begin
        return f"{chunk.shape[1]} actions of {chunk.shape[2]} numbers", latency_s
    # A server that does not tell what it takes gets a MetaObs, as IL-Studio's clients send it.
    state = random.uniform(-1.0, 1.0, flags.state_size).astype(np.float32)
    cameras = random.integers(0, 256, (flags.num_cameras, 3, 480, 640), np.uint8) if flags.num_cameras else None
    meta = MetaObs(state=state, image=cameras, raw_lang=INSTRUCTION)
    begin = time.perf_counter()
    actions = client.send_meta_obs(meta)
    latency_s = time.perf_counter() - begin
    return f"{len(actions)} actions of {len(actions[0].action)} numbers", latency_s


def describe(client: PolicyClient) -> str:
    """What the server says of its policy."""
    metadata = client.metadata
    if not metadata.observation:
        return f"connected to {client.address}, which does not tell what its policy takes"
    takes = ", ".join(
        f"{name} {feature.shape or 'text'} {feature.dtype}".rstrip() for name, feature in metadata.observation.items()
    )
    return f"connected to {client.address}: {metadata.name} takes {takes}"


def summarize(latencies_s: list[float]) -> str:
    """The latencies in one line."""
    if not latencies_s:
        return "no reply came"
    milliseconds = 1e3 * np.array(latencies_s)
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return f"{len(latencies_s)} replies: p50 {p50:.2f} ms, p99 {p99:.2f} ms, first {milliseconds[0]:.2f} ms"


def drive(flags: argparse.Namespace, latencies_s: list[float]) -> None:
    """Connect and ask as often as is wanted, noting each latency."""
    random = np.random.default_rng(flags.seed)
    options: dict[str, Any] = {"dialect": flags.dialect, "timeout_s": flags.timeout}
    with PolicyClient(flags.host, flags.port, token=read_token(flags.token_file), **options) as client:
        print(describe(client), flush=True)
        for number in range(1, flags.num_requests + 1):
            if number > 1:
                time.sleep(flags.delay)
            shape, latency_s = ask(client, flags, random)
            latencies_s.append(latency_s)
            print(f"request {number}: {shape} in {1e3 * latency_s:.2f} ms", flush=True)


def main() -> int:
    """Run the example; the exit status."""
    flags, latencies_s = read_flags(), list[float]()
    try:
        drive(flags, latencies_s)
    except RemoteEnvError as error:
        far = getattr(error, "remote_traceback", "")
        print(f"error: {error}{far and chr(10) + far.rstrip()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; " + summarize(latencies_s))
        return INTERRUPTED
    print(summarize(latencies_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
