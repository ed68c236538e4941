"""Figures of a report, as SVG or PNG files: those of the paper, training curves, accuracy by count and calibration.

`results` is the content of a results.json, `summary` that of an evaluation (`shike_jax.commands.evaluate`). Each
function writes `path` and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from shike_jax.evaluation.checkpoint import trained_heads
from shike_jax.report import fonts, style
from shike_jax.report.curves import Curve

FEW_CLASSES = 20  # up to that many, each class is a point; beyond, classes of similar counts are averaged
CLASS_BINS = 12


@style.styled
def accuracy_by_count(results: Mapping[str, Any], path: Path) -> Path:
    """Test accuracy against the number of training images, per expert and for the ensemble.

    Up to 20 classes each class is a point; beyond, classes are averaged in twelve bins of neighbouring counts and the
    ensemble's single classes lie under them as dots.
    """
    counts = np.array(results["split"]["class_counts"], float)
    ensemble = _array(results["per_class"])
    experts = [_array(row) for row in results["experts_per_class"]]
    order = np.argsort(-counts, kind="stable")
    order = order[~np.isnan(ensemble[order])]
    bins = np.array_split(order, min(CLASS_BINS, len(order))) if len(order) > FEW_CLASSES else [[c] for c in order]
    x = [np.exp(np.mean(np.log(counts[b]))) for b in bins]
    drawn, axes = style.figure(3.6)
    if len(order) > FEW_CLASSES:
        axes.plot(counts[order], ensemble[order], ".", color="#BBBBBB", markersize=4, label="ensemble, each class")
    for m, (values, label) in enumerate(zip(experts, expert_labels(results["config"]["model"]), strict=True)):
        if len(experts) > 1:
            axes.plot(x, [values[b].mean() for b in bins], label=label, **style.series(m))
    whole = {"color": "black", "linewidth": 2, "marker": "D", "markersize": 3.5}
    axes.plot(x, [ensemble[b].mean() for b in bins], label="ensemble" if len(experts) > 1 else "network", **whole)
    axes.set(xlabel="training images of the class", ylabel="test accuracy (%)", xscale="log", ylim=(-3, 103))
    axes.set_title(f"{results['split']['name']}: top-1 {results['top1']:.1f} %", loc="left")
    if results["config"]["data"]["divisions"] == "shots":
        for limit in (100, 20):  # many ends and few begins there
            if counts.min() < limit < counts.max():
                axes.axvline(limit, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.invert_xaxis()
    style.log_ticks(axes.xaxis, counts.min(), counts.max())
    style.legend_below(drawn, axes, len(experts) + 1 if len(order) <= FEW_CLASSES else 3)
    return style.save(drawn, path)


@style.styled
def best_expert_per_class(summary: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> Path:
    """Figures 1 and 3a: the highest accuracy among the experts, class by class from head to tail."""
    experts = np.stack([_array(row) for row in _scores(summary)["experts_per_class"]])
    order = np.argsort(-np.array(summary["data"]["class_counts"]), kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    divisions = {name: rank[classes] for name, classes in summary["data"]["divisions"].items() if len(classes)}
    seen = ~np.isnan(experts[0])
    rank, best = rank[seen], experts[:, seen].max(0)
    winner = np.where((experts[:, seen] == best).sum(0) > 1, -1, experts[:, seen].argmax(0))  # -1: a tie
    drawn, axes = style.figure(3.4)
    size = 28 if len(rank) <= 100 else 8
    for m, label in enumerate(expert_labels(model)):
        mine = winner == m
        look = {name: style.series(m)[name] for name in ("color", "marker")}
        axes.scatter(rank[mine], best[mine], s=size, label=f"{label}: {mine.sum()} classes", **look)
    tied = winner < 0
    if tied.any():
        look = {"facecolors": "none", "edgecolors": style.GREY, "marker": "o"}
        axes.scatter(rank[tied], best[tied], s=size, label=f"several alike: {tied.sum()} classes", **look)
    for i, (name, ranks) in enumerate(divisions.items()):
        axes.text(ranks.mean(), 107, name, ha="center", color=style.GREY)
        if i:
            axes.axvline(ranks.min() - 0.5, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="class, from most to fewest training images", ylabel="accuracy of its best expert (%)")
    axes.set(ylim=(-3, 114), yticks=range(0, 101, 20), xlim=(0.48 - 0.02 * len(rank), 0.52 + 1.02 * len(rank)))
    if len(rank) <= FEW_CLASSES:
        axes.set_xticks(rank, np.array(fonts.names_or_numbers(summary["data"]["class_names"]))[seen])
    style.legend_below(drawn, axes, 2)
    return style.save(drawn, path)


@style.styled
def best_expert_shares(summary: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> Path:
    """Figure 3b: the share of classes that each expert is best at, per division; classes with a tie are divided."""
    shares = expert_shares(summary)
    drawn, axes = style.figure(3.0)
    experts = expert_labels(model)
    width = 0.8 / len(experts)
    for m, label in enumerate(experts):
        x = np.arange(len(shares)) + (m - (len(experts) - 1) / 2) * width
        heights = [values[m] for values in shares.values()]
        bars = axes.bar(x, heights, width * 0.92, label=label, **style.bar(m))
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    divisions = summary["data"]["divisions"]
    axes.set_xticks(range(len(shares)), [f"{name} ({len(divisions[name])} classes)" for name in shares])
    axes.set(ylabel="share of the classes (%)", ylim=(0, 1.15 * max(max(values) for values in shares.values())))
    axes.grid(visible=False, axis="x")
    style.legend_below(drawn, axes, len(experts))
    return style.save(drawn, path)


def expert_shares(summary: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Percent of each division's classes that each expert is best at: {division: [M]}; ties are divided evenly."""
    scores = _scores(summary)
    experts = np.stack([_array(row) for row in scores["experts_per_class"]])
    shares = {}
    for name, classes in summary["data"]["divisions"].items():
        present = [c for c in classes if not np.isnan(experts[0, c])]
        if present:
            best = experts[:, present] == experts[:, present].max(0)
            shares[name] = 100 * (best / best.sum(0)).mean(1)
    return shares


@style.styled
def hardest_negatives(summaries: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Figure 4: how probable the likeliest wrong class is, {label: summary}, such as a single network and SHIKE."""
    drawn, (shares, above) = style.figure(3.1, ncols=2)
    for i, (label, summary) in enumerate(summaries.items()):
        scores = _scores(summary)["hardest_negative"]
        edges, share = np.array(scores["edges"]), np.array(scores["share"])
        width = (edges[1] - edges[0]) / len(summaries)
        name = f"{style.short(label)} (mean {scores['mean']:.3f})"
        shares.bar(edges[:-1] + (i + 0.5) * width, share, 0.94 * width, label=name, **style.bar(i))
        remaining = 100 - np.concatenate([[0], np.cumsum(share)])
        above.plot(edges, remaining, **style.series(i))
    shares.set(xlabel="probability of the hardest negative", ylabel="share of the test images (%)", yscale="log")
    above.set(xlabel="probability p", ylabel="share above p (%)", xlim=(0, 1), ylim=(0, 102))
    style.log_ticks(shares.yaxis, *shares.get_ylim())
    style.legend_below(drawn, shares, 2)
    return style.save(drawn, path)


@style.styled
def reliability(summaries: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Accuracy against confidence in 15 bins, one panel for each {label: summary}; the histogram below each."""
    columns = len(summaries)
    grid = {"nrows": 2, "ncols": columns, "squeeze": False, "height_ratios": (3, 1), "sharex": "all", "sharey": "row"}
    drawn, axes = style.figure(4.2, **grid)
    for column, (label, summary) in enumerate(summaries.items()):
        scores = _scores(summary)["calibration"]
        upper, lower = axes[:, column]
        edges = np.linspace(0, 1, len(scores["count"]) + 1)
        middle, width = (edges[:-1] + edges[1:]) / 2, edges[1]
        seen = np.array(scores["count"]) > 0
        accuracy, confidence = _array(scores["accuracy"])[seen], _array(scores["confidence"])[seen]
        upper.bar(middle[seen], accuracy, 0.94 * width, label="accuracy", **style.bar(0))
        gap = {"facecolor": "none", "edgecolor": style.COLOURS[1], "hatch": "////", "linewidth": 0.6}
        upper.bar(middle[seen], confidence - accuracy, 0.94 * width, accuracy, label="gap", **gap)
        upper.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect")
        upper.set(title=f"{style.short(label, 60 // columns)}: ECE {scores['ece']:.1f} %", xlim=(0, 1), ylim=(0, 1))
        lower.bar(middle, 100 * np.array(scores["count"]) / max(sum(scores["count"]), 1), 0.94 * width, **style.bar(7))
        lower.set(xlabel="confidence")
    axes[0, 0].set(ylabel="accuracy")
    axes[1, 0].set(ylabel="images (%)")
    style.legend_below(drawn, axes[0, 0], 3)
    return style.save(drawn, path)


@style.styled
def training_curves(curves: Sequence[Curve], path: Path) -> Path:
    """Training loss and test accuracy over the epochs: means over seeds, the range over seeds shaded."""
    drawn, (loss, top1) = style.figure(3.1 + 0.12 * len(curves), ncols=2)
    for i, curve in enumerate(curves):
        look = {**style.series(i), "markevery": (i, max(len(curve.epochs) // 8, 1)), "markersize": 4}
        for axes, values in ((loss, curve.loss), (top1, curve.top1)):
            mean = np.nanmean(values, 0)
            known = ~np.isnan(mean)
            axes.plot(curve.epochs[known], mean[known], label=style.short(curve.label), **look)
            if len(values) > 1:
                low, high = np.nanmin(values, 0)[known], np.nanmax(values, 0)[known]
                axes.fill_between(curve.epochs[known], low, high, color=look["color"], alpha=0.18, linewidth=0)
    for start in sorted({start for curve in curves for start in curve.stage_starts}):
        for axes in (loss, top1):
            axes.axvline(start + 0.5, color=style.GREY, linewidth=0.8, linestyle=":")
    for axes in (loss, top1):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
    style.log_ticks(loss.yaxis, *loss.get_ylim())
    top1.set(xlabel="epoch", ylabel="test top-1 (%)")
    style.legend_below(drawn, top1, 2)
    return style.save(drawn, path)


def expert_labels(model: Mapping[str, Any]) -> list[str]:
    """`expert 1 (stage 1)`: with the shared stage whose features it fuses."""
    fused = model["fusion"]
    return [f"expert {m + 1}" + (f" (stage {depth})" if fused else "") for m, depth in enumerate(model["depths"])]


def _scores(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores of the set of classifiers that the run trained last."""
    return summary["heads"][trained_heads(summary)]


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
