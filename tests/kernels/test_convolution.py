"""The forms of a convolution that a CPU gets are the plain convolution: values and both gradients, in float64."""

import jax
import numpy as np
import pytest
from jax import lax

from shike_jax.kernels import convolution
from shike_jax.kernels.convolution import NHWC, convolve


def plain(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=NHWC)


LAYERS = pytest.mark.parametrize(
    ("sides", "inputs", "features", "size", "stride"),
    [
        ((6, 8), 3, 16, 3, 1),  # the CIFAR stem
        ((6, 7), 16, 16, 3, 1),  # an odd width
        ((1, 4), 2, 2, 3, 1),
        ((6, 8), 16, 32, 3, 1),
        ((6, 8), 16, 16, 3, 2),
        ((7, 9), 16, 17, 3, 2),
        ((7, 8), 16, 16, 1, 2),  # a matrix product
        ((12, 8), 3, 5, 7, 2),  # the ImageNet stem
        ((10, 10), 3, 5, 7, 2),
        ((9, 12), 3, 5, 7, 2),
        ((8, 8), 4, 6, 3, 3),  # no network here has such a stride: XLA's
    ],
)


@LAYERS
def test_values_and_gradients_are_those_of_the_plain_convolution(sides, inputs, features, size, stride):
    draw = np.random.default_rng(0)
    x, kernel = draw.standard_normal((2, *sides, inputs)), draw.standard_normal((size, size, inputs, features))
    check(x, kernel, stride)


def check(x, kernel, stride):
    with jax.enable_x64(True):
        values, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        expected, expected_pull = jax.vjp(lambda x, kernel: plain(x, kernel, stride), x, kernel)
        grad = np.random.default_rng(1).standard_normal(values.shape)
        np.testing.assert_allclose(values, expected, atol=1e-12)
        for found, wanted in zip(pull(grad), expected_pull(grad), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-11)


@pytest.mark.parametrize("side", [15, 16])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2), (1, 2), (1, 1)])
@pytest.mark.parametrize("batch", [32, 8, 5])
def test_the_weight_gradient_is_the_same_in_every_form(batch, side, size, stride):
    """In halves of the batch, of the rows where these are even, of a small batch where they are not, or at once."""
    draw = np.random.default_rng(0)
    check(draw.standard_normal((batch, side, 9, 5)), draw.standard_normal((size, size, 5, 17)), stride)


def test_a_half_keeps_at_least_16_examples_where_rows_can_be_halved():
    assert convolution._half(32, 7) == (16, 7)
    assert convolution._half(30, 8) == (30, 4)
    assert convolution._half(8, 7) == (4, 7)
    assert convolution._half(27, 7) == (27, 7)
