"""Scores of predictions: one table names each of them, and whatever prints, plots or stores scores reads that table.

A score is a pure function of `Predictions` to a number, or None where it is not defined. Registering one is enough for
it to reach results.json, the log line, TensorBoard, the report and the model card:

    @SCORES.register("worst", title="worst class")
    def worst(predictions):
        return float(np.nanmin(predictions.class_accuracy()))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shike_jax.errors import UserError
from shike_jax.methods.registry import Entry, Option, Registry

CALIBRATION_BINS = 15
HARDEST_NEGATIVE_BINS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What evaluation knows of N examples; every score is of the averaged logits unless it says otherwise.

    Attributes:
      labels: int [N].
      rank: int [N], the classes that score above the label (0: right; 2**31 - 1 where logits are not finite).
      predicted: int [N]; -1 where logits are not finite, which predict no class.
      expert_predicted: int [M,N], of each expert alone.
      confidence: float [N], the largest probability.
      hardest_negative: float [N], the largest probability of a wrong class (fig. 4).
      loss: float [N], cross-entropy in nats.
      num_classes: C.
      divisions: class indices of `many`, `medium` and `few`.
    """

    labels: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    expert_predicted: np.ndarray
    confidence: np.ndarray
    hardest_negative: np.ndarray
    loss: np.ndarray
    num_classes: int
    divisions: Mapping[str, np.ndarray]

    @functools.cached_property
    def examples_per_class(self) -> np.ndarray:
        """int [C]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def class_accuracy(self, expert: int | None = None) -> np.ndarray:
        """Accuracy of each class in percent, float [C], of the ensemble or of one expert; NaN without examples."""
        right = self.rank == 0 if expert is None else self.expert_predicted[expert] == self.labels
        count = self.examples_per_class
        hits = np.bincount(self.labels, weights=right, minlength=self.num_classes)
        return 100 * np.divide(hits, count, out=np.full(count.shape, np.nan), where=count > 0)

    def division_accuracy(self, expert: int | None = None) -> dict[str, float | None]:
        """Mean of the class accuracies of each division in percent; None where no class has examples."""
        accuracy, means = self.class_accuracy(expert), {}
        for name, classes in self.divisions.items():
            present = accuracy[classes][~np.isnan(accuracy[classes])]
            means[name] = float(present.mean()) if len(present) else None
        return means


Score = Callable[[Predictions], float | None]
SCORES: Registry[Score] = Registry(
    "score",
    "(predictions: Predictions) to a number, or None where it is not defined",
    inputs=Predictions,
    given=1,
    parameters=False,
    title=Option("", "in tables; empty: the name"),
    long=Option("", "in the model card; empty: the title"),
    unit=Option("%", "what follows the number"),
    log=Option(True, "shown in the line of each epoch"),
    column=Option(True, "shown in the report's tables of results"),
    detail=Option(True, "shown by `evaluate`"),
)


def score_of(entry: Entry[Score], predictions: Predictions) -> float | None:
    """The value of a score; UserError where it failed, or is no number."""
    value = entry.call(predictions)
    if value is not None and not isinstance(value, int | float | np.number):
        what = f"{value.dtype} {value.shape}" if hasattr(value, "shape") else type(value).__name__
        raise UserError(f"score {entry.name!r} returned {what}: expected a number or None")
    return None if value is None else float(value)


def check_scores(num_classes: int, divisions: Mapping[str, np.ndarray], experts: int) -> None:
    """Tries every registered score on made-up predictions, so that a mistake does not come after an epoch."""
    labels = np.arange(num_classes).repeat(2)
    half = np.full(len(labels), 0.5, np.float32)
    predicted = np.roll(labels, 1)
    made_up = Predictions(
        labels=labels,
        rank=(predicted != labels).astype(np.int32),
        predicted=predicted,
        expert_predicted=np.stack([predicted] * experts),
        confidence=half,
        hardest_negative=half,
        loss=half,
        num_classes=num_classes,
        divisions=divisions,
    )
    for entry in SCORES.entries():
        score_of(entry, made_up)


def describe_scores() -> dict[str, dict[str, Any]]:
    """The table of scores as plain data: {name: {title, long, unit, log, column, detail}}."""
    described = {}
    for entry in SCORES.entries():
        title = entry.options["title"] or entry.name
        described[entry.name] = {**entry.options, "title": title, "long": entry.options["long"] or title}
    return described


@SCORES.register("top1", title="top-1", long="top-1 accuracy")
def top1(predictions: Predictions) -> float:
    """Top-1 accuracy over the examples."""
    return 100 * float(np.mean(predictions.rank < 1))


@SCORES.register("top5", title="top-5", long="top-5 accuracy", log=False)
def top5(predictions: Predictions) -> float:
    """Top-5 accuracy over the examples."""
    return 100 * float(np.mean(predictions.rank < 5))


def _of_division(name: str) -> Score:
    def score(predictions: Predictions) -> float | None:
        return predictions.division_accuracy()[name]

    score.__doc__ = f"Mean accuracy of the {name}-shot classes."
    return score


for _name in ("many", "medium", "few"):
    SCORES.register(_name, title=_name, long=f"{_name}-shot classes, mean accuracy")(_of_division(_name))


@SCORES.register("macro_f1", title="macro F1", log=False, column=False)
def macro_f1(predictions: Predictions) -> float:
    """Mean F1 of the classes that are labelled or predicted."""
    return 100 * float(np.nanmean(f1_scores(predictions.predicted, predictions.labels, predictions.num_classes)))


@SCORES.register("ece", title="ECE", long="expected calibration error (15 bins)", log=False, column=False)
def ece(predictions: Predictions) -> float:
    """Expected calibration error over 15 bins (Guo et al. 2017, eq. 3)."""
    return calibration(predictions.confidence, predictions.rank == 0)["ece"]


@SCORES.register("loss", title="cross-entropy", unit="nats", log=False, column=False, detail=False)
def loss(predictions: Predictions) -> float:
    """Mean cross-entropy of the averaged logits."""
    return float(np.mean(predictions.loss, dtype=np.float64))


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS) -> dict[str, Any]:
    """Expected calibration error over equal-width bins of confidence (Guo et al. 2017, eq. 3).

    Bin i holds the confidences [N] (largest probabilities) in (i/bins, (i+1)/bins].

    Returns:
      `ece` in percent; per bin `count`, and `confidence` and `accuracy` as means in 0..1 (None where empty).
    """
    place = np.clip(np.ceil(np.nan_to_num(confidence).astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, right)]
    gaps = np.abs(sums[0] - sums[1]).sum() / max(len(place), 1)
    means = [[round(float(s / n), 6) if n else None for s, n in zip(row, count, strict=True)] for row in sums]
    return {
        "ece": round(100 * float(gaps), 4),
        "count": count.tolist(),
        "confidence": means[0],
        "accuracy": means[1],
    }


def f1_scores(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """F1 of each class, 0..1, float64 [C]; NaN for a class neither labelled nor predicted; predictions, labels [N].

    A prediction of -1 is none.
    """
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    both = np.bincount(labels, minlength=num_classes) + np.bincount(predicted[predicted >= 0], minlength=num_classes)
    return np.divide(2.0 * hits, both, out=np.full(num_classes, np.nan), where=both > 0)


def agreement(expert_predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far the experts agree, in percent of the examples; -1 in `expert_predicted` [M,N] agrees with nothing.

    Returns:
      `pairwise` [M][M]: the same prediction; `disagreement`: mean over pairs of another prediction (None for M = 1);
      `unanimous`: all predict the same; `oracle`: at least one is right; `all_right`; `none_right`.
    """
    m = len(expert_predicted)
    pairwise = 100 * np.array([[np.mean((a == b) & (a >= 0)) for b in expert_predicted] for a in expert_predicted])
    right = expert_predicted == labels
    shares = {
        "unanimous": ((expert_predicted == expert_predicted[0]) & (expert_predicted >= 0)).all(0),
        "oracle": right.any(0),
        "all_right": right.all(0),
        "none_right": ~right.any(0),
    }
    return {
        "pairwise": np.round(pairwise, 4).tolist(),
        "disagreement": round(100 - float(pairwise[~np.eye(m, dtype=bool)].mean()), 4) if m > 1 else None,
        **{name: round(100 * float(share.mean()), 4) for name, share in shares.items()},
    }


def hardest_negative(probability: np.ndarray, bins: int = HARDEST_NEGATIVE_BINS) -> dict[str, Any]:
    """Distribution of the hardest negative's probability (fig. 4); probabilities [N] in 0..1.

    Returns:
      `edges` [bins + 1], `share` [bins] in percent of the examples, `mean`, and `above_half`: percent above 0.5.
    """
    count, edges = np.histogram(probability, bins=bins, range=(0, 1))
    return {
        "edges": np.round(edges, 6).tolist(),
        "share": np.round(100 * count / max(len(probability), 1), 4).tolist(),
        "mean": round(float(np.mean(probability)), 6),
        "above_half": round(100 * float(np.mean(np.asarray(probability) > 0.5)), 4),
    }
