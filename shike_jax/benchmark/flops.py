"""Model FLOPs: the operations of convolutions and matrix products, counted from a trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from shike_jax import models
from shike_jax.benchmark.workload import Workload


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
        inner = [p for p in equation.params.values() if hasattr(p, "jaxpr")]
        total += sum(matrix_flops(p.jaxpr) for p in inner)
        if branches := equation.params.get("branches"):
            total += min(matrix_flops(branch.jaxpr) for branch in branches)
        if equation.primitive.name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.size
            total += 2.0 * out * kernel[0] * kernel[1] * kernel[2]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * float(jnp.prod(jnp.array([shape[d] for d in contracted])))
    return total
