"""ReLU against flax's, and the programs that XLA's CPU backend makes of it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from shike_jax.kernels.relu import relu

VALUES = np.array([-np.inf, -2.5, -0.0, 0.0, 1e-40, 3.5, np.inf, np.nan])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_flax(dtype):
    x, grad = jnp.asarray(VALUES, dtype), jnp.arange(1, 9, dtype=dtype)
    values, pull = jax.vjp(relu, x)
    expected, expected_pull = jax.vjp(nn.relu, x)
    assert values.dtype == dtype
    np.testing.assert_array_equal(np.float32(values), np.float32(expected))
    np.testing.assert_array_equal(np.float32(pull(grad)[0]), np.float32(expected_pull(grad)[0]))


def test_second_derivatives_are_those_of_flax():
    def found(form):
        return jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(form(x) ** 3))(x) ** 2))(jnp.arange(-2.0, 3.0))

    np.testing.assert_array_equal(found(relu), found(nn.relu))


def chain(form, blocks=5):
    """The optimised program of the gradient of residual blocks, each a convolution to which its input is added."""

    def loss(kernels, x):
        for kernel in kernels:
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = form(2 * y + x)
        return jnp.sum(x * x)

    kernels = jnp.ones((blocks, 3, 3, 24, 24))
    return jax.jit(jax.grad(loss)).lower(list(kernels), jnp.ones((4, 8, 8, 24))).compile().as_text()


def most_images_read(program):
    """The most arrays [4,8,8,24] that one of the program's fused computations reads."""
    heads = re.findall(r"^%?fused_computation[^\n]*", program, re.MULTILINE)
    return max(head.partition("->")[0].count("f32[4,8,8,24]") for head in heads)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU backend")
def test_no_block_reads_all_blocks_before_it():
    assert most_images_read(chain(relu)) <= 3  # the gradient of a block: two that are added, and its mask
    assert most_images_read(chain(nn.relu)) >= 5
