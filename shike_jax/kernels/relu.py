"""ReLU, written so that XLA's CPU backend computes it once.

XLA copies an element-wise operation that reads a single array into everything that uses its result, and with it the
addition before it. In a residual network the output of a block is such an operation and the next block adds to it, so
the last block of a stage would read the convolutions of all blocks before it, forward and backward. A choice by a
condition reads two arrays; XLA computes it once, and keeps the result for all who use it. The gradient asks the result,
not the argument, which is then not needed any more. Values and gradients are those of `flax.linen.relu`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.custom_jvp
def relu(x: Array) -> Array:
    """The larger of x and 0, of any shape; NaN stays NaN. The derivative at 0 is 0."""
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@relu.defjvp
def _tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, (tangent,) = relu(*primals), tangents
    return y, jnp.where(y > 0, tangent, jnp.zeros_like(tangent))
