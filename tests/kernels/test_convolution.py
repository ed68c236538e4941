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


@pytest.mark.parametrize(
    ("sides", "inputs", "features", "size", "stride"),
    [
        ((6, 8), 3, 16, 3, 1),  # the CIFAR stem
        ((6, 7), 16, 16, 3, 1),  # an odd width
        ((1, 4), 2, 2, 3, 1),
        ((6, 8), 16, 32, 3, 1),
        ((6, 8), 16, 16, 3, 2),
        ((7, 8), 16, 16, 1, 2),
        ((12, 8), 3, 5, 7, 2),  # the ImageNet stem
        ((10, 10), 3, 5, 7, 2),
        ((9, 12), 3, 5, 7, 2),
    ],
)
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
@pytest.mark.parametrize(
    ("batch", "part_bytes", "many", "part"),
    [
        (32, 2 << 10, 99, (8, 4)),  # parts of the batch and of the rows, smaller ones do not pay
        (8, 8 << 10, 99, (8, 4)),  # of the rows alone
        (6, 1 << 20, 99, (6, 16)),  # one
        (4, 1 << 20, 4, None),  # products
    ],
)
def test_the_weight_gradient_is_the_same_in_every_form(batch, part_bytes, many, part, side, size, stride, monkeypatch):
    convolution._gradients.clear_cache()  # what is patched here is read when a shape is traced first
    monkeypatch.setattr(convolution, "PART_BYTES", part_bytes)
    monkeypatch.setattr(convolution, "MANY_CHANNELS", many)
    draw = np.random.default_rng(0)
    x, kernel = draw.standard_normal((batch, side, 9, 5)), draw.standard_normal((size, size, 5, 17))
    if part and side == 16:
        assert convolution._part(np.zeros((batch, 16, 9, 17))) == part
    check(x, kernel, stride)


def test_a_part_has_more_examples_where_channels_are_few():
    """By hand: 64 examples of 32 x 32 x 16 float32 are 4.2 MB; 32 of 4 rows, 262 kB, are the first below 300 kB."""
    assert convolution._part(np.zeros((64, 32, 32, 16), np.float32)) == (32, 4)
    assert convolution._part(np.zeros((64, 16, 16, 32), np.float32)) == (8, 16)
    assert convolution._part(np.zeros((64, 8, 8, 64), np.float32)) == (16, 8)
    assert convolution._part(np.zeros((27, 7, 7, 512), np.float32)) == (27, 7)  # cannot be halved
