"""One look for all figures: colours that colour-blind people can tell apart, markers and hatches for print."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shike_jax.report import fonts

# Okabe and Ito's palette, without its yellow, which is too light on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
GREY = "#595959"
DPI = 200
WIDTH = 6.3  # inches: the text of an A4 page
_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.hashsalt": "shike_jax",
}


def styled(draw: Callable[..., Path]) -> Callable[..., Path]:
    """Decorates a drawing function: the look holds while it runs, and nothing global stays changed."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Path:
        with matplotlib.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return wrapped


def figure(height: float, **subplots: Any) -> tuple[Figure, Any]:
    """Returns a figure as wide as a page's text, `height` inches high, and its axes (as `Figure.subplots`)."""
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, drawn.subplots(**subplots)


def legend_below(drawn: Figure, axes: Any, columns: int) -> None:
    """One legend for the figure, from the labels of `axes`, below everything, in fewer columns where they are long."""
    entries = axes.get_legend_handles_labels()
    for ncols in range(columns, 0, -1):
        legend = drawn.legend(*entries, loc="outside lower center", ncols=ncols)
        if ncols == 1 or legend.get_window_extent().width <= drawn.bbox.width:
            return
        legend.remove()


def short(label: str, most: int = 42) -> str:
    """A label that leaves room for the figure: its middle is left out where it is long."""
    return label if len(label) <= most else f"{label[: most // 2]}...{label[-(most // 2 - 3) :]}"


def save(drawn: Figure, path: Path) -> Path:
    """Writes a PNG, an SVG or a PDF by the path's suffix, without what changes from day to day; returns the path."""
    fonts.fit(drawn)
    dated = {".png": "Software", ".pdf": "CreationDate"}.get(path.suffix, "Date")
    drawn.savefig(path, dpi=DPI, metadata={dated: None})
    return path


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Plain numbers 1, 2, 5, 10, ... on a logarithmic axis over `low` to `high`; evenly spaced ones on a short axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if 0.8 * low <= m * 10.0**p <= 1.25 * high]
    if len(ticks) < 3:
        spaced = MaxNLocator(6, steps=(1, 2, 5, 10)).tick_values(low, high)
        ticks = [tick for tick in spaced if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def series(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the i-th curve."""
    place = index % len(COLOURS)
    return {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": LINES[place]}


def bar(index: int) -> dict[str, Any]:
    """Colour and hatch of the i-th set of bars: light fill, dark edge."""
    place = index % len(COLOURS)
    return {"facecolor": COLOURS[place] + "66", "edgecolor": COLOURS[place], "hatch": HATCHES[place], "linewidth": 0.8}
