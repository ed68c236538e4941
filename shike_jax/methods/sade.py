"""Experts skilled at different test distributions (SADE, Zhang et al. 2022, "Self-Supervised Aggregation of Diverse
Experts for Test-Agnostic Long-Tailed Recognition").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from shike_jax.errors import UserError
from shike_jax.methods.adjustment import ADJUSTMENTS, AdjustmentInputs
from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import checked, checked_counts, cross_entropy

Array = jax.Array
EXPERTS = 3
# The authors' settings for CIFAR100-LT.
EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 5, 128, 0.025, 0.9, 5e-4
LEAST = 0.05  # share of an expert at which the search for shares ends


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

    >>> print(skill_diverse([[[0.0, 0.0]]] * 3, [1], [3, 1]))  # log 2, log 4 and log 28
    [5.411646]
    """
    values, labels = checked(logits, labels)
    counts = checked_counts(class_counts, values)
    if len(values) != EXPERTS:
        raise UserError(
            f"loss 'sade': {len(values)} experts; expected {EXPERTS}, such as config.model.depths=(1, 2, 1)"
        )
    log_prior = jnp.log(counts / jnp.sum(counts))
    rank = jnp.argsort(jnp.argsort(log_prior))
    log_inverse = jnp.sort(log_prior)[::-1][rank]
    shifts = jnp.stack([jnp.zeros_like(log_prior), log_prior, log_prior - tau * log_inverse])
    return cross_entropy(values + shifts[:, None].astype(values.dtype), labels)


@LOSSES.register("sade", parameters={"sade_tau": 2.0}, balances=True)
def _sade(inputs: LossInputs, sade_tau: float) -> Array:
    """Three experts for three distributions (SADE, Zhang et al. 2022, eqs. 1 to 3)."""
    return skill_diverse(inputs.logits, inputs.labels, inputs.class_counts, sade_tau)


@ADJUSTMENTS.register("sade", views=3)
def _aggregated(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """Experts in the shares that suit the images (SADE, Zhang et al. 2022, sec. 3.3); tau 0: in equal shares."""
    experts = len(inputs.logits)
    shares = (1 - tau) / experts + tau * aggregation_shares(*inputs.views)
    return inputs.logits * (experts * shares)[:, None, None].astype(inputs.logits.dtype)


def aggregation_shares(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """The shares of the experts with which two augmented views of the same images are classified most alike (eq. 5).

    No labels are used: the expert that knows the images' classes best is the one that is most stable on them. The
    shares are a softmax of one number for each expert, found by stochastic gradient ascent on the mean cosine between
    the two views' probabilities, in batches in the images' order.

    Args:
      first, second: logits [M,N,C] of the two views.

    Returns:
      float64 [M], which sum to 1.
    """
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM, nesterov=True))
    one, two = jnp.asarray(first), jnp.asarray(second)
    scores = jnp.full(len(one), 1 / len(one), one.dtype)
    state = optimizer.init(scores)

    @jax.jit
    def step(scores: Array, state: optax.OptState, one: Array, two: Array) -> tuple[Array, optax.OptState]:
        updates, state = optimizer.update(jax.grad(_difference)(scores, one, two), state, scores)
        return optax.apply_updates(scores, updates), state

    for _ in range(EPOCHS):
        for start in range(0, one.shape[1], BATCH):
            chosen = slice(start, start + BATCH)
            scores, state = step(scores, state, one[:, chosen], two[:, chosen])
        shares = np.asarray(jax.nn.softmax(scores), np.float64)
        if shares.min() < LEAST:
            break
    return shares / shares.sum()


def _difference(scores: Array, one: Array, two: Array) -> Array:
    """Minus the mean cosine of the probabilities of two views."""
    shares = jax.nn.softmax(scores)[:, None, None]
    p, q = (jax.nn.softmax(jnp.sum(shares * logits, 0)) for logits in (one, two))
    lengths = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(q, axis=-1)
    return -jnp.mean(jnp.sum(p * q, -1) / jnp.maximum(lengths, 1e-6))
