"""Float32 arithmetic that every compiler rounds alike, so that a pixel is the same wherever it is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def product(a: Array | float, b: Array | float) -> Array:
    """a * b (at most 1e6 in size), rounded before anything is added to it.

    Compilers may contract a product and a sum into one fused multiply-add, whose single rounding differs in the last
    place: here that is another grey level, or another pixel. The clip never changes a value: it only keeps the
    compiler from fusing product and sum.
    """
    return jnp.clip(a * b, -1e6, 1e6)
