"""Steps/s of a task that computes nothing, through RemoteEnv and through every peer that we know, interleaved.

    python -m benchmarks.bench_peers [--json OUT] [--quick] [--only NAME,NAME]

14 float64 and one 480×640×3 uint8 image, each with every process on one CPU and unpinned. Every rival is a server and a
client process in the environment that `make bench-setup` made for it (peer_rivals.py has both ends of each); one whose
environment is missing is left out with a word. All rivals of a table are open at once and take turns; p50 and p99 are
over all steps. "Safe" are those that go over a network without unpickling what comes: our aim is three times the best
of them.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.rivals import machine

ROOT = Path(__file__).resolve().parents[1]
RIVALS = Path(__file__).with_name("peer_rivals.py")
OURS = "remote-env"
AIM = 3.0
TURN_S = 0.35
START_TIMEOUT_S, STEPS_TIMEOUT_S = 120.0, 60.0
# The others' clients start what they need.
WITH_SERVER = (OURS, "openpi", "dm_env_rpc", "OpenEnv", "HUD robot", "pickle")


class Interpreter(NamedTuple):
    """Where a rival runs, and what we know of it."""

    path: Path
    safe: bool
    note: str = ""


def _rival(name: str) -> Path:
    return ROOT / f".venv-rival-{name}/bin/python"


INTERPRETERS = {
    OURS: Interpreter(Path(sys.executable), safe=True),
    "openpi": Interpreter(ROOT / ".venv-openpi/bin/python", safe=True, note="openpi-client 0.1.2"),
    "dm_env_rpc": Interpreter(_rival("dm-env-rpc"), safe=True, note="1.1.7, gRPC"),
    "OpenEnv": Interpreter(_rival("openenv"), safe=True, note="0.10.0, JSON"),
    "HUD robot": Interpreter(_rival("hud"), safe=True, note="hud 0.6.21"),
    "Ray actor": Interpreter(_rival("ray"), safe=False, note="2.60.0, unpickles"),
    "AsyncVectorEnv": Interpreter(Path(sys.executable), safe=False, note="n=1, shared memory, no network"),
    "pickle": Interpreter(Path(sys.executable), safe=False, note="unpickles"),
}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Peer:
    """A server and a client of one system, each a process.

    Attributes:
        processes: "client" and "server" -> the process; a rival whose client starts what it needs has no server.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name, port = name, free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True)
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "REMOTE_ENV_TOKEN": secrets.token_hex(32)}
        self.processes: dict[str, Any] = {}
        try:
            if name in WITH_SERVER:
                self._start("server", _server_command(name, port, kind), "serving" if name == OURS else "ready")
                threading.Thread(target=self.processes["server"].stdout.read, daemon=True).start()  # its log, unread
            command = [str(_python(name)), str(RIVALS), "drive", name, str(port), kind]
            self._start("client", command, "ready")
        except BaseException:
            self.close()
            raise

    def _start(self, role: str, command: list[str], word: str) -> None:
        self.processes[role] = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if role == "server" else None,
            text=True,
            cwd=self._folder.name,
            env=self._environment,
        )
        with _killed_after(process, START_TIMEOUT_S):
            for line in process.stdout:  # type: ignore[union-attr]
                if word in line:
                    return
        raise SystemExit(f"the {role} of {self.name} ended with status {process.wait(30)}")

    def step(self, count: int) -> Any:
        """The seconds that each of so many steps took."""
        client = self.processes["client"]
        client.stdin.write(f"{count}\n")
        client.stdin.flush()
        with _killed_after(client, STEPS_TIMEOUT_S):
            for line in client.stdout:
                if line.startswith("took "):
                    return np.array(json.loads(line[5:]))
        raise SystemExit(f"the client of {self.name} ended with status {client.wait(30)}")

    def close(self) -> None:
        """End both: a client by its input's end, so that what it has started ends with it."""
        if client := self.processes.get("client"):
            client.stdin.close()
            try:
                client.wait(30)
            except subprocess.TimeoutExpired:
                client.kill()
                client.wait(30)
        if server := self.processes.get("server"):
            server.terminate()
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(30)
        self._folder.cleanup()


@contextlib.contextmanager
def _killed_after(process: Any, seconds: float) -> Iterator[None]:
    """Whoever reads from the process sees its end when it takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _python(name: str) -> Path:
    """What a rival runs in; for those that only bench_memory knows, what we run in."""
    return INTERPRETERS[name].path if name in INTERPRETERS else Path(sys.executable)


def _server_command(name: str, port: int, kind: str) -> list[str]:
    if name != OURS:
        return [str(_python(name)), str(RIVALS), "serve", name, str(port), kind]
    task = ["--env", "benchmarks.peer_rivals:make_env", "--kwargs", json.dumps({"kind": kind})]
    return [sys.executable, str(ROOT / "servers/task_server.py"), *task, "--port", str(port), "--insecure"]


def available_peers(only: list[str] | None) -> Iterator[str]:
    """Those whose environment is there, of `only` if given."""
    for name, interpreter in INTERPRETERS.items():
        if only and name not in only:
            continue
        if interpreter.path.exists():
            yield name
        else:
            print(f"{name} is left out: there is no {interpreter.path} (make bench-setup)", file=sys.stderr)


@contextlib.contextmanager
def opened(kind: str, only: list[str] | None) -> Iterator[list[Peer]]:
    """All of them at once."""
    with contextlib.ExitStack() as stack:
        names = list(available_peers(only))
        yield [stack.enter_context(contextlib.closing(Peer(name, kind))) for name in names]


def bench(kind: str, turns: int, only: list[str] | None) -> dict[str, dict[str, float]]:
    """Steps/s and latencies of each rival, all taking turns of `TURN_S` each."""
    with opened(kind, only) as peers:
        counts = {peer.name: steps_for(peer, TURN_S) for peer in peers}
        rows: dict[str, list[Any]] = {peer.name: [] for peer in peers}
        for _ in track(range(turns), description=kind, console=Console(stderr=True)):
            for peer in peers:
                rows[peer.name].append(peer.step(counts[peer.name]))
    return {name: summarise(taken) for name, taken in rows.items()}


def steps_for(peer: Peer, seconds: float) -> int:
    """How many steps of a peer, warm, fill so much time; at least 5."""
    count = 5
    while (taken := peer.step(count).sum()) < seconds / 5:
        count *= 4
    return max(5, int(count * seconds / taken))


def summarise(rows: list[Any]) -> dict[str, float]:
    """Median rate over the turns, p50 and p99 of all steps."""
    every = np.concatenate(rows) * 1e6
    return {
        "steps_per_s": float(np.median([len(row) / row.sum() for row in rows])),
        "p50_us": float(np.percentile(every, 50)),
        "p99_us": float(np.percentile(every, 99)),
    }


def best_safe(results: dict[str, dict[str, float]]) -> str | None:
    """The fastest safe networked peer that is not ours."""
    safe = [name for name in results if INTERPRETERS[name].safe and name != OURS]
    return max(safe, key=lambda name: results[name]["steps_per_s"], default=None)


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    """Print one table, each row relative to the best safe peer, and whether the aim is met."""
    best = best_safe(results)
    table = Table(title=title)
    for column in ("", "", "steps/s", "p50 µs", "p99 µs", f"× {best}"):
        table.add_column(column, justify="right" if column else "left")
    base = results[best]["steps_per_s"] if best else float("nan")
    for name, row in results.items():
        rate, figures = row["steps_per_s"], [f"{row[key]:,.0f}" for key in ("p50_us", "p99_us")]
        table.add_row(name, INTERPRETERS[name].note, f"{rate:,.0f}", *figures, f"{rate / base:.2f}")
    Console().print(table)
    if best and OURS in results:
        ratio = results[OURS]["steps_per_s"] / base
        print(f"{OURS} is {ratio:.2f} times {best}; aim {AIM:g}: {'met' if ratio >= AIM else 'MISSED'}")


def main() -> int:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--turns", type=int, default=12, help="how often the rivals take turns (default 12)")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,NAME", help="some of the rivals")
    parser.add_argument("--pinned-only", action="store_true", help="leave out the unpinned tables")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    every_cpu = os.sched_getaffinity(0)
    places = {"one CPU": {max(every_cpu)}, "unpinned": every_cpu}
    for place, cpus in list(places.items())[: 1 if options.pinned_only or options.quick else 2]:
        for kind, title in (("small", "14 float64"), ("image", "480×640×3 uint8")):
            name = f"{title}, {place}"
            os.sched_setaffinity(0, cpus)
            results[name] = bench(kind, 2 if options.quick else options.turns, options.only)
            show(name, results[name])
    os.sched_setaffinity(0, every_cpu)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
