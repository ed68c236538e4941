"""The losses that long-tailed recognition compares with, besides SHIKE's own: each one pure function.

All are summed over the M experts of `inputs.logits` [M,B,C], so that M = 1 gives the published loss of one network.
Every result is per example, float [B], in nats.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shike_jax.methods.losses import LOSSES, LossInputs, at_label, cross_entropy
from shike_jax.methods.registry import Number

Array = jax.Array


@LOSSES.register("focal", parameters={"focal_gamma": Number(2.0, low=0)})
def focal(inputs: LossInputs, focal_gamma: float) -> Array:
    """Focal loss (Lin et al. 2017, eq. 4, without alpha): -(1 - p_y)^gamma log p_y."""
    log_p = at_label(jax.nn.log_softmax(inputs.logits), inputs.labels)
    # 1 - p_y; never 0, where a power below 1 has no finite gradient.
    miss = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return -jnp.sum(miss**focal_gamma * log_p, 0)


@LOSSES.register("class_balanced", parameters={"class_balanced_beta": Number(0.9999, low=0, below=1)}, balances=True)
def class_balanced(inputs: LossInputs, class_balanced_beta: float) -> Array:
    """Cross-entropy weighted by the inverse effective number of images (Cui et al. 2019, eqs. 2 and 12)."""
    weights = effective_number_weights(inputs.class_counts, class_balanced_beta)
    return weights[inputs.labels] * cross_entropy(inputs.logits, inputs.labels)


@LOSSES.register(
    "ldam",
    parameters={
        "ldam_margin": 0.5,
        "ldam_scale": 30.0,
        "ldam_beta": Number(0.9999, low=0, below=1),
        "ldam_drw": 1.0,
    },
    balances=True,
)
def ldam(inputs: LossInputs, ldam_margin: float, ldam_scale: float, ldam_beta: float, ldam_drw: float) -> Array:
    """Label-distribution-aware margins with deferred re-weighting (Cao et al. 2019, eq. 13 and algorithm 1).

    The label's cosine loses the margin Delta_c = C' / n_c^(1/4), scaled so that the largest is `ldam_margin`. The
    logits must be cosines times `ldam_scale` (head `cosine`, `model.head_scale`). From the share `ldam_drw` of the
    stage on, examples are weighted by their class's inverse effective number; the optimiser and the schedule go on.
    """
    margins = inputs.class_counts.astype(jnp.float32) ** -0.25
    margins = margins * (ldam_margin / jnp.max(margins))
    is_label = jnp.arange(inputs.logits.shape[-1]) == inputs.labels[:, None]
    logits = inputs.logits - jnp.where(is_label, ldam_scale * margins, 0.0)
    weights = effective_number_weights(inputs.class_counts, ldam_beta)[inputs.labels]
    return jnp.where(inputs.progress >= ldam_drw, weights, 1.0) * cross_entropy(logits, inputs.labels)


@LOSSES.register("logit_adjusted", parameters={"logit_adjusted_tau": 1.0}, balances=True)
def logit_adjusted(inputs: LossInputs, logit_adjusted_tau: float) -> Array:
    """Logit-adjusted cross-entropy (Menon et al. 2021, eq. 10): of z + tau log pi, pi being the priors."""
    return cross_entropy(inputs.logits + logit_adjusted_tau * _log_prior(inputs), inputs.labels)


@LOSSES.register(
    "balanced_experts", parameters={"balanced_experts_low": 0.0, "balanced_experts_high": 2.0}, balances=True
)
def balanced_experts(inputs: LossInputs, balanced_experts_low: float, balanced_experts_high: float) -> Array:
    """Experts with different priors (BalPoE, Aimar et al. 2023, sec. 3): cross-entropy of z^m + tau_m log pi.

    tau_m runs in equal steps from `balanced_experts_low` (the first expert) to `balanced_experts_high` (the last one).
    With a mean of 1, as 0, 1, 2 have, the average of the experts is unbiased.
    """
    taus = jnp.linspace(balanced_experts_low, balanced_experts_high, len(inputs.logits))
    return cross_entropy(inputs.logits + taus[:, None, None] * _log_prior(inputs), inputs.labels)


def effective_number_weights(class_counts: Array, beta: float) -> Array:
    """Weights [C] proportional to (1 - beta) / (1 - beta^n_c), of mean 1 over the classes (Cui et al. 2019, sec. 4)."""
    # beta^n through expm1, because 1 - beta^n loses digits in float32 where n is small.
    effective = -jnp.expm1(class_counts.astype(jnp.float32) * jnp.log1p(-jnp.float32(1 - beta)))
    weights = 1 / effective
    return weights / jnp.mean(weights)


def _log_prior(inputs: LossInputs) -> Array:
    counts = inputs.class_counts.astype(inputs.logits.dtype)
    return jnp.log(counts / jnp.sum(counts))
