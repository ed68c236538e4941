"""Counts that add up over batches, devices and processes, and the accuracies they become once at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def count_correct(logits: Array, labels: Array, mask: Array) -> dict[str, Array]:
    """Counts per class what a batch got right.

    Args:
      logits: float [M,B,C].
      labels: int [B].
      mask: float [B], 0 for padding.

    Returns:
      `count` [C]: examples; `top1`, `top5` [C]: right by the averaged logits; `experts` [M,C]: right by each expert
      alone; `loss` []: summed cross-entropy of the averaged logits, in nats. All float32 sums over the batch.
    """
    classes = logits.shape[-1]
    mean = jnp.mean(logits, 0)
    real = mask.astype(jnp.float32)
    weight = jax.nn.one_hot(labels, classes) * real[:, None]
    # The rank of the target's logit; ties count for the lower class index, as in argmax.
    target = jnp.take_along_axis(mean, labels[:, None], 1)
    earlier = jnp.arange(classes) < labels[:, None]
    rank = jnp.sum((mean > target) | ((mean == target) & earlier), 1)
    right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(mean), labels[:, None], 1)[:, 0]
    return {
        "count": jnp.sum(weight, 0),
        "top1": (rank < 1).astype(jnp.float32) @ weight,
        "top5": (rank < 5).astype(jnp.float32) @ weight,
        "experts": right @ weight,
        "loss": jnp.sum(jnp.where(real > 0, nll, 0)).astype(jnp.float32),
    }


def summarise(counts: Mapping[str, Any], divisions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turns the summed counts of `count_correct` into percentages.

    Args:
      counts: sums over the whole evaluation set, NumPy arrays.
      divisions: class indices of `many`, `medium`, `few`.

    Returns:
      `top1`, `top5` (over examples), `many`, `medium`, `few` (mean over the division's classes of the class accuracy;
      None for an empty division), `experts` (top-1 of each), `loss`, `examples`, `per_class` and `experts_per_class`
      (percent; None where a class has no example).
    """
    count = np.asarray(counts["count"], np.float64)
    total = count.sum()
    seen = count > 0

    def per_class(correct: Any) -> np.ndarray:
        return 100 * np.divide(np.asarray(correct, np.float64), count, out=np.full(count.shape, np.nan), where=seen)

    accuracy = per_class(counts["top1"])
    experts = np.asarray(counts["experts"], np.float64)
    result: dict[str, Any] = {name: _percent(counts[name], total) for name in ("top1", "top5")}
    for name, classes in divisions.items():
        present = [c for c in classes if seen[c]]
        result[name] = round(float(accuracy[present].mean()), 4) if present else None
    result["experts"] = [_percent(row, total) for row in experts]
    result["loss"] = float(counts["loss"]) / max(total, 1)
    result["examples"] = int(total)
    result["per_class"] = _listed(accuracy)
    result["experts_per_class"] = [_listed(per_class(row)) for row in experts]
    return result


def _percent(correct: Any, total: float) -> float:
    return round(100 * float(np.asarray(correct, np.float64).sum()) / max(total, 1), 4)


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 4) for v in values]
