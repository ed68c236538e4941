"""Model FLOPs, counted from a trace, and the two ceilings of a device, measured: arithmetic and memory."""

from __future__ import annotations

import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from shike_jax import models
from shike_jax.benchmark import measure
from shike_jax.benchmark.workload import Workload

ROUNDS = 5


def forward_flops(workload: Workload) -> float:
    """Operations of the convolutions and matrix products of one forward pass (a multiplication and an addition: 2)."""
    network = models.build_model(workload.model, workload.classes)
    images = jax.ShapeDtypeStruct((workload.batch, *workload.images.shape[1:]), jnp.float32)
    traced = jax.make_jaxpr(lambda variables, x: network.apply(variables, x, workload.heads))(
        workload.variables, images
    )
    return matrix_flops(traced.jaxpr)


def matrix_flops(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products of a traced program.

    Where platforms choose between forms of one operation, that of the fewest counts: others multiply zeros too.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        total += sum(matrix_flops(p.jaxpr) for p in equation.params.values() if hasattr(p, "jaxpr"))
        if branches := equation.params.get("branches"):
            total += min(matrix_flops(branch.jaxpr) for branch in branches)
        if equation.primitive.name == "conv_general_dilated":
            total += 2.0 * equation.outvars[0].aval.size * math.prod(equation.invars[1].aval.shape[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[d] for d in contracted)
    return total


def measure_ceilings(dtype: str) -> dict[str, float]:
    """TFLOP/s of a large matrix product in `dtype` and GB/s read and written together, on the first device.

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
