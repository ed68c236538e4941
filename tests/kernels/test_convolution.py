"""The forms of a convolution that a CPU gets are the plain convolution: values and both gradients, in float64."""

import jax
import numpy as np
import pytest
from jax import lax

from shike_jax.kernels import convolution, winograd
from shike_jax.kernels.convolution import NHWC, convolve


def plain(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=NHWC)


@pytest.mark.parametrize(
    ("sides", "inputs", "features", "size", "stride", "columns"),
    [
        ((6, 8), 3, 16, 3, 1, 4),  # the CIFAR stem
        ((8, 6), 16, 16, 3, 1, 2),
        ((5, 12), 4, 4, 3, 1, 4),
        ((5, 4), 12, 9, 3, 1, 2),
        ((1, 4), 2, 2, 3, 1, 4),  # one window
        ((4, 2), 16, 16, 3, 1, 2),
        ((6, 7), 16, 16, 3, 1, 1),  # an odd width
        ((6, 6), 4, 4, 3, 1, 1),  # not a multiple of four
        ((6, 8), 16, 32, 3, 1, 1),
        ((6, 8), 16, 16, 3, 2, 1),
        ((7, 8), 16, 16, 1, 2, 1),
        ((12, 8), 3, 5, 7, 2, 1),  # the ImageNet stem
        ((10, 10), 3, 5, 7, 2, 1),
        ((9, 12), 3, 5, 7, 2, 1),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_convolution(sides, inputs, features, size, stride, columns):
    draw = np.random.default_rng(0)
    x, kernel = draw.standard_normal((2, *sides, inputs)), draw.standard_normal((size, size, inputs, features))
    assert convolution._columns(x, kernel, stride) == columns
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


def test_a_column_has_its_own_window():
    """By hand: kernel 1..9 over a row of ones at the places 0, 1 and 2 of four columns."""
    x = np.zeros((1, 1, 4, 1))
    x[0, 0, :3] = 1
    kernel = np.arange(1.0, 10.0).reshape(3, 3, 1, 1)  # its middle row is 4, 5, 6
    found = np.asarray(convolve(x.astype(np.float32), kernel.astype(np.float32), 1))
    np.testing.assert_array_equal(found.reshape(4), [11, 15, 9, 4])


@pytest.mark.parametrize(
    ("batch", "sides", "inputs", "features", "parts"),
    [(8, (4, 6), 5, 7, 8), (6, (8, 4), 9, 3, 2), (12, (2, 2), 3, 4, 4), (1, (6, 6), 2, 2, 1)],
)
def test_winograd_is_the_plain_convolution(batch, sides, inputs, features, parts, monkeypatch):
    for name, value in {"WINOGRAD_CHANNELS": 1, "WINOGRAD_CHANNELS_FOR_WEIGHTS": 1, "WINOGRAD_POSITIONS": 1}.items():
        monkeypatch.setattr(convolution, name, value)
    monkeypatch.setattr(convolution, "_columns", lambda x, kernel, stride: 1)
    for name in ("FORWARD_BYTES", "WEIGHTS_BYTES"):  # of an image: as few as one makes a part, if it has the windows
        monkeypatch.setattr(winograd, name, 8 * sides[0] * sides[1] * inputs)
    draw = np.random.default_rng(0)
    x, kernel = draw.standard_normal((batch, *sides, inputs)), draw.standard_normal((3, 3, inputs, features))
    assert convolution._suits_winograd(x, features, 3, 1, 1)
    assert len(winograd._parts(x, winograd.FORWARD_BYTES)) == parts
    check(x, kernel, 1)


def test_where_winograd_is_taken():
    """For even sides, stride 1, float32 or float64 and a batch of known size that has enough positions and channels."""

    def taken(shape, features=64, size=3, stride=1, dtype=np.float32):
        return convolution._suits_winograd(jax.ShapeDtypeStruct(shape, dtype), features, size, stride, 32)

    assert taken((64, 8, 8, 64))
    assert taken((16, 16, 16, 32), 32, dtype=np.float64)
    assert not taken((63, 8, 8, 64))
    assert not taken((64, 8, 8, 64), 16)
    assert not taken((64, 9, 8, 64))
    assert not taken((64, 8, 8, 64), size=5)
    assert not taken((64, 8, 8, 64), stride=2)
    assert not taken((64, 8, 8, 64), dtype=jax.numpy.bfloat16)
    assert not taken((*jax.export.symbolic_shape("b"), 8, 8, 64))


def test_winograd_in_float32_is_about_as_exact_as_the_plain_form():
    draw = np.random.default_rng(0)
    x, kernel = draw.standard_normal((4, 16, 16, 64)), draw.standard_normal((3, 3, 64, 64))
    with jax.enable_x64(True):
        exact = np.asarray(plain(x, kernel, 1))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    found, usual = (
        float(np.sqrt(np.mean((np.asarray(values) - exact) ** 2)))
        for values in (winograd.convolve(x, kernel), plain(x, kernel, 1))
    )
    assert found < 3 * usual


def test_a_window_of_winograd_by_hand():
    """One window: zeros around 2x2 values; each output is the sum of the values under the kernel 1..9."""
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).reshape(1, 2, 2, 1)
    kernel = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3, 1, 1)
    expected = [1 * 5 + 2 * 6 + 3 * 8 + 4 * 9, 1 * 4 + 2 * 5 + 3 * 7 + 4 * 8]
    expected += [1 * 2 + 2 * 3 + 3 * 5 + 4 * 6, 1 * 1 + 2 * 2 + 3 * 4 + 4 * 5]
    np.testing.assert_array_equal(np.asarray(winograd.convolve(x, kernel)).reshape(4), expected)
