"""Layers whose behaviour must match PyTorch's: convolution, batch normalisation under a mask, cosine classifier."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shike_jax.cluster.axis import Axis, sum_over
from shike_jax.kernels.convolution import convolve
from shike_jax.models.initial import he_normal, ones, uniform, zeros

Array = jax.Array


class Conv(nn.Module):
    """k x k convolution without bias and with PyTorch's symmetric padding k // 2 ('SAME' pads strided ones unevenly).

    Input [B,H,W,C], output [B,ceil(H/stride),ceil(W/stride),features] in `dtype`; the kernel (HWIO) is a float32
    (float64 when computing in float64) parameter.
    """

    features: int
    size: int = 3
    stride: int = 1
    groups: int = 1
    dtype: Any = jnp.float32
    init: Any = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.init, shape, param_dtype(self.dtype))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.groups)


MOMENTS = "moments"  # sums that batch statistics are made of, for whoever estimates them over several batches


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's arithmetic, over the real examples of the global batch.

    Training mode normalises with the biased variance and moves the running variance towards the unbiased one
    (n / (n - 1)), momentum 0.1 in PyTorch's sense. Examples whose mask is 0 (padding of the last partial batch) take
    no part. With `axis_name` the sums run over all devices, so that N devices with B / N examples equal one with B.
    Statistics and the normalisation are computed in float32 (float64), the result is returned in the input's dtype.
    """

    axis_name: Axis = None
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        """Normalises x [B,H,W,C]; mask float [B] (1 = real example) or None when every example is real."""
        channels, kind = x.shape[-1], param_dtype(x.dtype)
        scale = self.param("scale", ones, (channels,), kind)
        bias = self.param("bias", zeros, (channels,), kind)
        running_mean = self.variable("batch_stats", "mean", np.zeros, (channels,), kind)
        running_var = self.variable("batch_stats", "var", np.ones, (channels,), kind)
        if train:
            mean, var, count = _moments(x.astype(kind), mask, self.axis_name)
            if not self.is_initializing():  # a collection that is collected only when it is asked for
                moments = {"total": mean * count, "squares": (var + mean * mean) * count, "count": count}
                for name, value in moments.items():
                    self.sow(MOMENTS, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                # A device whose examples are all padding (with per-device statistics) has seen nothing to move towards.
                rate = jnp.where(count > 0, self.momentum, 0).astype(kind)
                running_mean.value += rate * (mean - running_mean.value)
                running_var.value += rate * (unbiased - running_var.value)
        elif self.is_initializing():  # the statistics are 0 and 1: no program is needed for their part
            return (x.astype(kind) * np.array((1 + self.epsilon) ** -0.5, kind)).astype(x.dtype)
        else:
            mean, var = running_mean.value, running_var.value
        return _normalised(x, mean, var + self.epsilon, scale, bias)


# Both are traced once for all layers of one shape: half of a training step's tracing went into them.
@functools.partial(jax.jit, static_argnums=(2,))
def _moments(x: Array, mask: Array | None, axis_name: Axis) -> tuple[Array, Array, Array]:
    """Mean and biased variance [C] over batch, height and width, and the number of values they are of."""
    area = x.shape[1] * x.shape[2]
    # One pass over the data: both sums fuse into one reduction, and the mask multiplies one number per example and
    # channel (multiplying every value costs a tenth of a step on the CPU). Sums are not centred: float32 is enough
    # because activations are of order one (the golden gradients hold the bound).
    of_each, squares_of_each = jnp.sum(x, (1, 2)), jnp.sum(x * x, (1, 2))
    if mask is None:
        count = jnp.asarray(x.shape[0] * area, x.dtype)
    else:
        mask = mask.astype(x.dtype)
        count = jnp.sum(mask) * area
        of_each, squares_of_each = of_each * mask[:, None], squares_of_each * mask[:, None]
    total, squares = jnp.sum(of_each, 0), jnp.sum(squares_of_each, 0)
    total, squares, count = sum_over(axis_name, (total, squares, count))
    # All examples of a device may be padding: avoid 0 / 0.
    safe = jnp.maximum(count, 1)
    mean = total / safe
    return mean, jnp.maximum(squares / safe - mean * mean, 0), count


@jax.jit
def _normalised(x: Array, mean: Array, var: Array, scale: Array, bias: Array) -> Array:
    """Normalises x [B,H,W,C] by numbers [C]; computed in their dtype, returned in that of x."""
    factor = scale * lax.rsqrt(var)
    return (x.astype(factor.dtype) * factor + (bias - mean * factor)).astype(x.dtype)


class CosineClassifier(nn.Module):
    """Normalised linear layer: `scale` times the cosine between the feature and each class weight (authors' code).

    Input [B,F], output logits [B,classes] in float32 (float64). Kernel [F,classes], uniform(-1,1) and then normalised.
    """

    classes: int
    scale: float = 30.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kind = param_dtype(x.dtype)
        kernel = self.param("kernel", _unit_columns, (x.shape[-1], self.classes), kind)
        cosine = jnp.dot(_normalise(x.astype(kind), 1), _normalise(kernel, 0), precision=lax.Precision.HIGHEST)
        return self.scale * cosine


class LinearClassifier(nn.Module):
    """Affine layer (eq. 2), initialised as the public codes do: He normal weights, PyTorch's bias.

    Input [B,F], output logits [B,classes] in float32 (float64).
    """

    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kind, features = param_dtype(x.dtype), x.shape[-1]
        kernel = self.param("kernel", he_normal, (features, self.classes), kind)
        bias = self.param("bias", uniform(features**-0.5), (self.classes,), kind)
        return jnp.dot(x.astype(kind), kernel, precision=lax.Precision.HIGHEST) + bias


def param_dtype(dtype: Any) -> Any:
    """The dtype of parameters, statistics and losses for a compute dtype: float64 for float64, else float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def _normalise(x: Array, axis: int) -> Array:
    """L2-normalises along `axis`; the smallest norm is 1e-12, as in PyTorch's `normalize`, and 0 has gradient 0."""
    square = jnp.sum(x * x, axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))


def _unit_columns(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    return _normalise(jnp.asarray(uniform(1.0)(key, shape, dtype)), 0)
