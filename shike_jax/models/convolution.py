"""The 2-D convolution, with a weight gradient that XLA's CPU backend runs well.

XLA computes the weight gradient as a convolution of transposed operands. On the CPU it fuses those transposes with the
element-wise work before them (batch normalisation, ReLU) into strided loops that take longer than the convolution
itself: nearly half of a training step. Handing the convolution finished, transposed arrays makes a step of ResNet-32
SHIKE 1.4 times as fast there (docs/speed.md); on other backends the gradient is left as it is.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    """Convolution with PyTorch's symmetric padding size // 2.

    Args:
      x: float [B,H,W,C].
      kernel: the same dtype, [size,size,C/groups,F], size odd.
      stride: in both directions.
      groups: channels come in this many groups that do not mix.

    Returns:
      [B,ceil(H/stride),ceil(W/stride),F].
    """
    return _plain(x, kernel, stride, groups) if groups > 1 else _convolve(x, kernel, stride)


def _plain(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=NHWC, feature_group_count=groups
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    return _plain(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def default(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_plain, stride=stride), x, kernel)[1](grad)

    def cpu(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        (from_x,) = jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](grad)
        return from_x, _weight_gradient(x, grad, kernel.shape[0], stride)

    return lax.platform_dependent(x, kernel, grad, cpu=cpu, default=default)


def _weight_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """Correlates x [B,H,W,C] with grad [B,h,w,F] over batch and positions: [size,size,C,F]."""
    images = _transposed(x, (3, 1, 2, 0))  # C takes the batch's place, B the channels'
    filters = _transposed(grad, (1, 2, 0, 3))
    low = size // 2
    high = [size - 1 + (g - 1) * stride + 1 - n - low for n, g in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
    out = lax.conv_general_dilated(
        images, filters, (1, 1), [(low, h) for h in high], rhs_dilation=(stride, stride), dimension_numbers=NHWC
    )
    return out.transpose(1, 2, 0, 3)


def _transposed(x: Array, axes: tuple[int, ...]) -> Array:
    """x transposed, in memory of its own before it is used: a condition that XLA cannot foresee ends a fusion.

    (`optimization_barrier` is removed before XLA:CPU fuses.)
    """
    return lax.cond(jnp.isnan(x.reshape(-1)[0]), lambda a: (a + a).transpose(axes), lambda a: a.transpose(axes), x)


_convolve.defvjp(_forward, _backward)
