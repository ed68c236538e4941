"""Weights averaged over the steps of a stage, chosen by name, and the uphill step of sharpness-aware minimisation.

An average is the mean of the weights after each step so far, weighted by its rule. It is kept as a running mean, so a
rule is no more than the share that the newest weights have in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shike_jax.methods.registry import Registry

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class AverageSettings:
    """What a rule may use.

    Attributes:
      decay: of the exponential average, for each step; between 0 and 1.
      first: the first step whose weights count in the uniform average; in a training step int32 [].
    """

    decay: float
    first: int | Array


AVERAGES: Registry[Callable[[Array, AverageSettings], Array]] = Registry(
    "average",
    "(steps done int32 [], 1 after the first one; settings: AverageSettings) to the share float [] that the newest "
    "weights have in their mean",
    inputs=AverageSettings,
    given=2,
    parameters=False,
)


@AVERAGES.register("ema")
def ema(done: Array, settings: AverageSettings) -> Array:
    """Exponential: the weights after step i of t count decay^(t-i).

    The sum of these is (1 - decay^t) / (1 - decay), so early averages are true means instead of leaning on the start
    (the correction of Adam's moments, Kingma and Ba 2015, sec. 3).
    """
    return (1 - settings.decay) / -jnp.expm1(done * math.log(settings.decay))


@AVERAGES.register("uniform")
def uniform(done: Array, settings: AverageSettings) -> Array:
    """The plain mean from step `first` on, as stochastic weight averaging (Izmailov et al. 2018, algorithm 1)."""
    return 1 / jnp.maximum(done - settings.first + 1, 1).astype(jnp.float32)


def moved_average(average: PyTree, params: PyTree, share: Array) -> PyTree:
    """(1 - share) average + share params, leaf by leaf: the running mean with the newest weights in it."""

    def moved(mean: Array, new: Array) -> Array:
        part = share.astype(mean.dtype)
        return (1 - part) * mean + part * new

    return jax.tree.map(moved, average, params)


def uphill(params: PyTree, grads: PyTree, rho: float) -> PyTree:
    """params + rho grads / |grads|: where SAM takes its gradient (Foret et al. 2021, eq. 2); unmoved where it is 0."""
    norm = optax.global_norm(grads)
    factor = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda value, grad: value + factor.astype(value.dtype) * grad, params, grads)
