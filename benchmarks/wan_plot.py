"""bench_wan's plots: how long an episode takes against the round trip, a panel for each rate, a line for each way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import wan_ways

_DPI = 160
_GREY, _RED, _ORANGE = "#666666", "#c0392b", "#e08e2b"
_LIGHT, _BLUE, _DARK, _GREEN = "#8fb8de", "#3b7dbf", "#1b3f66", "#2e8b57"
_APART = 0.06  # labels of neighbouring lines, as a share of the axis
_TICKS = tuple(digit * 10.0**power for power in range(-2, 4) for digit in (1, 3))


class Line(NamedTuple):
    """How a way is drawn."""

    label: str
    color: str
    style: str = "-"


LINES = {
    wan_ways.SEED_STYLE: Line("TCP + pickle: step, get_state", _RED),
    wan_ways.STEP_STATE: Line("step() with state", _ORANGE),
    wan_ways.CHUNKS_16: Line("step_many(), K=16", _LIGHT),
    wan_ways.PIPELINED: Line("step_async(), window of 64", _BLUE),
    wan_ways.CHUNKS_64: Line("step_many(), K=64", _DARK),
    wan_ways.PREDICTED: Line("PredictiveEnv", _GREEN),
    wan_ways.LOCAL: Line("simulated in this process", _GREY, "--"),
}
PICTURE_LINES = {
    wan_ways.FAR_PICTURE: Line("step(), picture from the server", _RED),
    wan_ways.LOCAL_PICTURE: Line("step(), render='local'", _BLUE),
    wan_ways.CHUNK_PICTURES: Line("step_many(), K=32, local_pixels", _DARK),
    wan_ways.PICTURE_HERE: Line("simulated and drawn in this process", _GREY, "--"),
}


def save_plots(results: dict[str, Any], folder: Path) -> None:
    """Write wan and wan_pictures, each as SVG and PNG.

    Args:
        results: bench_wan's.
        folder: made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save(results, LINES, "ALOHA episode of 400 steps, each with its state", folder / "wan")
    _save(results, PICTURE_LINES, "ALOHA episode of 400 steps, a 480×640 picture of each", folder / "wan_pictures")


def _save(results: dict[str, Any], lines: dict[str, Line], title: str, stem: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(link["rate_mbit"] for link in results["links"]))
    with mpl.rc_context({"svg.hashsalt": "wan", "font.size": 10}):
        figure = Figure(figsize=(3.0 * len(rates) + 2.9, 3.7), dpi=_DPI)
        panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
        for axes, rate in zip(panels, rates, strict=True):
            ends = _draw(axes, [link for link in results["links"] if link["rate_mbit"] == rate], lines)
            axes.set_title(f"{rate:g} Mbit/s", fontsize=10)
        low, high = panels[0].get_ylim()
        panels[0].set_yticks([tick for tick in _TICKS if low <= tick <= high])
        _label(panels[-1], ends, lines)
        panels[0].set_ylabel("seconds")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        figure.supxlabel("round trip [ms]", x=0.4, y=0.02, fontsize=10)
        right = 1 - 2.7 / figure.get_figwidth()
        figure.subplots_adjust(left=0.06, right=right, top=0.83, bottom=0.15, wspace=0.07)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(stem.with_suffix(".png"))


def _draw(axes: Any, links: list[dict[str, Any]], lines: dict[str, Line]) -> dict[str, float]:
    """One rate; where each line ends."""
    links = sorted(links, key=lambda link: link["nominal_ms"])
    round_trips = [link["nominal_ms"] for link in links]
    ends = {}
    for name, line in lines.items():
        seconds = [link["rows"][name]["episode_s"] for link in links]
        axes.plot(round_trips, seconds, line.style, color=line.color, marker="o", markersize=3.5, linewidth=1.8)
        ends[name] = seconds[-1]
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(round_trips, [f"{value:g}" for value in round_trips])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(visible=True, axis="y", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return ends


def _label(axes: Any, ends: dict[str, float], lines: dict[str, Line]) -> None:
    """Each line's name beside its end, moved apart where lines end close together."""
    order = sorted(ends, key=lambda name: ends[name])
    places = np.log([ends[name] for name in order])
    apart = _APART * np.log(axes.get_ylim()[1] / axes.get_ylim()[0])
    for _ in range(100):
        for index in range(1, len(places)):
            overlap = apart - (places[index] - places[index - 1])
            if overlap > 0:
                places[index - 1 : index + 1] += (-overlap / 2, overlap / 2)
    for name, place in zip(order, np.exp(places), strict=True):
        line = lines[name]
        at = {"xytext": (1.04, place), "textcoords": axes.get_yaxis_transform(), "va": "center"}
        axes.annotate(line.label, (1.0, place), xycoords=axes.get_yaxis_transform(), color=line.color, **at)
