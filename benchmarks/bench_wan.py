"""How long an ALOHA episode of 400 steps takes behind slow links, by each way to run it, interleaved.

    python -m benchmarks.bench_wan [--json OUT] [--plots FOLDER] [--quick] [--passes 5]
    python -m benchmarks.bench_wan --redraw RESULTS.json --plots FOLDER

Round trips of 0.2, 5, 20 and 80 ms at 1000, 100 and 20 Mbit/s, each on `link.py`'s link, whose process shares the
machine with client and server. On each link all ways take turns; a figure is the median over the passes. A way that
waits for every step runs fewer of them where they are slow, and its episode is what 400 would take at that pace: the
table says how many it ran. `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import wan_ways
from benchmarks.link import Link, slow_link
from benchmarks.rivals import machine
from benchmarks.wan_far import IMAGE_KWARGS, PORTS, TASK, TASK_KWARGS, PingPong
from benchmarks.wan_plot import save_plots
from benchmarks.wan_ways import Timed, Way, open_ways

ROOT = Path(__file__).resolve().parents[1]
ROUND_TRIPS_MS = (0.2, 5.0, 20.0, 80.0)
RATES_MBIT = (1000.0, 100.0, 20.0)
SECONDS = 0.4  # about what one turn of a way takes that waits for each step
PINGS_S, PINGS = 0.3, (8, 60)
WARM_UP_STEPS = 3
UP_IN_S = 60.0
WIDTH = 110  # of tables, also where they go into a file
CONGESTION_CONTROL = (
    "cubic"  # what Linux comes with; bbr paces what a chunk brings, at 80 ms for a third of a round trip
)
MOST_ROUND_TRIPS, MOST_EXCESS_S = 10.0, 0.5e-3  # the aims

Results = dict[str, Any]


def bench_link(round_trip_ms: float, rate_mbit: float, passes: int, congestion_control: str) -> Results:
    """All ways on one link.

    Returns:
        round_trip_ms as raw ping-pong has it, rows of way -> figures, and how far the aims are met.
    """
    with contextlib.ExitStack() as stack:
        kind: Any = {"rate_bits_per_s": rate_mbit * 1e6, "congestion_control": congestion_control}
        link = stack.enter_context(slow_link(round_trip_ms / 2e3, **kind))
        _start_far_programs(link, stack)
        ways, ping = open_ways(link.far, stack)
        steps = {name: way.steps_within(SECONDS, round_trip_ms / 1e3, rate_mbit * 1e6) for name, way in ways.items()}
        for way in ways.values():
            way.run(WARM_UP_STEPS)
        count = int(np.clip(PINGS_S / (round_trip_ms / 1e3), *PINGS))
        pings: list[float] = []
        turns: dict[str, list[Timed]] = {name: [] for name in ways}
        for _ in range(passes):
            pings.append(_median_ping(ping, count))
            for name, way in ways.items():
                turns[name].append(_run(way, steps[name], link))
    rows = {name: _figures(timed) for name, timed in turns.items()}
    return {"round_trip_ms": float(np.median(pings) * 1e3), "rows": rows, **_judge(pings, turns)}


def _run(way: Way, steps: int, link: Link) -> Timed:
    before = link.received_bytes
    timed = way.run(steps)
    return timed._replace(received_bytes=link.received_bytes - before)


def _median_ping(ping: PingPong, count: int) -> float:
    stamps = [time.perf_counter()]
    for _ in range(count):
        ping.ask()
        stamps.append(time.perf_counter())
    return float(np.median(np.diff(stamps)))


def _figures(timed: list[Timed]) -> Results:
    each = np.concatenate([one.each_s for one in timed]) * 1e3
    found: Results = {
        "episode_s": float(np.median([one.episode_s for one in timed])),
        "steps": timed[0].steps,
        "passes_s": [one.episode_s for one in timed],
        "bytes_per_step": float(np.median([one.received_bytes / one.steps for one in timed])),
    }
    if len(each):
        found |= {"step_p50_ms": float(np.percentile(each, 50)), "step_p99_ms": float(np.percentile(each, 99))}
    return found


def _judge(pings: list[float], turns: dict[str, list[Timed]]) -> Results:
    """How many round trips an episode by chunks costs beyond a local one, and what a step costs beyond its wait."""
    simulate = [float(np.median(one.simulate_s)) for one in turns[wan_ways.SEED_STYLE]]
    excess = [
        float(np.median(one.each_s)) - ping - simulated
        for one, ping, simulated in zip(turns[wan_ways.STEP], pings, simulate, strict=True)
    ]
    local = [one.episode_s for one in turns[wan_ways.LOCAL]]
    beyond = {}
    for name in (wan_ways.CHUNKS_64_BARE, wan_ways.CHUNKS_64):
        late = zip(turns[name], local, pings, strict=True)
        beyond[name] = float(np.median([(one.episode_s - here) / ping for one, here, ping in late]))
    return {
        "simulate_ms": float(np.median(simulate)) * 1e3,
        "step_excess_ms": float(np.median(excess)) * 1e3,
        "round_trips_beyond_local": beyond,
    }


# The far end


def _start_far_programs(link: Link, stack: contextlib.ExitStack) -> None:
    """Raw ping-pong, the pickle server and our task servers."""
    programs = {
        "raw": ["-m", "benchmarks.wan_far", "raw", link.far],
        "pickle": ["-m", "benchmarks.wan_far", "pickle", link.far],
        "ours": _serve(link, TASK_KWARGS, PORTS["ours"], sessions=3),
        "ours with images": _serve(link, IMAGE_KWARGS, PORTS["ours with images"], sessions=1),
    }
    started = {
        name: stack.enter_context(_running([*link.enter, sys.executable, *arguments]))
        for name, arguments in programs.items()
    }
    for name, process in started.items():
        _wait_for(process, str(PORTS[name]))


def _serve(link: Link, kwargs: dict[str, Any], port: int, *, sessions: int) -> list[str]:
    what = ["servers/task_server.py", "--env", TASK, "--kwargs", json.dumps(kwargs), "--max-sessions", str(sessions)]
    return [*what, "--host", link.far, "--port", str(port), "--insecure"]


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program, until the end of the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(UP_IN_S)


def _wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Until it has printed that word."""
    assert process.stdout is not None
    ended = threading.Timer(UP_IN_S, process.kill)
    ended.start()
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if word in line:
                threading.Thread(target=process.stdout.read, daemon=True).start()  # what else it prints, unread
                return
        raise SystemExit(f"a program did not come up: {process.args!r}\n{''.join(lines)}")
    finally:
        ended.cancel()


# Printing


def show(name: str, results: Results) -> None:
    """Print one link's table, and its aims."""
    table = Table(title=f"{name}; raw ping-pong {results['round_trip_ms']:.2f} ms")
    for column in ("", "episode s", "× local", "steps", "p50 ms", "p99 ms", "bytes/step"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    base = results["rows"][wan_ways.LOCAL]["episode_s"]
    for way, row in results["rows"].items():
        each = [f"{row[key]:.2f}" if key in row else "" for key in ("step_p50_ms", "step_p99_ms")]
        ratio, size = f"{row['episode_s'] / base:.2f}", f"{row['bytes_per_step']:,.0f}"
        table.add_row(way, f"{row['episode_s']:.3f}", ratio, str(row["steps"]), *each, size)
    Console(width=WIDTH).print(table)
    for line in _aims(results):
        print(line)


def _aims(results: Results) -> list[str]:
    excess = results["step_excess_ms"]
    lines = [
        f"step = round trip + simulation ({results['simulate_ms']:.2f} ms) + {excess:.2f} ms; "
        f"at most {MOST_EXCESS_S * 1e3} aimed at: {_met(excess <= MOST_EXCESS_S * 1e3)}"
    ]
    for name, count in results["round_trips_beyond_local"].items():
        aim = f"; at most {MOST_ROUND_TRIPS:.0f} aimed at 20 ms: {_met(count <= MOST_ROUND_TRIPS)}"
        lines.append(f"{name} = local + {count:.1f} round trips{aim}")
    predicted, stepped = (results["rows"][name]["episode_s"] for name in (wan_ways.PREDICTED, wan_ways.STEP))
    return [*lines, f"prediction saves {stepped - predicted:.2f} s of the {stepped:.2f} s that step() takes"]


def show_all(links: list[Results]) -> None:
    """Print as Markdown every episode [s], ways by round trips, a table for each rate; and how far the aims are met."""
    for rate in dict.fromkeys(link["rate_mbit"] for link in links):
        chosen = [link for link in links if link["rate_mbit"] == rate]
        rows = {
            f"{way} ({_steps(chosen, way)})": [f"{link['rows'][way]['episode_s']:.2f}" for link in chosen]
            for way in chosen[0]["rows"]
        }
        _print_markdown([f"{rate:g} Mbit/s: s", *(f"{link['nominal_ms']:g} ms" for link in chosen)], rows)
    head = ["link", "raw ping-pong ms", "simulation ms", "step beyond both ms", *links[0]["round_trips_beyond_local"]]
    _print_markdown(
        head, {f"{link['nominal_ms']:g} ms, {link['rate_mbit']:g} Mbit/s": _aim_row(link) for link in links}
    )


def _steps(links: list[Results], way: str) -> str:
    """How many steps were run of an episode: by the slowest and the fastest link."""
    counts = sorted({link["rows"][way]["steps"] for link in links})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _aim_row(link: Results) -> list[str]:
    milliseconds = (link[key] for key in ("round_trip_ms", "simulate_ms", "step_excess_ms"))
    beyond = (f"local + {count:.1f} round trips" for count in link["round_trips_beyond_local"].values())
    return [*(f"{value:.2f}" for value in milliseconds), *beyond]


def _print_markdown(head: list[str], rows: dict[str, list[str]]) -> None:
    print()
    for cells in (head, ["---"] * len(head), *([name, *figures] for name, figures in rows.items())):
        print(f"| {' | '.join(cells)} |")


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def main() -> int:
    """Run every link."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw wan.svg and wan.png there")
    parser.add_argument("--redraw", type=Path, metavar="RESULTS", help="only draw those figures")
    parser.add_argument("--passes", type=int, default=5, help="how often the ways take turns (default %(default)s)")
    parser.add_argument("--round-trips-ms", type=float, nargs="+", default=ROUND_TRIPS_MS, metavar="MS")
    parser.add_argument("--rates-mbit", type=float, nargs="+", default=RATES_MBIT, metavar="MBIT")
    parser.add_argument("--congestion-control", default=CONGESTION_CONTROL, metavar="NAME", help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="one pass on one link, to see that it runs")
    options = parser.parse_args()
    if options.redraw:
        save_plots(json.loads(options.redraw.read_text()), options.plots or Path())
        return 0
    if options.quick:
        options.round_trips_ms, options.rates_mbit, options.passes = (20.0,), (100.0,), 1
    os.environ["REMOTE_ENV_TOKEN"] = secrets.token_hex(32)
    results: Results = {"machine": f"{machine()}, TCP with {options.congestion_control}", "links": []}
    print(results["machine"])
    for rate in options.rates_mbit:
        for round_trip in options.round_trips_ms:
            found = bench_link(round_trip, rate, options.passes, options.congestion_control)
            show(f"{round_trip:g} ms, {rate:g} Mbit/s", found)
            results["links"].append({"nominal_ms": round_trip, "rate_mbit": rate, **found})
            if options.json:
                options.json.write_text(json.dumps(results, indent=2))  # what is measured is kept, whatever comes
    show_all(results["links"])
    if options.plots:
        save_plots(results, options.plots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
