"""3x3 convolutions of stride 1 with fewer multiplications: F(2x2, 3x3) of Winograd.

The input is cut into windows of 4x4 positions, which overlap by two; each gives 2x2 outputs. Window and kernel are
transformed to 4x4 values each, multiplied value by value, and the products are transformed to the outputs. That takes 4
multiplications for each output, input channel and feature instead of 9. Over all windows and channels the products are
16 matrix products. The transforms add, subtract and halve, so the result is about as exact as that of the plain form.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1; the transforms below
are named by its matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Grid = Sequence[Sequence[Array]]  # rows of arrays of one shape
# Of the input that is transformed at once, at most (measured). Its transform is four times as large and has to stay in
# the caches until the products have read it.
FORWARD_BYTES = 300_000
WEIGHTS_BYTES = 1_200_000


def convolve(x: Array, kernel: Array) -> Array:
    """The convolution with zeros around the input.

    Args:
      x: float [B,H,W,C], H and W even.
      kernel: the same dtype, [3,3,C,F].

    Returns:
      [B,H,W,F].
    """
    factors = _both_ways(_g, kernel)

    def convolve_part(x: Array) -> Array:
        windows = _both_ways(_bt, _windows(x))
        products = [[w @ f for w, f in zip(*row, strict=True)] for row in zip(windows, factors, strict=True)]
        outputs = jnp.stack([jnp.stack(row, 3) for row in _both_ways(_at, products)], 2)  # [b,H/2,2,W/2,2,F]
        return outputs.reshape(*x.shape[:3], kernel.shape[3])

    parts = _parts(x, FORWARD_BYTES)
    return lax.map(convolve_part, parts).reshape(*x.shape[:3], kernel.shape[3])


def input_gradient(kernel: Array, grad: Array) -> Array:
    """Of `convolve` with kernel [3,3,C,F], from grad [B,H,W,F]: [B,H,W,C]."""
    return convolve(grad, kernel[::-1, ::-1].swapaxes(2, 3))


def weight_gradient(x: Array, grad: Array) -> Array:
    """Of `convolve` for x [B,H,W,C], from grad [B,H,W,F]: [3,3,C,F]."""

    def add_part(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        windows = _both_ways(_bt, _windows(part[0]))
        outputs = _both_ways(_a, [[part[1][:, i::2, j::2] for j in range(2)] for i in range(2)])
        products = [
            jnp.stack([_flat(w).T @ _flat(o) for w, o in zip(*row, strict=True)])
            for row in zip(windows, outputs, strict=True)
        ]
        return total + jnp.stack(products), None

    parts = _parts(x, WEIGHTS_BYTES)
    total = jnp.zeros((4, 4, x.shape[3], grad.shape[3]), x.dtype)
    total, _ = lax.scan(add_part, total, (parts, grad.reshape(*parts.shape[:4], -1)))
    return jnp.stack([jnp.stack(row) for row in _both_ways(_gt, total)])


def _flat(x: Array) -> Array:
    """[B,H,W,C] as [BHW,C], which XLA:CPU multiplies faster than a sum over three axes."""
    return x.reshape(-1, x.shape[3])


def _parts(x: Array, most: int) -> Array:
    """x [B,H,W,C] as [parts,B/parts,H,W,C].

    Parts are halved while they have more than so many bytes, as long as each keeps as many windows as the kernel has
    input channels: with fewer, the products spend their time reading the kernel.
    """
    parts, (examples, height, width, channels) = 1, x.shape
    while x.nbytes // parts > most and examples % 2 == 0 and examples // 2 * height * width // 4 >= channels:
        parts, examples = parts * 2, examples // 2
    return x.reshape(parts, examples, *x.shape[1:])


def _windows(x: Array) -> Grid:
    """The 4x4 positions of all windows of x [B,H,W,C], each [B,H/2,W/2,C]."""
    _, height, width, _ = x.shape
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))  # not once more for each position
    return [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]


def _both_ways(transform: Callable[..., Sequence[Array]], grid: Grid | Array) -> Grid:
    """A transform along the columns and along the rows of a grid."""
    rows = [transform(*row) for row in grid]
    columns = [transform(*column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


def _bt(a: Array, b: Array, c: Array, d: Array) -> Sequence[Array]:
    return a - c, b + c, c - b, b - d


def _g(a: Array, b: Array, c: Array) -> Sequence[Array]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _gt(a: Array, b: Array, c: Array, d: Array) -> Sequence[Array]:
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _at(a: Array, b: Array, c: Array, d: Array) -> Sequence[Array]:
    return a + b + c, b - c - d


def _a(a: Array, b: Array) -> Sequence[Array]:
    return a, a + b, a - b, -b
