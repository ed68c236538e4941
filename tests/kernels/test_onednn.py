"""Convolutions by oneDNN: values and both gradients against XLA's in float64, where JAX can call it."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from shike_jax.kernels import onednn
from shike_jax.kernels.convolution import convolve
from shike_jax.training.compiled_steps import gains_by_onednn
from tests.conftest import ROOT
from tests.kernels.test_convolution import LAYERS, plain

pytestmark = pytest.mark.skipif(not onednn.usable(), reason="this JAX has no oneDNN to call")


@pytest.mark.parametrize("batch", [32, 5])
@LAYERS
def test_values_and_gradients_are_those_of_the_plain_convolution(batch, sides, inputs, features, size, stride):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((batch, *sides, inputs))
    kernel = draw.standard_normal((size, size, inputs, features))
    grad = draw.standard_normal((batch, *(-(-side // stride) for side in sides), features))

    def values_and_gradients(form):
        def all_three(x, kernel, grad):
            values, pull = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
            return values, *pull(grad)

        return all_three

    with jax.enable_x64(True):
        expected = jax.jit(values_and_gradients(plain))(x, kernel, grad)
    with onednn.chosen(), onednn.unkept():
        lowered = jax.jit(values_and_gradients(convolve)).lower(*(a.astype(np.float32) for a in (x, kernel, grad)))
        found = lowered.compile()(*(a.astype(np.float32) for a in (x, kernel, grad)))
    assert ("onednn" in lowered.as_text()) == (size > 1 and stride < 3)
    for single, double in zip(found, expected, strict=True):
        np.testing.assert_allclose(single, double, rtol=0, atol=2e-6 * np.abs(double).max())


def test_only_float32_in_one_group_is_given_to_it():
    x = np.ones((2, 4, 4, 4), np.float32)
    with onednn.chosen():
        for kind, groups, expected in (("float32", 1, True), ("bfloat16", 1, False), ("float32", 2, False)):
            kernel = np.ones((3, 3, 4 // groups, 4)).astype(kind)
            lowered = jax.jit(lambda x, kernel, groups=groups: convolve(x, kernel, 1, groups)).lower(
                x.astype(kind), kernel
            )
            assert ("onednn" in lowered.as_text()) == expected
    assert "onednn" not in jax.jit(lambda x: convolve(x, np.ones((3, 3, 4, 4), np.float32), 1)).lower(x).as_text()


def test_over_several_kernels_and_for_second_derivatives():
    """Under vmap, and in a gradient of a gradient, as a penalty on gradients has it."""
    draw = np.random.default_rng(0)
    x, kernels = draw.standard_normal((16, 6, 5, 3)), draw.standard_normal((2, 3, 3, 3, 4))

    def penalty(form):
        def size_of_gradient(x, kernel):
            return jax.numpy.sum(jax.grad(lambda x: jax.numpy.sum(form(x, kernel, 1) ** 3))(x) ** 2)

        return jax.jit(jax.vmap(jax.grad(size_of_gradient, argnums=1), (None, 0)))

    with jax.enable_x64(True):
        expected = penalty(plain)(x, kernels)
    with onednn.chosen(), onednn.unkept():
        found = penalty(convolve)(x.astype(np.float32), kernels.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


STARTS = """
import sys
import jax
import numpy as np
from shike_jax.kernels import onednn
from shike_jax.kernels.convolution import convolve
x, kernel = np.ones((16, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
assert onednn.usable()
with onednn.chosen(), onednn.unkept():
    jax.jit(lambda x, kernel: convolve(x, kernel, 1))(x, kernel).block_until_ready()
jax.jit(lambda x: x * 2 + 1)(x).block_until_ready()
"""


def test_its_programs_stay_out_of_the_cache_and_others_go_in(tmp_path):
    """XLA cannot write such a program down, which an error of JAX's would say here."""
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_RAISE_PERSISTENT_CACHE_ERRORS": "1",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", STARTS], env={**os.environ, **settings}, check=True)
    assert len([path for path in tmp_path.iterdir() if path.name.endswith("-cache")]) == 1


def test_steps_on_many_pixels_gain_from_it():
    """CIFAR's batches do; those of digits, and vectors in place of images, do not."""
    assert gains_by_onednn((128, 32, 32, 3)) and gains_by_onednn((16, 64, 64, 3))
    assert not any(map(gains_by_onednn, [(64, 8, 8, 3), (63, 32, 32, 3), (10**6, 512)]))
