"""Distribution-aware diversity of experts (RIDE, Wang et al. 2021, "Long-tailed Recognition by Routing Diverse
Distribution-Aware Experts").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import as_experts, checked_counts
from shike_jax.methods.registry import Number

Array = jax.Array


def expert_diversity(
    logits: ArrayLike, class_counts: ArrayLike, temperature: float = 1.0, reweighting: float = 0.05
) -> Array:
    """-mean(T)^2 KL(p^mean / T || p^m / T) summed over the experts (sec. 3.2, eq. 3, in the authors' form).

    Each class has a temperature, T_c = temperature * r_c / max(r) with r_c = reweighting * C * n_c / n + 1 -
    reweighting: smaller for rare classes, so that experts agree less there. The experts' mean is a constant.

    Args:
      logits: float [M,B,C] of M experts; 0 for one network.
      class_counts: [C] training images of each class.
      temperature: of the most frequent class.
      reweighting: how much temperatures follow the class counts, from 0 (not at all) to 1.

    Returns:
      float [B], at most 0: the more the experts differ the smaller. The authors' weight is 0.2, and 0.45 with LDAM.

    >>> print(-expert_diversity([[[0.0, 0.0]], [[0.0, 0.0]]], [3, 1]))  # experts that agree
    [0.]
    """
    values = as_experts(logits)
    counts = checked_counts(class_counts, values)
    shares = counts / jnp.sum(counts)
    factors = reweighting * len(counts) * shares + 1 - reweighting
    temperatures = temperature * factors / jnp.max(factors)
    mean = jax.lax.stop_gradient(jnp.mean(values, 0))
    log_mean = jax.nn.log_softmax(mean / temperatures)
    log_own = jax.nn.log_softmax(values / temperatures)
    divergence = jnp.sum(jnp.exp(log_mean) * (log_mean - log_own), (0, 2))
    return -(jnp.mean(temperatures) ** 2) * divergence


@LOSSES.register(
    "diversity",
    parameters={
        "diversity_temperature": Number(1.0, low=1e-3),
        "diversity_reweighting": Number(0.05, low=0, below=1),
    },
    uses_labels=False,
)
def _diversity(inputs: LossInputs, diversity_temperature: float, diversity_reweighting: float) -> Array:
    """Diversity of the experts (RIDE, Wang et al. 2021, eq. 3); at most 0, falls as the experts differ more."""
    return expert_diversity(inputs.logits, inputs.class_counts, diversity_temperature, diversity_reweighting)
