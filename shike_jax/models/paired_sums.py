"""The pairs of sums in batch normalisation, each taken in one reduction of two arrays.

Batch normalisation needs two sums forward (of x and x^2) and two backward (of the gradient and of its product with x).
Written separately, each pair may cost an accelerator two passes over the same values. JAX differentiates a reduction of
several arrays slowly, so both directions are written out here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@jax.custom_vjp
def sum_and_squares(x: Array) -> tuple[Array, Array]:
    """Sums of x [B,H,W,C] and of its squares over height and width: two arrays [B,C] of x's dtype."""
    return _two_sums(x, x * x, (1, 2))


def _sum_and_squares_forward(x: Array) -> tuple[tuple[Array, Array], Array]:
    return sum_and_squares(x), x


def _sum_and_squares_backward(x: Array, grads: tuple[Array, Array]) -> tuple[Array]:
    of_sum, of_squares = (grad[:, None, None, :] for grad in grads)
    return (of_sum + 2 * x * of_squares,)


sum_and_squares.defvjp(_sum_and_squares_forward, _sum_and_squares_backward)


@jax.custom_vjp
def scale_and_shift(x: Array, factor: Array, shift: Array) -> Array:
    """x [B,H,W,C] times factor [C] plus shift [C], all of one dtype."""
    return x * factor + shift


def _scale_and_shift_forward(x: Array, factor: Array, shift: Array) -> tuple[Array, tuple[Array, Array]]:
    return scale_and_shift(x, factor, shift), (x, factor)


def _scale_and_shift_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array, Array]:
    x, factor = saved
    of_factor, of_shift = _two_sums(grad * x, grad, (0, 1, 2))
    return grad * factor, of_factor, of_shift


scale_and_shift.defvjp(_scale_and_shift_forward, _scale_and_shift_backward)


def _two_sums(a: Array, b: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Sums of two arrays of one shape and dtype over the same axes."""
    zero = jnp.zeros((), a.dtype)
    return lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)
