"""The ImageNet stem: its convolution and max-pool are the plain ones, gradients, ties and odd sides included."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import lax

from shike_jax.models.convolution import NHWC, convolve
from shike_jax.models.pooling import max_pool


def plain(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (5, 5), (1, 2)])
@pytest.mark.parametrize("levels", [0, 3])
def test_values_and_gradient_are_those_of_the_window_reduction(sides, levels):
    x = np.random.default_rng(0).standard_normal((3, *sides, 4)).astype(np.float32)
    if levels:  # a few values only: most windows have ties
        x = np.round(x * levels / 3)
    values, pull = jax.vjp(max_pool, x)
    expected, expected_pull = jax.vjp(plain, x)
    np.testing.assert_array_equal(values, expected)
    grad = np.random.default_rng(1).standard_normal(values.shape).astype(np.float32)
    np.testing.assert_allclose(pull(grad)[0], expected_pull(grad)[0], rtol=0, atol=1e-6)


def test_the_first_of_equal_values_gets_the_gradient():
    """By hand: 4 x 4 ones, windows at rows and columns -1 and 1; their first real entries are 0 and 1."""
    found = jax.grad(lambda x: max_pool(x).sum())(np.ones((1, 4, 4, 1), np.float32))
    np.testing.assert_array_equal(found[0, :, :, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("sides", [(12, 8), (10, 10), (9, 12)])
def test_the_stem_is_the_convolution_that_it_stands_for(sides):
    """7x7, stride 2, three channels: values, weight gradient and input gradient."""
    draw = np.random.default_rng(0)
    x, kernel = draw.standard_normal((2, *sides, 3)), draw.standard_normal((7, 7, 3, 5))
    with jax.enable_x64(True):
        values, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, 2), x, kernel)
        expected, expected_pull = jax.vjp(
            lambda x, kernel: lax.conv_general_dilated(x, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=NHWC),
            x,
            kernel,
        )
        grad = draw.standard_normal(values.shape)
        np.testing.assert_allclose(values, expected, atol=1e-12)
        for found, wanted in zip(pull(grad), expected_pull(grad), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-12)
