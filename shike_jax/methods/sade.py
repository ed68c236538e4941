"""Experts skilled at different test distributions (SADE, Zhang et al. 2022, "Self-Supervised Aggregation of Diverse
Experts for Test-Agnostic Long-Tailed Recognition").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shike_jax.errors import UserError
from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import cross_entropy

Array = jax.Array
EXPERTS = 3


def skill_diverse(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, tau: float = 2.0) -> Array:
    """Softmax, balanced softmax and inverse softmax, one for each expert (sec. 3.2, eqs. 1 to 3).

    The first expert learns the training distribution, the second a uniform one (z + log pi), the third an inverse one
    (z + log pi - tau log pi', where pi' gives the rarest class the share of the most frequent one and so on).

    Args:
      logits: float [3,B,C].
      labels: int [B].
      class_counts: [C] training images of each class, all positive.
      tau: how far the third expert is pushed towards the rare classes.

    Returns:
      float [B].

    Raises:
      UserError: another number of experts.
    """
    values, counts = jnp.asarray(logits), jnp.asarray(class_counts, jnp.float32)
    if values.ndim != 3 or len(values) != EXPERTS:
        found = len(values) if values.ndim == 3 else 1
        raise UserError(f"loss 'sade': {found} experts; expected {EXPERTS}, such as config.model.depths=(1, 2, 1)")
    log_prior = jnp.log(counts / jnp.sum(counts))
    rank = jnp.argsort(jnp.argsort(log_prior))
    log_inverse = jnp.sort(log_prior)[::-1][rank]
    shifts = jnp.stack([jnp.zeros_like(log_prior), log_prior, log_prior - tau * log_inverse])
    return cross_entropy(values + shifts[:, None].astype(values.dtype), labels)


@LOSSES.register("sade", parameters={"sade_tau": 2.0}, balances=True)
def _sade(inputs: LossInputs, sade_tau: float) -> Array:
    """Three experts for three distributions (SADE, Zhang et al. 2022, eqs. 1 to 3)."""
    return skill_diverse(inputs.logits, inputs.labels, inputs.class_counts, sade_tau)
