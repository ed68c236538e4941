"""What predictions are worth.

Training counts (`count_correct`): sums that add up over batches, devices and processes and become accuracies once, at
the end (`summarise`). Evaluation keeps a few numbers per example (`per_example`), far smaller than the logits, from
which everything else follows on the host (`analyse`): calibration, F1, agreement of the experts, hardest negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
CALIBRATION_BINS = 15
HARDEST_NEGATIVE_BINS = 20


def count_correct(logits: Array, labels: Array, mask: Array) -> dict[str, Array]:
    """Counts per class what a batch got right.

    Args:
      logits: float [M,B,C].
      labels: int [B].
      mask: float [B], 0 for padding.

    Returns:
      `count` [C]: examples; `top1`, `top5` [C]: right by the averaged logits; `experts` [M,C]: right by each expert
      alone; `loss` []: summed cross-entropy of the averaged logits, in nats; `calibration` [3,bins]: examples, summed
      confidence and right ones per bin of confidence (see `calibration`). All float32 sums over the batch.
    """
    classes = logits.shape[-1]
    mean = jnp.mean(logits, 0)
    real = mask.astype(jnp.float32)
    weight = jax.nn.one_hot(labels, classes) * real[:, None]
    rank = _target_rank(mean, labels)
    right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    log_p = jax.nn.log_softmax(mean)
    nll = -_at_label(log_p, labels)
    confidence = jnp.exp(jnp.max(log_p, -1)).astype(jnp.float32)
    place = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    binned = jax.nn.one_hot(place, CALIBRATION_BINS) * real[:, None]
    return {
        "count": jnp.sum(weight, 0),
        "top1": (rank < 1).astype(jnp.float32) @ weight,
        "top5": (rank < 5).astype(jnp.float32) @ weight,
        "experts": right @ weight,
        "loss": jnp.sum(jnp.where(real > 0, nll, 0)).astype(jnp.float32),
        "calibration": jnp.stack([jnp.ones_like(confidence), confidence, rank < 1]) @ binned,
    }


def per_example(logits: Array, labels: Array) -> dict[str, Array]:
    """What evaluation keeps of each example; every score is of the averaged logits.

    Args:
      logits: float [M,B,C].
      labels: int [B].

    Returns:
      `rank` int32 [B]: classes that score above the label (0: right); `predicted` int32 [B]; `expert_predicted` int32
      [M,B]: of each expert alone; `confidence` [B]: the largest probability; `hardest_negative` [B]: the largest
      probability of a wrong class (fig. 4); `loss` [B]: cross-entropy in nats. The last three float32, probabilities
      being the softmax over all classes.
    """
    mean = jnp.mean(logits, 0)
    log_p = jax.nn.log_softmax(mean)
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    return {
        "rank": _target_rank(mean, labels).astype(jnp.int32),
        "predicted": jnp.argmax(mean, -1).astype(jnp.int32),
        "expert_predicted": jnp.argmax(logits, -1).astype(jnp.int32),
        "confidence": jnp.exp(jnp.max(log_p, -1)).astype(jnp.float32),
        "hardest_negative": jnp.exp(jnp.max(jnp.where(is_label, -jnp.inf, log_p), -1)).astype(jnp.float32),
        "loss": -_at_label(log_p, labels).astype(jnp.float32),
    }


def summarise(counts: Mapping[str, Any], divisions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turns the summed counts of `count_correct` into percentages.

    Args:
      counts: sums over the whole evaluation set, NumPy arrays.
      divisions: class indices of `many`, `medium`, `few`.

    Returns:
      `top1`, `top5` (over examples), `many`, `medium`, `few` (mean over the division's classes of the class accuracy;
      None for an empty division), `experts` (top-1 of each), `loss`, `examples`, `per_class` and `experts_per_class`
      (percent; None where a class has no example); `ece`, percent, where `calibration` was counted.
    """
    count = np.asarray(counts["count"], np.float64)
    total = count.sum()
    accuracy = _class_accuracy(counts["top1"], count)
    experts = np.asarray(counts["experts"], np.float64)
    result: dict[str, Any] = {name: _percent(counts[name], total) for name in ("top1", "top5")}
    result |= _division_means(accuracy, divisions)
    result["experts"] = [_percent(row, total) for row in experts]
    result["loss"] = float(counts["loss"]) / max(total, 1)
    if "calibration" in counts:
        _, confidence, hits = np.asarray(counts["calibration"], np.float64)
        result["ece"] = _percent(np.abs(confidence - hits), total)
    result["examples"] = int(total)
    result["per_class"] = _listed(accuracy)
    result["experts_per_class"] = [_listed(_class_accuracy(row, count)) for row in experts]
    return result


def analyse(
    examples: Mapping[str, np.ndarray], labels: np.ndarray, num_classes: int, divisions: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Everything that evaluation reports of one set of classifiers.

    Args:
      examples: `per_example` of the whole evaluation set: [N], experts [M,N].
      labels: int [N].
      num_classes: C.
      divisions: class indices of `many`, `medium`, `few`.

    Returns:
      The keys of `summarise`, and in percent `macro_f1`, `f1_per_class` (None for absent classes), `ece`,
      `experts_divisions` (list over experts of {division: accuracy}); `examples_per_class`; `calibration`,
      `agreement`, `hardest_negative` as the functions of these names return them.
    """

    def right_per_class(right: np.ndarray) -> np.ndarray:
        return np.bincount(labels, weights=right, minlength=num_classes)

    count = right_per_class(np.ones(len(labels)))
    experts = np.stack([right_per_class(row == labels) for row in examples["expert_predicted"]])
    top1, top5 = (right_per_class(examples["rank"] < k) for k in (1, 5))
    loss = np.sum(examples["loss"], dtype=np.float64)
    result = summarise({"count": count, "top1": top1, "top5": top5, "experts": experts, "loss": loss}, divisions)
    result["experts_divisions"] = [_division_means(_class_accuracy(row, count), divisions) for row in experts]
    f1 = f1_scores(examples["predicted"], labels, num_classes)
    result["macro_f1"], result["f1_per_class"] = round(100 * float(np.nanmean(f1)), 4), _listed(100 * f1)
    result["examples_per_class"] = count.astype(int).tolist()
    result["calibration"] = calibration(examples["confidence"], examples["rank"] == 0)
    result["ece"] = result["calibration"]["ece"]
    result["agreement"] = agreement(examples["expert_predicted"], labels)
    result["hardest_negative"] = hardest_negative(examples["hardest_negative"])
    return result


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS) -> dict[str, Any]:
    """Expected calibration error over equal-width bins of confidence (Guo et al. 2017, eq. 3).

    Args:
      confidence: [N], the largest probability, in (0, 1]; bin i holds those in (i/bins, (i+1)/bins].
      right: bool [N].

    Returns:
      `ece` in percent; per bin `count`, and `confidence` and `accuracy` as means in 0..1 (None where empty).
    """
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, right)]
    gaps = np.abs(sums[0] - sums[1]).sum() / max(len(place), 1)
    means = [[round(float(s / n), 6) if n else None for s, n in zip(row, count, strict=True)] for row in sums]
    ece = round(100 * float(gaps), 4)
    return {"ece": ece, "count": count.tolist(), "confidence": means[0], "accuracy": means[1]}


def f1_scores(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """F1 of each class, 0..1, float64 [C]; NaN for a class neither labelled nor predicted; predictions, labels [N]."""
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    both = np.bincount(labels, minlength=num_classes) + np.bincount(predicted, minlength=num_classes)
    return np.divide(2.0 * hits, both, out=np.full(num_classes, np.nan), where=both > 0)


def agreement(expert_predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far the experts agree, in percent of the examples.

    Args:
      expert_predicted: int [M,N].
      labels: int [N].

    Returns:
      `pairwise` [M][M]: the same prediction; `disagreement`: mean over pairs of another prediction (None for M = 1);
      `unanimous`: all predict the same; `oracle`: at least one is right; `all_right`; `none_right`.
    """
    m = len(expert_predicted)
    pairwise = 100 * np.array([[np.mean(a == b) for b in expert_predicted] for a in expert_predicted])
    right = expert_predicted == labels
    shares = {
        "unanimous": (expert_predicted == expert_predicted[0]).all(0),
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


def _target_rank(mean: Array, labels: Array) -> Array:
    """Classes [B] that rank before the label; ties count for the lower class index, as in argmax. mean: [B,C]."""
    target = _at_label(mean, labels)[:, None]
    earlier = jnp.arange(mean.shape[-1]) < labels[:, None]
    return jnp.sum((mean > target) | ((mean == target) & earlier), 1)


def _at_label(values: Array, labels: Array) -> Array:
    """values [B,C] at each label: [B]."""
    return jnp.take_along_axis(values, labels[:, None], 1)[:, 0]


def _class_accuracy(right: Any, count: np.ndarray) -> np.ndarray:
    """Percent right of each class [C], NaN for classes without examples."""
    return 100 * np.divide(np.asarray(right, np.float64), count, out=np.full(count.shape, np.nan), where=count > 0)


def _division_means(accuracy: np.ndarray, divisions: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Mean of the class accuracies of each division; None where no class has examples."""
    means = {}
    for name, classes in divisions.items():
        present = accuracy[classes][~np.isnan(accuracy[classes])]
        means[name] = round(float(present.mean()), 4) if len(present) else None
    return means


def _percent(correct: Any, total: float) -> float:
    return round(100 * float(np.asarray(correct, np.float64).sum()) / max(total, 1), 4)


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 4) for v in values]
