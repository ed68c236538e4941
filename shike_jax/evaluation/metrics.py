"""From logits to scores: a few numbers per example on the device, everything else from them on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.methods.losses import at_label
from shike_jax.methods.scores import (
    SCORES,
    Predictions,
    agreement,
    calibration,
    describe_scores,
    f1_scores,
    hardest_negative,
    score_of,
)

Array = jax.Array
NO_RANK = np.iinfo(np.int32).max  # of a label among logits that are not finite: beyond the k of any top-k


def per_example(logits: Array, labels: Array) -> dict[str, Array]:
    """What evaluation keeps of each example, far smaller than the logits [M,B,C]: the array fields of `Predictions`.

    They are int32 and float32, and probabilities are the softmax over all classes. Logits that are not finite predict
    no class: rank `NO_RANK`, class -1.
    """
    mean = jnp.mean(logits, 0)
    sound = jnp.isfinite(mean).all(-1)
    log_p = jax.nn.log_softmax(mean)
    classes = jnp.arange(logits.shape[-1])
    is_label, target = classes == labels[:, None], at_label(mean[None], labels)[0, :, None]
    # Of equal logits the lower class index comes first, as in argmax.
    rank = jnp.sum((mean > target) | ((mean == target) & (classes < labels[:, None])), 1)
    return {
        "rank": jnp.where(sound, rank, NO_RANK).astype(jnp.int32),
        "predicted": jnp.where(sound, jnp.argmax(mean, -1), -1).astype(jnp.int32),
        "expert_predicted": jnp.where(jnp.isfinite(logits).all(-1), jnp.argmax(logits, -1), -1).astype(jnp.int32),
        "confidence": jnp.exp(jnp.max(log_p, -1)).astype(jnp.float32),
        "hardest_negative": jnp.exp(jnp.max(jnp.where(is_label, -jnp.inf, log_p), -1)).astype(jnp.float32),
        "loss": -at_label(log_p[None], labels)[0].astype(jnp.float32),
    }


def analyse(
    examples: Mapping[str, np.ndarray], labels: np.ndarray, num_classes: int, divisions: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Everything that is reported of one set of classifiers, from `per_example` of the whole evaluation set.

    Returns:
      Every registered score by name (`methods.scores.SCORES`); `examples`, and `not_finite`: those whose logits are
      not; `experts`: top-1 of each; `per_class`, `experts_per_class`, `f1_per_class` (percent, None where a class has
      no example) and `experts_divisions` (list over experts of {division: accuracy}); `examples_per_class`;
      `calibration`, `agreement`, `hardest_negative` as the functions of these names return them.
    """
    names = ("rank", "predicted", "expert_predicted", "confidence", "hardest_negative", "loss")
    known = {name: examples[name] for name in names}  # the logits are not among them
    predictions = Predictions(labels=labels, num_classes=num_classes, divisions=divisions, **known)
    experts = range(len(predictions.expert_predicted))
    right = predictions.expert_predicted == labels
    return {
        **{entry.name: _rounded(score_of(entry, predictions)) for entry in SCORES.entries()},
        "examples": len(labels),
        "not_finite": int(np.sum(predictions.predicted < 0)),
        "experts": [_rounded(100 * float(np.mean(right[m]))) for m in experts],
        "per_class": _listed(predictions.class_accuracy()),
        "experts_per_class": [_listed(predictions.class_accuracy(m)) for m in experts],
        "experts_divisions": [
            {name: _rounded(value) for name, value in predictions.division_accuracy(m).items()} for m in experts
        ],
        "f1_per_class": _listed(100 * f1_scores(predictions.predicted, labels, num_classes)),
        "examples_per_class": predictions.examples_per_class.tolist(),
        "calibration": calibration(predictions.confidence, predictions.rank == 0),
        "agreement": agreement(predictions.expert_predicted, labels),
        "hardest_negative": hardest_negative(predictions.hardest_negative),
    }


def scores_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the scores of a run's results mean (`methods.scores.describe_scores`); older results are read as today's."""
    return results.get("scores") or describe_scores()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 4) for v in values]
