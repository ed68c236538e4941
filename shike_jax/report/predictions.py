"""What was predicted, image by image: confused classes, experts and runs that differ, images that show it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shike_jax.common.text import number
from shike_jax.evaluation.checkpoint import trained_heads
from shike_jax.report.tables import Table

CONFUSED = 10  # pairs of classes that are listed
SHOWN = 8  # images of each kind
LISTED_CLASSES = 1000
COMPARED = 3  # pairs of runs


@dataclasses.dataclass(frozen=True)
class Predictions:
    """An evaluation's predictions of N images with the classifiers that were trained last."""

    names: tuple[str, ...]  # of the C classes
    counts: np.ndarray  # training images of each class
    divisions: dict[str, np.ndarray]  # class indices by name
    labels: np.ndarray  # int [N]
    predicted: np.ndarray  # int [N]; -1 where the network's output is not finite
    experts: np.ndarray  # int [M,N], what each expert alone predicts
    confidence: np.ndarray  # float [N]
    scores: Mapping[str, Any]  # of the summary

    @classmethod
    def of(cls, summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Predictions | None:
        """From a summary and the arrays of `evaluate --output=FILE.npz`; None where the file holds scores alone."""
        heads, data = trained_heads(summary), summary["data"]
        if "label" not in arrays or f"{heads}/predicted" not in arrays:
            return None
        divisions = {name: np.array(classes, int) for name, classes in data["divisions"].items()}
        return cls(
            names=tuple(data["class_names"]),
            counts=np.array(data["class_counts"]),
            divisions=divisions,
            labels=arrays["label"],
            predicted=arrays[f"{heads}/predicted"],
            experts=arrays[f"{heads}/expert_predicted"],
            confidence=arrays[f"{heads}/confidence"],
            scores=summary["heads"][heads],
        )

    @property
    def right(self) -> np.ndarray:
        """Which images are recognised: bool [N]."""
        return self.predicted == self.labels

    @property
    def wrong(self) -> np.ndarray:
        """Which images got another class than theirs; those without a class are not among them: bool [N]."""
        return ~self.right & (self.predicted >= 0)

    def division(self) -> np.ndarray:
        """The number of each class's division, in the order of `divisions`: int [C]."""
        found = np.zeros(len(self.names), int)
        for place, classes in enumerate(self.divisions.values()):
            found[classes] = place
        return found


def division_confusion(label: str, found: Predictions) -> Table:
    """Of the images of each division: how many are right, and in which division the wrong answers lie."""
    of, rows = found.division(), []
    names = [name for name, classes in found.divisions.items() if len(classes)]
    numbers = {name: place for place, name in enumerate(found.divisions)}
    for name in names:
        mine = of[found.labels] == numbers[name]
        answers = [mine & found.wrong & (of[found.predicted] == numbers[other]) for other in names]
        total = max(mine.sum(), 1)
        cells = [f"{100 * part.sum() / total:.1f}" for part in (mine & found.right, *answers)]
        rows.append((f"images of {name}", f"{mine.sum():,}", *cells))
    header = ("true", "images", "right", *(f"wrong, {name}" for name in names))
    return Table(f"{label}: many, medium and few confused", header, rows, "Percent of the images of each row.")


def confused_classes(label: str, found: Predictions) -> Table:
    """The pairs of classes with most confused images, true class first."""
    both = np.stack([found.labels, found.predicted])[:, found.wrong]
    pairs, counts = np.unique(both, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:CONFUSED]
    of_class = np.bincount(found.labels, minlength=len(found.names))
    rows: list[tuple[str, ...]] = [
        (
            f"{found.names[true]} taken for {found.names[taken]}",
            f"{counts[i]:,}",
            f"{100 * counts[i] / of_class[true]:.0f} %",
            f"{found.counts[true]:,}",
            f"{found.counts[taken]:,}",
        )
        for i in order
        for true, taken in [pairs[:, i]]
    ]
    header = ("classes", "images", "of the true class", "its training images", "of the other")
    return Table(f"{label}: most confused classes", header, rows)


def class_table(label: str, found: Predictions) -> Table:
    """Every class with its scores; the page sorts it by any column."""
    scores, rows = found.scores, []
    wrong = found.wrong
    order = np.argsort(-found.counts, kind="stable")[:LISTED_CLASSES]
    for c in order:
        taken = np.bincount(found.predicted[wrong & (found.labels == c)], minlength=1)
        most = found.names[taken.argmax()] if taken.sum() else "-"
        cells = [scores["per_class"][c], scores["f1_per_class"][c], *(one[c] for one in scores["experts_per_class"])]
        tested = f"{scores['examples_per_class'][c]:,}"
        rows.append((found.names[c], f"{found.counts[c]:,}", tested, *(number(value, 1) for value in cells), most))
    experts = (f"expert {m + 1}" for m in range(len(scores["experts_per_class"])))
    header = ("class", "training images", "test images", "accuracy", "F1", *experts, "most often taken for")
    listed = len(order) == len(found.names)
    note = "Click on a column's name to sort." if listed else f"The {len(order):,} largest classes."
    return Table(f"{label}: class by class", header, rows, note, sortable=True)


def disagreement(label: str, found: Predictions) -> Table | None:
    """On how many images each pair of experts predicts differently; None for a single network."""
    experts, right = found.experts, found.experts == found.labels
    if len(experts) < 2:
        return None
    rows = []
    for m in range(len(experts)):
        cells = ["-" if m == n else f"{100 * np.mean(experts[m] != experts[n]):.1f}" for n in range(len(experts))]
        only = right[m] & (right.sum(0) == 1)
        rows.append((f"expert {m + 1}", *cells, f"{100 * right[m].mean():.1f}", f"{100 * only.mean():.1f}"))
    header = ("differs from", *(f"expert {m + 1}" for m in range(len(experts))), "right", "alone right")
    return Table(f"{label}: disagreement of the experts", header, rows, "Percent of the test images.")


def comparisons(found: Mapping[str, Predictions]) -> list[Table]:
    """Two runs on the same images, image by image; the first `COMPARED` pairs."""
    pairs = [
        (one, other)
        for one, other in itertools.combinations(found, 2)
        if np.array_equal(found[one].labels, found[other].labels)
    ]
    return [_comparison(one, found[one], other, found[other]) for one, other in pairs[:COMPARED]]


def _comparison(one: str, a: Predictions, other: str, b: Predictions) -> Table:
    of, rows = a.division(), []
    divisions = [(name, of[a.labels] == place) for place, name in enumerate(a.divisions)]
    for name, mine in [("all", np.ones(len(a.labels), bool)), *divisions]:
        total = mine.sum()
        if total:
            kinds = (a.right & b.right, a.right & ~b.right, ~a.right & b.right, ~a.right & ~b.right)
            cells = [f"{100 * (kind & mine).sum() / total:.1f}" for kind in kinds]
            gain = 100 * (b.right[mine].mean() - a.right[mine].mean())
            rows.append((name, f"{total:,}", *cells, f"{gain:+.1f}"))
    header = ("images", "number", "both right", "only A", "only B", "none", "B - A")
    note = f"A: {one}. B: {other}. Percent of the images of each row."
    return Table("Two runs, image by image", header, rows, note)


def examples(found: Predictions) -> list[tuple[int, bool, str]]:
    """Images to show: (place among the test images, right, what is said below it).

    Right ones from the most to the least certain, and the mistakes that the network is most certain of.
    """
    by_confidence = np.argsort(-found.confidence, kind="stable")
    right = by_confidence[found.right[by_confidence]]
    wrong = by_confidence[found.wrong[by_confidence]]
    chosen = [*right[np.linspace(0, len(right) - 1, SHOWN).astype(int)]] if len(right) else []
    shown = []
    for i in (*chosen, *wrong[:SHOWN]):
        true, taken = found.names[found.labels[i]], found.names[found.predicted[i]]
        words = true if found.right[i] else f"{true}, taken for {taken}"
        shown.append((int(i), bool(found.right[i]), f"{words}, {100 * found.confidence[i]:.0f} %"))
    return shown


def tables(evaluated: Mapping[str, Predictions]) -> Sequence[Table]:
    """All tables of a data set's evaluated runs: those of each run, then comparisons."""
    made: list[Table | None] = []
    for label, found in evaluated.items():
        made += [division_confusion(label, found), confused_classes(label, found), disagreement(label, found)]
    made += comparisons(evaluated)
    made += [class_table(label, found) for label, found in evaluated.items()]
    return [table for table in made if table is not None]
