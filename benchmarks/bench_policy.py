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
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

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
STARTED_IN_S = 120.0


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
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": ROOT}
        self._server = subprocess.Popen(server_command(name, port, kind), env=environment, **pipes)
        _wait_for(self._server, "waiting" if name == "renv" else "ready")
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
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
