"""The loss of distribution alignment (DisAlign, Zhang et al. 2021, "Distribution Alignment: A Unified Framework for
Long-tail Visual Recognition"); its layer is `model.second_head=aligned` (`models/second_heads.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import checked, checked_counts, cross_entropy
from shike_jax.methods.registry import Number

Array = jax.Array


def generalized_reweight(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, rho: float = 1.2) -> Array:
    """Cross-entropy weighted by n_y^-rho, the weights having mean 1 over the classes (sec. 3.3, eqs. 9 and 10).

    Args:
      logits: float [B,C] or [M,B,C].
      labels: int [B].
      class_counts: [C] training images of each class, all positive.
      rho: 0 weights all images alike, 1 all classes; the authors use 1.2 on ImageNet-LT.

    Returns:
      float [B].

    >>> print(generalized_reweight([[0.0, 0.0]], [1], [3, 1], rho=1.0))  # 3/2 log 2
    [1.0397208]
    """
    logits, labels = checked(logits, labels)
    counts = checked_counts(class_counts, logits)
    weights = (counts / jnp.max(counts)) ** -rho
    return (weights / jnp.mean(weights))[labels] * cross_entropy(logits, labels)


@LOSSES.register("generalized_reweight", parameters={"generalized_reweight_rho": Number(1.2, low=0)}, balances=True)
def _generalized_reweight(inputs: LossInputs, generalized_reweight_rho: float) -> Array:
    """Generalized re-weighting (DisAlign, Zhang et al. 2021, eqs. 9 and 10)."""
    return generalized_reweight(inputs.logits, inputs.labels, inputs.class_counts, generalized_reweight_rho)
