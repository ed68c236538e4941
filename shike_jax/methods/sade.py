"""Aggregation of experts for the images to classify (SADE, Zhang et al. 2022, "Self-Supervised Aggregation of Diverse
Experts for Test-Agnostic Long-Tailed Recognition"); `losses.skill_diverse` trains such experts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from shike_jax.methods.adjustment import ADJUSTMENTS, AdjustmentInputs

Array = jax.Array
# The authors' settings for CIFAR100-LT.
EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 5, 128, 0.025, 0.9, 5e-4
LEAST = 0.05  # share of an expert at which the search for shares ends


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
    the two views' probabilities, in batches in the images' order. Logits [M,N,C] of both give float64 [M] of sum 1.
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
