"""Mixing each image with a partner from the same batch: mixup and CutMix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shike_jax.errors import UserError

Array = jax.Array


def partners(key: Array, mask: Array) -> Array:
    """Pairs every real example of a batch with a real one, by a random permutation.

    Args:
      key: PRNG key; the same on all devices.
      mask: float [B] of the global batch, 1 for real examples and 0 for padding.

    Returns:
      int [B]: the position of each example's partner. Real examples are permuted among themselves; padding gets
      padding.
    """
    real = mask > 0
    shuffled = jnp.argsort(jnp.where(real, jax.random.uniform(key, real.shape), 2.0))  # real ones first
    rank = jnp.where(real, jnp.cumsum(real), jnp.sum(real) + jnp.cumsum(~real)) - 1
    return shuffled[rank]


def mixup(key: Array, images: Array, partner_images: Array, alpha: float) -> tuple[Array, Array]:
    """Mixes each image with its partner by one lam ~ Beta(alpha, alpha) for the whole batch (Zhang et al. 2018).

    Args:
      key: PRNG key; the same on all devices, so that all share lam.
      images, partner_images: float [B,H,W,C]; the partners are usually the same batch in another order.
      alpha: not negative; 0 switches mixing off (lam = 1).

    Returns:
      (lam * images + (1 - lam) * partner_images, lam float32 []; float64 for float64 images unless alpha is 1). The
      loss mixes the two labels with the same lam.

    Raises:
      UserError: a negative alpha.
    """
    lam = _draw_lam(key, alpha, images.dtype)
    weight = lam.astype(images.dtype)
    return weight * images + (1 - weight) * partner_images, lam


def cutmix(key: Array, images: Array, partner_images: Array, alpha: float) -> tuple[Array, Array]:
    """Pastes one box of the partners into the images, the same box for the whole batch (Yun et al. 2019).

    The box has the share 1 - lam of the area before it is cut at the border, lam ~ Beta(alpha, alpha), and a uniformly
    drawn centre.

    Args: as for `mixup`.

    Returns:
      (images with the box [B,H,W,C], lam float32 []: the share of the area that stays).

    Raises:
      UserError: a negative alpha.
    """
    height, width = images.shape[1:3]
    lam_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - _draw_lam(lam_key, alpha, jnp.float32))

    def inside(key: Array, size: int) -> Array:
        half = (side * size).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, size)
        place = jnp.arange(size)
        return (place >= centre - half) & (place < centre + half)

    box = inside(row_key, height)[:, None] & inside(column_key, width)
    lam = 1 - jnp.mean(box, dtype=jnp.float32)
    return jnp.where(box[..., None], partner_images, images), lam


def _draw_lam(key: Array, alpha: float, dtype: jnp.dtype) -> Array:
    if alpha < 0:
        raise UserError(f"mixing alpha {alpha}: expected 0 (off) or more")
    if alpha == 0:
        return jnp.float32(1)
    if alpha == 1:  # uniform: spares the rejection loop of the general case
        return jax.random.uniform(key, dtype=jnp.float32)
    # As precise as the images: rounding inside the rejection loop depends on what the compiler puts around it.
    return jax.random.beta(key, alpha, alpha, dtype=jnp.promote_types(dtype, jnp.float32))
