"""The 3x3 max-pool of the ImageNet stem, with a gradient that XLA's CPU backend runs well.

XLA's own gradient (`select_and_scatter`) visits one window after the other on the CPU: a fifth of a training step of a
slim network. Written as maxima of shifted slices it takes a third of the time and is the same, ties included
(docs/speed.md); on other backends the gradient is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """3x3 maxima at stride 2 with padding 1, as PyTorch's: [B,H,W,C] to [B,ceil(H/2),ceil(W/2),C]."""
    return _by_windows(x)


def _by_windows(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _forward(x: Array) -> tuple[Array, Array]:
    return _by_windows(x), x


def _backward(x: Array, grad: Array) -> tuple[Array]:
    def gradient(pool: Callable[[Array], Array], x: Array, grad: Array) -> tuple[Array]:
        return jax.vjp(pool, x)[1](grad)

    cpu, default = functools.partial(gradient, _by_slices), functools.partial(gradient, _by_windows)
    return lax.platform_dependent(x, grad, cpu=cpu, default=default)


def _by_slices(x: Array) -> Array:
    """The same maxima, columns before rows: of equal values the first in reading order gets the gradient."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    height, width = (-(-side // 2) for side in x.shape[1:3])
    columns = functools.reduce(_first_largest, (padded[:, :, j : j + 2 * width - 1 : 2] for j in range(3)))
    return functools.reduce(_first_largest, (columns[:, i : i + 2 * height - 1 : 2] for i in range(3)))


def _first_largest(a: Array, b: Array) -> Array:
    return jnp.where(a >= b, a, b)


max_pool.defvjp(_forward, _backward)
