"""Gaussian clouded logit adjustment (GCL, Li et al. 2022, "Long-tailed Visual Recognition via Gaussian Clouded Logit
Adjustment"): logits of rare classes are lowered by more noise, which widens the space that their features take.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import checked, checked_counts, cross_entropy
from shike_jax.methods.registry import Number

Array = jax.Array
DEVIATION = 1 / 3  # of the noise, which is cut at -1 and 1


def gaussian_clouded(
    logits: ArrayLike,
    labels: ArrayLike,
    class_counts: ArrayLike,
    noise: ArrayLike,
    strength: float = 0.5,
    margin: float = 0.0,
    scale: float = 30.0,
) -> Array:
    """Cross-entropy of clouded cosines (GCL, eqs. 7 to 9, in the authors' form: the size of the noise, not its sign).

    Class c loses scale * strength * |noise| * (log n_max - log n_c) / (log n_max - log n_min), and the label's class
    scale * margin besides. With equal class counts there is no cloud.

    Args:
      logits: float [B,C] or [M,B,C]: cosines times `scale`.
      labels: int [B].
      class_counts: [C] training images of each class, all positive.
      noise: float [B,C], the same for all experts.
      strength: of the cloud; the authors use 0.5 on CIFAR100-LT.

    Returns:
      float [B].

    >>> print(gaussian_clouded([[0.0, 0.0]], [1], [9, 1], [[1.0, 1.0]], strength=0.1, scale=10))  # log(1 + e)
    [1.3132616]
    """
    logits, labels = checked(logits, labels)
    rarity = -jnp.log(checked_counts(class_counts, logits))
    rarity = rarity - jnp.min(rarity)
    rarity = rarity / jnp.maximum(jnp.max(rarity), 1e-12)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    lowered = strength * jnp.abs(jnp.asarray(noise)) * rarity + margin * is_label
    return cross_entropy(logits - scale * lowered.astype(logits.dtype), labels)


@LOSSES.register(
    "gcl",
    parameters={"gcl_strength": Number(0.5, low=0), "gcl_margin": Number(0.0, low=0), "gcl_scale": 30.0},
    balances=True,
    cosine="gcl_scale",
)
def _gcl(inputs: LossInputs, gcl_strength: float, gcl_margin: float, gcl_scale: float) -> Array:
    """Gaussian clouded logit adjustment (Li et al. 2022, eqs. 7 to 9); cosines times `gcl_scale` as logits."""
    classes = inputs.logits.shape[-1]
    drawn = jax.vmap(lambda key: jax.random.normal(key, (classes,), inputs.logits.dtype))(inputs.key)
    noise = jnp.clip(DEVIATION * drawn, -1, 1)
    return gaussian_clouded(
        inputs.logits, inputs.labels, inputs.class_counts, noise, gcl_strength, gcl_margin, gcl_scale
    )
