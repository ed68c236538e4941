"""The two ceilings of a device, measured: arithmetic by a large matrix product, memory by a large element-wise pass."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from shike_jax.benchmark import measure

ROUNDS = 5


def measure_ceilings(dtype: str) -> dict[str, float]:
    """TFLOP/s of a matrix product in `dtype` and GB/s read and written together, on the first device.

    Random numbers: zeros can run faster than real data.
    """
    small = jax.default_backend() == "cpu"
    side, count = (2048, 1 << 26) if small else (8192, 1 << 30)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.dtype(dtype))
    product = _seconds(jax.jit(jnp.dot), a, b)
    numbers = jax.random.normal(jax.random.key(1), (count,), jnp.float32)
    passing = _seconds(jax.jit(lambda x: x + 1), numbers)
    return {
        "matrix_tflops": round(2 * side**3 / product / 1e12, 4),
        "memory_gb_per_second": round(2 * numbers.nbytes / passing / 1e9, 1),
    }


def _seconds(function: Any, *arguments: jax.Array) -> float:
    """Median seconds of one call."""
    run = {"it": lambda _: jax.block_until_ready(function(*arguments))}
    return statistics.median(measure.in_turns(run, ROUNDS)["it"])
