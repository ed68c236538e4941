"""Which training examples an epoch visits: pure functions of a key and the labels.

A sampler returns positions int32 [N] into the training set, as many as there are examples, for one epoch. The key is a
function of the run's seed, the stage and the epoch, so an epoch can be drawn again at any time and on any process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.methods.registry import Option, Registry

Array = jax.Array

SAMPLERS: Registry[Callable[[Array, np.ndarray], Array]] = Registry(
    "sampler",
    "(key, labels int [N]) to positions int32 [N] of one epoch; labels are NumPy's",
    given=2,
    parameters=False,
    partner=Option("", "the sampler of the second image of each pair; empty for samplers of single images"),
    balances=Option(False, "every class is drawn equally often"),
)


@SAMPLERS.register("shuffle")
def shuffle(key: Array, labels: np.ndarray) -> Array:
    """Each example exactly once, in random order."""
    return _shuffled(key, len(labels))


@SAMPLERS.register("balanced", balances=True)
def balanced(key: Array, labels: np.ndarray) -> Array:
    """Draws a class uniformly, then one of its examples uniformly, with replacement."""
    return _draw_by_class(key, labels, lambda counts: np.ones(len(counts)))


@SAMPLERS.register("sqrt")
def square_root(key: Array, labels: np.ndarray) -> Array:
    """Draws a class in proportion to the square root of its count, then one of its examples."""
    return _draw_by_class(key, labels, np.sqrt)


@SAMPLERS.register("paired", partner="shuffle", balances=True)
def paired(key: Array, labels: np.ndarray) -> Array:
    """As `balanced`; each example comes with a second one from the shuffled training set (H2T)."""
    return balanced(key, labels)


@SAMPLERS.register("foregrounds", partner="balanced")
def foregrounds(key: Array, labels: np.ndarray) -> Array:
    """As `shuffle`; each example comes with one of a class drawn uniformly (CMO, whose weights are 1 / n_c)."""
    return shuffle(key, labels)


def _draw_by_class(key: Array, labels: np.ndarray, weigh: Callable[[np.ndarray], np.ndarray]) -> Array:
    """Draws classes with the weights of their counts, then an example of each; every class must have examples."""
    counts = np.bincount(labels)
    order = np.argsort(labels, kind="stable").astype(np.int32)
    weights = weigh(counts)
    cumulative = np.cumsum(weights / weights.sum())[:-1].astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    return _draw(key, order, cumulative, starts, counts.astype(np.int32))


@functools.partial(jax.jit, static_argnums=1)
def _shuffled(key: Array, count: int) -> Array:
    return jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))


@jax.jit
def _draw(key: Array, order: Any, cumulative: Any, starts: Any, counts: Any) -> Array:
    class_key, member_key = jax.random.split(key)
    classes = jnp.searchsorted(cumulative, jax.random.uniform(class_key, order.shape, jnp.float32), side="right")
    member = jax.random.randint(member_key, order.shape, 0, counts[classes], jnp.int32)
    return order[starts[classes] + member]
