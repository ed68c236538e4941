"""Label-aware smoothing (MiSLAS, Zhong et al. 2021, "Improving Calibration for Long-Tailed Recognition")."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import checked, checked_counts, cross_entropy
from shike_jax.methods.registry import Number

Array = jax.Array


def label_aware_smoothing(
    logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, head: float = 0.4, tail: float = 0.1
) -> Array:
    """(1 - e_y) CE + e_y (mean over the classes of -log p), e_c rising with the class's images (sec. 3.3, concave).

    e_c = tail + (head - tail) sin(pi (n_c - n_min) / (2 (n_max - n_min))): the networks are most overconfident where
    they have seen most. As in the authors' code, the smoothed part goes to all C classes, the label's included.

    Args:
      logits: float [B,C] or [M,B,C].
      labels: int [B].
      class_counts: [C] training images of each class.
      head, tail: e of the most frequent and of the rarest class; equal class counts get `tail`.

    Returns:
      float [B].

    >>> print(label_aware_smoothing([[0.0, 0.0]], [1], [3, 1]))  # both parts are log 2
    [0.6931472]
    """
    logits, labels = checked(logits, labels)
    counts = checked_counts(class_counts, logits)
    share = (counts - jnp.min(counts)) / jnp.maximum(jnp.max(counts) - jnp.min(counts), 1)
    smoothing = (tail + (head - tail) * jnp.sin(share * (jnp.pi / 2)))[labels]
    rest = -jnp.sum(jnp.mean(jax.nn.log_softmax(logits), -1), 0)
    return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * rest


@LOSSES.register(
    "label_aware",
    parameters={"label_aware_head": Number(0.4, low=0, below=1), "label_aware_tail": Number(0.1, low=0, below=1)},
)
def _label_aware(inputs: LossInputs, label_aware_head: float, label_aware_tail: float) -> Array:
    """Label-aware smoothing (Zhong et al. 2021, sec. 3.3)."""
    return label_aware_smoothing(inputs.logits, inputs.labels, inputs.class_counts, label_aware_head, label_aware_tail)
