"""Resident memory, and CPU seconds per thousand steps, at both ends: RemoteEnv beside every peer of bench_peers.

    python -m benchmarks.bench_memory [--json OUT] [--quick] [--only NAME,NAME]

14 float64, one 480×640×3 uint8 image (a task that computes nothing), and ALOHA's transfer without cameras. The client
is the process that steps; the server is every other one that is there because of it. Memory is the sum of their
resident sets after the last step, so that pages which processes share count for each, and what that grew by over the
steps. One rival at a time, unpinned; what a CPU second buys depends on the machine, so compare within a table only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.bench_peers import OURS, Peer, available_peers, steps_for
from benchmarks.rivals import machine

LOCAL = "in one process"
SECONDS = 4.0
MB = 1e6
ENDS = ("client", "server")


class Usage(NamedTuple):
    """Of one end: resident bytes, and CPU seconds since its processes began."""

    resident_bytes: int
    cpu_s: float


def usage(peer: Peer) -> dict[str, Usage]:
    """What both ends use now."""
    client = psutil.Process(peer.processes["client"].pid)
    others = client.children(recursive=True)
    if server := peer.processes.get("server"):
        process = psutil.Process(server.pid)
        others += [process, *process.children(recursive=True)]
    return {"client": _sum([client]), "server": _sum(others)}


def _sum(processes: list[psutil.Process]) -> Usage:
    resident, cpu = 0, 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # a helper that ended meanwhile
            times = process.cpu_times()
            resident += process.memory_info().rss
            cpu += times.user + times.system
    return Usage(resident, cpu)


def measure(name: str, kind: str, seconds: float) -> dict[str, float]:
    """One rival: "client_MB", "client_grown_MB", "client_cpu_s" (per thousand steps), those of "server", "steps"."""
    with contextlib.closing(Peer(name, kind)) as peer:
        count = steps_for(peer, seconds / 10)
        first = usage(peer)
        for _ in range(10):
            peer.step(count)
        last = usage(peer)
    row: dict[str, float] = {"steps": 10.0 * count}
    for end in ENDS:
        row[f"{end}_MB"] = last[end].resident_bytes / MB
        row[f"{end}_grown_MB"] = (last[end].resident_bytes - first[end].resident_bytes) / MB
        row[f"{end}_cpu_s"] = (last[end].cpu_s - first[end].cpu_s) / (10 * count) * 1000
    return row


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    table = Table(title=title)
    for column in (
        "",
        "client MB",
        "grown",
        "server MB",
        "grown",
        "client CPU s / 1000",
        "server CPU s / 1000",
        "steps",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results.items():
        memory = [f"{row[f'{end}_{key}']:,.1f}" for end in ENDS for key in ("MB", "grown_MB")]
        table.add_row(name, *memory, *(f"{row[f'{end}_cpu_s']:.3f}" for end in ENDS), f"{row['steps']:,.0f}")
    Console().print(table)


def main() -> int:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,NAME", help="some of the rivals")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    print(results["machine"])
    every = [LOCAL, *available_peers(options.only)]
    tables = {"14 float64": ("small", every), "480×640×3 uint8": ("image", every), "ALOHA": ("aloha", [LOCAL, OURS])}
    for title, (kind, names) in tables.items():
        seconds = SECONDS / 10 if options.quick else SECONDS
        results[title] = {name: measure(name, kind, seconds) for name in names}
        show(title, results[title])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
