"""Initial weights, drawn so that few programs have to be compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
SHARED = 2**16  # arrays of up to so many numbers are drawn by one program; larger ones share one with their like


def zeros(key: Array, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros, by NumPy."""
    return np.zeros(shape, dtype)


def ones(key: Array, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Ones, by NumPy."""
    return np.ones(shape, dtype)


def he_normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Normal with variance 2 / fan-in: the authors' `kaiming_normal_` (He et al. 2015). Not truncated, unlike Flax's.

    `shape` is that of a kernel, output features last.
    """
    return _drawn(jax.random.normal, key, shape, dtype) * np.sqrt(np.array(2 / math.prod(shape[:-1]), dtype))


def torch_default(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform within 1 / sqrt(fan-in): what a PyTorch convolution starts from when nobody initialises it."""
    bound = np.sqrt(np.array(1 / math.prod(shape[:-1]), dtype))
    return uniform(1.0)(key, shape, dtype) * bound


def uniform(bound: float) -> Callable[[Array, tuple[int, ...], Any], Array]:
    """An initialiser that draws uniformly between -bound and bound."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        def sample(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return _drawn(sample, key, shape, dtype)

    return init


def _drawn(sample: Callable[..., Array], key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """What `sample(key, shape, dtype)` gives, as the beginning of a longer draw.

    JAX compiles the generator for every shape, which took most of the time in which a network was initialised. The
    n-th number of a draw depends on the key and on n alone (JAX's partitionable Threefry), so arrays of many shapes can
    come from draws of one length. Outside a trace NumPy cuts and scales them, which needs no program at all.
    """
    size = math.prod(shape)
    length = max(SHARED, 4 ** math.ceil(math.log(size, 4)))
    values = sample(key, (length,), dtype)
    if not isinstance(values, jax.core.Tracer):
        values = np.asarray(values)
    return values[:size].reshape(shape)
