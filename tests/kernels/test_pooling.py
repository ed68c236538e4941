"""The max-pool of the ImageNet stem is the plain one, gradient, ties and odd sides included."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from shike_jax.kernels.pooling import max_pool


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
