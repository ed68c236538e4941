"""Scores of any function of images, as a run's `results.json` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from shike_jax.data.datasets import DatasetPart
from shike_jax.errors import UserError
from shike_jax.evaluation import metrics


def evaluate(predict: Callable[[np.ndarray], ArrayLike], part: DatasetPart, *, batch_size: int = 128) -> dict[str, Any]:
    """Scores a function on one part of a data set.

    Args:
      predict: normalised images float32 [B,S,S,3] to logits [B,C] or [M,B,C]. Every call has the same B, so a compiled
        function compiles once.
      part: such as `load_data(...).test`.
      batch_size: B.

    Returns:
      `top1`, `many`, `medium`, `few` and the other scores of `results.json`, in percent.

    Raises:
      UserError: no part of a data set, or no logits, or of another shape.

    >>> data = load_data("digits_lt")
    >>> scores = evaluate(lambda images: np.tile(np.eye(10)[3], (len(images), 1)), data.test)  # always class 3
    >>> scores["top1"], scores["per_class"][3]
    (10.0, 100.0)
    """
    if not isinstance(part, DatasetPart):
        raise UserError(f"evaluate: {part!r}, expected a part of a data set, such as load_data('digits_lt').test")
    size, batches = min(batch_size, len(part)), []
    per_example = jax.jit(metrics.per_example)
    for images, labels in part.batches(size):
        padding = size - len(images)
        images = np.pad(images, [(0, padding), *[(0, 0)] * (images.ndim - 1)])
        predicted, wanted = predict(images), (size, len(part.class_names))
        expected = f"expected {wanted} or (experts, {wanted[0]}, {wanted[1]})"
        try:
            logits = jnp.asarray(predicted)
        except (TypeError, ValueError) as error:
            raise UserError(f"evaluate: logits of type {type(predicted).__name__}, {expected}") from error
        if logits.shape[-2:] != wanted or logits.ndim not in (2, 3) or 0 in logits.shape:
            raise UserError(f"evaluate: logits of shape {logits.shape}, {expected}")
        found = per_example(logits if logits.ndim == 3 else logits[None], np.pad(labels, (0, padding)))
        batches.append({name: np.asarray(value)[..., : len(labels)] for name, value in found.items()} | {"": labels})
    examples = {name: np.concatenate([batch[name] for batch in batches], -1) for name in batches[0]}
    return metrics.analyse(examples, examples.pop(""), len(part.class_names), part.divisions)
