"""Head-to-tail feature fusion (H2T, AAAI 2024): exchanging channels between two batches of feature maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def exchange_channels(key: Array, maps: list[Array], others: list[Array], rho: float) -> list[Array]:
    """Replaces a random share of the channels of `maps` by those of `others`.

    Args:
      key: PRNG key of the step; the same on all devices, so that the whole batch exchanges the same channels.
      maps: float [B,h,w,K] per expert: the class-balanced batch, whose labels stay.
      others: the same shapes: the instance-sampled batch.
      rho: share of the K channels, 0..1; exactly floor(rho K) are exchanged, drawn anew for each key and expert.

    Returns:
      float [B,h,w,K] per expert. The extractor is frozen: no gradient flows into either input.
    """
    return [_exchange(jax.random.fold_in(key, m), a, b, rho) for m, (a, b) in enumerate(zip(maps, others, strict=True))]


def _exchange(key: Array, own: Array, other: Array, rho: float) -> Array:
    channels = own.shape[-1]
    chosen = jax.random.permutation(key, channels) < int(rho * channels + 1e-9)
    return jax.lax.stop_gradient(jnp.where(chosen, other, own))
