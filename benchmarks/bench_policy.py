"""What a request to a policy server costs: ours beside openpi's, LeRobot's and the plain pickle server, interleaved.

    python -m benchmarks.bench_policy [--json OUT] [--turns 10] [--quick]
                                      [--skip-rivals] [--skip-clients] [--skip-evaluation]

Three questions: requests/s with a policy that computes nothing (every process on one CPU, rivals take turns); the
repo's checkpoint under 1 to 32 clients, with and without dynamic batching; the wall time of an ALOHA evaluation whose
policy lies behind a slow link. Rivals run in environments of their own: `make bench-setup`; one that is missing is
left out and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.link import slow_link
from benchmarks.rivals import machine

ROOT = Path(__file__).resolve().parents[1]
RIVALS = Path(__file__).with_name("policy_rivals.py")
# Name -> the interpreter that has it.
INTERPRETERS = {
    "renv": Path(sys.executable),
    "openpi": ROOT / ".venv-openpi/bin/python",
    "lerobot": ROOT / ".venv-lerobot/bin/python",
    "pickle": Path(sys.executable),
}
REQUESTS = {"small": 400, "images": 20}
CHECKPOINT = "ckpt/act_sim_transfer_cube_scripted_zscore_example"
TASK = "remote_env/AlohaTransferCube-v0"
# Simulated steps take 0.6 ms, not a robot's 20: half a chunk is over before an answer can come.
AHEAD = ("--asynchronous", "--chunk_size_threshold", "0.8")
# Episodes that go on for 400 steps whatever happens.
TASK_KWARGS = {"obs_type": "state", "end_on_success": False, "max_episode_steps": 400}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def server_command(name: str, port: int, kind: str) -> list[str]:
    """How that system's server is started."""
    if name != "renv":
        return [str(INTERPRETERS[name]), str(RIVALS), "serve", name, str(port), kind]
    model = f"benchmarks.policy_rivals:make_{kind}_policy"
    program = ROOT / "servers/start_policy_server.py"
    return [sys.executable, str(program), "-m", model, "--listen", f"renv://127.0.0.1:{port}", "--device", "cpu"]


class Rival:
    """A server and a client of one system, each a process.

    Args:
        name: of `INTERPRETERS`.
        kind: of observation, "small" or "images".
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name, port = name, free_port()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")  # LeRobot leaves logs where it runs
        place = ROOT if name == "renv" else self._folder.name
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": place}
        self._server = subprocess.Popen(server_command(name, port, kind), env=environment, **pipes)
        _wait_for(self._server, "waiting" if name == "renv" else "ready")
        threading.Thread(target=self._server.stdout.read, daemon=True).start()  # type: ignore[union-attr]  its log
        command = [str(INTERPRETERS[name]), str(RIVALS), "drive", name, str(port), kind]
        self._client = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **pipes)
        _wait_for(self._client, "ready")

    def ask(self, count: int) -> Any:
        """The seconds that each of so many requests took."""
        self._client.stdin.write(f"{count}\n")  # type: ignore[union-attr]
        self._client.stdin.flush()  # type: ignore[union-attr]
        return np.array(json.loads(self._client.stdout.readline()))  # type: ignore[union-attr]

    def close(self) -> None:
        """End both."""
        for process in (self._client, self._server):
            process.kill()
            process.communicate(timeout=30)
        self._folder.cleanup()


def _wait_for(process: Any, word: str) -> None:
    for line in process.stdout:
        if word in line.lower():
            return
    raise SystemExit(f"{' '.join(process.args)} ended with status {process.wait(30)}")


def bench_rivals(kind: str, turns: int) -> dict[str, dict[str, float]]:
    """Requests/s and latencies of each system, all taking turns."""
    requests = REQUESTS[kind]
    with contextlib.ExitStack() as stack:
        rivals = [stack.enter_context(contextlib.closing(Rival(name, kind))) for name in available_rivals()]
        seconds: dict[str, list[Any]] = {rival.name: [] for rival in rivals}
        for rival in rivals:
            rival.ask(max(requests // 5, 5))
        for _ in track(range(turns), description=kind, console=Console(stderr=True)):
            for rival in rivals:
                seconds[rival.name].append(rival.ask(requests))
    return {name: summarise(rows) for name, rows in seconds.items()}


def available_rivals() -> Iterator[str]:
    """Those whose environment is there."""
    for name, interpreter in INTERPRETERS.items():
        if interpreter.exists():
            yield name
        else:
            print(f"{name} is left out: there is no {interpreter} (make bench-setup)", file=sys.stderr)


def summarise(rows: list[Any]) -> dict[str, float]:
    """Median rate over the turns, p50 and p99 of all requests."""
    every = np.concatenate(rows) * 1e6
    return {
        "requests_per_s": float(np.median([len(row) / row.sum() for row in rows])),
        "p50_us": float(np.percentile(every, 50)),
        "p99_us": float(np.percentile(every, 99)),
    }


def show(title: str, results: dict[str, dict[str, float]], baseline: str) -> None:
    """Print one table, each row relative to `baseline` where that is there."""
    table = Table(title=title)
    for column in ("", "requests/s", "p50 µs", "p99 µs", f"× {baseline}"):
        table.add_column(column, justify="left" if not column else "right")
    base = results.get(baseline, {}).get("requests_per_s", float("nan"))
    for name, row in results.items():
        rate = row["requests_per_s"]
        table.add_row(name, f"{rate:,.0f}", f"{row['p50_us']:,.0f}", f"{row['p99_us']:,.0f}", f"{rate / base:.2f}")
    Console().print(table)


# Many clients


def bench_clients(counts: tuple[int, ...], requests: int, turns: int) -> dict[str, dict[str, float]]:
    """Inferences/s of the repo's checkpoint under so many clients, one by one and in batches, taking turns."""
    seconds: dict[str, list[tuple[float, Any]]] = {}
    with contextlib.ExitStack() as stack:
        ports = {batch: stack.enter_context(_checkpoint_server("--max_batch", str(batch))) for batch in (1, 32)}
        for clients in counts:
            names = {f"{clients} clients, max_batch {batch}": port for batch, port in ports.items()}
            with contextlib.ExitStack() as crowds:
                asked = {name: crowds.enter_context(_crowd(port, clients)) for name, port in names.items()}
                for _ in track(range(turns), description=f"{clients} clients", console=Console(stderr=True)):
                    for name, ask in asked.items():
                        seconds.setdefault(name, []).append(ask(max(requests // clients, 5)))
    return {name: _crowd_figures(rows) for name, rows in seconds.items()}


def _crowd_figures(rows: list[tuple[float, Any]]) -> dict[str, float]:
    every = np.concatenate([latencies for _, latencies in rows]) * 1e6
    return {
        "requests_per_s": float(np.median([len(latencies) / wall for wall, latencies in rows])),
        "p50_us": float(np.percentile(every, 50)),
        "p99_us": float(np.percentile(every, 99)),
    }


@contextlib.contextmanager
def _checkpoint_server(*flags: str, host: str = "127.0.0.1", enter: tuple[str, ...] = ()) -> Iterator[int]:
    port, program = free_port(), str(ROOT / "servers/start_policy_server.py")
    command = [*enter, sys.executable, program, "-m", CHECKPOINT, "--listen", f"renv://{host}:{port}", *flags]
    with _running(command, "waiting"):
        yield port


@contextlib.contextmanager
def _running(command: list[str], word: str) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )
    try:
        _wait_for(process, word)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # type: ignore[union-attr]  its log, unread
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def _crowd(port: int, clients: int) -> Iterator[Callable[[int], tuple[float, Any]]]:
    """So many clients in two processes; what they ask for: wall seconds, and the seconds of each request."""
    shares = [share for share in (clients - clients // 2, clients // 2) if share]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    commands = [[sys.executable, str(RIVALS), "crowd", str(port), str(share)] for share in shares]
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    for process in processes:
        _wait_for(process, "ready")

    def ask(count: int) -> tuple[float, Any]:
        begun = time.perf_counter()
        for process in processes:
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
        latencies = [json.loads(process.stdout.readline()) for process in processes]
        return time.perf_counter() - begun, np.concatenate(latencies)

    try:
        yield ask
    finally:
        for process in processes:
            process.communicate(timeout=30)


# An evaluation behind a slow link


def bench_evaluation(episodes: int, turns: int, delay_s: float) -> dict[str, dict[str, float]]:
    """Wall time of ALOHA episodes of 400 steps: policy here, at the far end of a link, or simulated there too."""
    token = secrets.token_hex(32)
    os.environ["REMOTE_ENV_TOKEN"] = token
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(slow_link(delay_s))
        enter = tuple(link.enter)
        policy = stack.enter_context(_checkpoint_server(host=link.far, enter=enter))
        task = stack.enter_context(_task_server(link.far, enter))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here, there = folder / "here.yaml", folder / "there.yaml"
        here.write_text(json.dumps({"name": "aloha", "env": TASK, "env_kwargs": TASK_KWARGS}))
        there.write_text(json.dumps({"name": "aloha", "host": f"tcp://{link.far}:{task}"}))
        remote = ["-m", f"{link.far}:{policy}"]
        ways = {
            "local": ["-m", CHECKPOINT, "-e", str(here)],
            "remote policy": [*remote, "-e", str(here)],
            "remote policy, --asynchronous": [*remote, "-e", str(here), *AHEAD],
            "remote simulator and policy, --rollout server": [*remote, "-e", str(there), "--rollout", "server"],
        }
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for turn in track(range(turns), description="evaluations", console=Console(stderr=True)):
            for number, (name, flags) in enumerate(ways.items()):
                rows[name].append(_evaluate(flags, episodes, folder / f"out-{turn}-{number}"))
    return {name: _median(found) for name, found in rows.items()}


@contextlib.contextmanager
def _task_server(host: str, enter: tuple[str, ...]) -> Iterator[int]:
    port, program = free_port(), str(ROOT / "servers/task_server.py")
    command = [
        *enter,
        sys.executable,
        program,
        "--env",
        TASK,
        "--kwargs",
        json.dumps(TASK_KWARGS),
        "--policy",
        CHECKPOINT,
    ]
    with _running([*command, "--host", host, "--port", str(port), "--insecure"], str(port)):
        yield port


def _evaluate(flags: list[str], episodes: int, folder: Path) -> dict[str, float]:
    """Mean wall seconds of an episode, and what else one evaluation tells."""
    common = ["--num_rollout", str(episodes), "--num_envs", "1", "--video", "none", "--no_plots", "-o", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "remote_env", "eval", *flags, *common], check=True, capture_output=True, cwd=ROOT
    )
    results = json.loads((folder / "results.json").read_text())
    total = results["total"]
    return {
        "episode_s": total["episode_wall_s"]["mean"],
        "success_rate": total["success_rate"],
        "latency_ms": total["latency_ms"].get("p50", float("nan")),
        "load_s": results["load_s"],
        "worker_MB": results["client_peak_bytes"] / 1e6,
        "parent_MB": results["parent_peak_bytes"] / 1e6,
    }


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0]}


def show_evaluation(title: str, results: dict[str, dict[str, float]]) -> None:
    """Print one table, each row relative to "local"."""
    table = Table(title=title)
    for column in ("", "episode s", "× local", "success", "inference p50 ms", "load s", "worker MB", "parent MB"):
        table.add_column(column, justify="left" if not column else "right")
    base = results["local"]["episode_s"]
    for name, row in results.items():
        success, latency = f"{row['success_rate']:.0%}", f"{row['latency_ms']:.1f}"
        memory = [f"{row[key]:.0f}" for key in ("worker_MB", "parent_MB")]
        figures = [
            f"{row['episode_s']:.3f}",
            f"{row['episode_s'] / base:.2f}",
            success,
            latency,
            f"{row['load_s']:.2f}",
        ]
        table.add_row(name, *figures, *memory)
    Console().print(table)


def main() -> int:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--turns", type=int, default=20, help="how often the rivals take turns (default 20)")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    for part in ("rivals", "clients", "evaluation"):
        parser.add_argument(f"--skip-{part}", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    turns = 2 if options.quick else options.turns
    every_cpu = os.sched_getaffinity(0)
    if not options.skip_rivals:
        os.sched_setaffinity(0, {max(every_cpu)})
        for kind, title in (("small", "14 float32"), ("images", "3 × 480×640×3 uint8")):
            results[kind] = bench_rivals(kind, turns)
            show(f"{title}, 16 actions back, TCP, one CPU", results[kind], "openpi")
        os.sched_setaffinity(0, every_cpu)
    if not options.skip_clients:
        counts = (1, 4) if options.quick else (1, 2, 4, 8, 16, 32)
        results["clients"] = bench_clients(counts, 640, turns)
        show("the repo's checkpoint, unpinned", results["clients"], f"{counts[0]} clients, max_batch 1")
    if not options.skip_evaluation:
        episodes, rounds = (2, 1) if options.quick else (10, 5)
        for delay_ms in (10, 20):
            name = f"ALOHA, 400 steps, {delay_ms} ms each way"
            results[name] = bench_evaluation(episodes, rounds, delay_ms / 1e3)
            show_evaluation(name, results[name])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
