"""Plots of an evaluation: success by environment, returns, latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.evaluate.results import Results, summarize, whole_file

_DPI = 120
_BLUE = "#3b6ea5"
_ABOVE = {"textcoords": "offset points", "ha": "center"}
MANY = 4  # environments, whose names stand aslant so that they do not run into each other


def save_plots(results: Results, folder: Path) -> tuple[Path, ...]:
    """Write success.png, returns.png and latency.png, each where there is something to show.

    Raises:
        ConfigError: matplotlib is not installed here.
        CaptureError: the disk does not take them.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib; install it here: pip install 'remote-env[policy]'") from error
    drawn = []
    for name, draw in (("success", _draw_success), ("returns", _draw_returns), ("latency", _draw_latency)):
        figure = Figure(figsize=(6.4, 4.0), dpi=_DPI, layout="constrained")
        if not draw(figure.subplots(), results):
            continue
        drawn.append(folder / f"{name}.png")
        with whole_file(drawn[-1]) as temporary:
            figure.savefig(temporary)
    return tuple(drawn)


def _draw_success(axes: Any, results: Results) -> bool:
    """Success rate of each environment with its interval."""
    rows = {name: summarize(episodes) for name, episodes in results.by_environment().items()}
    rows = {name: row for name, row in rows.items() if row["success_rate"] is not None}
    if not rows:
        return False
    rates = [row["success_rate"] for row in rows.values()]
    intervals = [row["success_interval_95"] for row in rows.values()]
    below = [rate - low for rate, (low, _) in zip(rates, intervals, strict=True)]
    above = [high - rate for rate, (_, high) in zip(rates, intervals, strict=True)]
    axes.bar(list(rows), rates, width=0.5, color=_BLUE, alpha=0.75)
    axes.errorbar(list(rows), rates, yerr=[below, above], fmt="none", ecolor="black", capsize=6)
    for index, row in enumerate(rows.values()):
        axes.annotate(f"{row['successes']} of {row['judged']}", (index, 1.0), (0, 6), **_ABOVE)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.tick_params("x", rotation=0 if len(rows) < MANY else 30)
    axes.set(ylim=(0, 1.12), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], ylabel="success rate")
    axes.set_title("success, with Wilson's 95 % interval")
    return True


def _draw_returns(axes: Any, results: Results) -> bool:
    """How returns are spread, by environment."""
    groups = results.by_environment()
    values = [[episode.episode_return for episode in episodes] for episodes in groups.values()]
    axes.hist(values, bins=20, label=list(groups), color=_BLUE if len(groups) == 1 else None)
    axes.set(xlabel="return", ylabel="episodes", title="returns")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return bool(groups)


def _draw_latency(axes: Any, results: Results) -> bool:
    """How long inferences took, with the median and the 99th percentile."""
    latencies = results.latencies_ms
    if not latencies:
        return False
    numbers = summarize(results.episodes)["latency_ms"]
    axes.hist(latencies, bins=40, color=_BLUE)
    for name, style in (("p50", "--"), ("p99", ":")):
        axes.axvline(numbers[name], color="black", linestyle=style, label=f"{name} {numbers[name]:.1f} ms")
    axes.set(xlabel="latency of an inference [ms]", ylabel="inferences", title="latency, as a worker waits")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return True
