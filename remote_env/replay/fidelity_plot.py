"""The one plot of a fidelity report: errors over time, a line per entity."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from remote_env.replay.report import FidelityReport

_ROWS = {
    "position_m": "position [m]",
    "rotation_rad": "rotation [rad]",
    "joint_rad": "hinges [rad]",
    "joint_m": "slides [m]",
}
_INK = "0.25"


def draw_fidelity(report: FidelityReport) -> bytes:
    """A PNG; drawn without pyplot, so that no window system and no state of a caller's own plots is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in _ROWS if any(kind in entity.over_time for entity in report.entities)] or ["position_m"]
    figure = Figure(figsize=(8.0, 1.0 + 1.7 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axis, kind in zip(axes, kinds, strict=True):
        _draw_kind(axis, report, kind)
    axes[-1].set_xlabel("state (0: after reset)", color=_INK)
    axes[0].set_title(f"{report.name}: local model against capture, largest of each entity", fontsize=10)
    if report.entities:
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    image = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(image)
    return image.getvalue()


def _draw_kind(axis: Any, report: FidelityReport, kind: str) -> None:
    above_zero = np.zeros(0)
    for index, entity in enumerate(report.entities):
        if kind in entity.over_time:
            values = entity.over_time[kind]
            label = entity.name if values.any() else f"{entity.name} (exactly 0)"
            axis.plot(np.arange(len(values)), values, label=label, color=f"C{index % 10}", linewidth=1.2)
            above_zero = np.concatenate([above_zero, values[values > 0]])
    if above_zero.size:
        largest = above_zero.max()
        axis.set_yscale("log")
        axis.set_ylim(max(above_zero.min() / 3, largest * 1e-6, 1e-18), largest * 3)
    else:
        axis.set_ylim(-1.0, 1.0)
        axis.set_yticks([0.0])
        axis.annotate("exactly 0 throughout", (0.5, 0.7), xycoords="axes fraction", ha="center", fontsize=8)
    axis.set_ylabel(_ROWS[kind], color=_INK, fontsize=9)
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
