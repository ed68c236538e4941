"""Which examples a step sees: streams that are functions of (seed, epoch), the same on every device and process."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Plan = dict[str, np.ndarray]


def steps_per_epoch(examples: int, batch_size: int, keep_last: bool) -> int:
    """Optimiser steps in an epoch; the last partial batch counts when it is kept (or when it is all there is)."""
    full, rest = divmod(examples, batch_size)
    return full + (1 if rest and (keep_last or not full) else 0)


def epoch_plan(sampler: str, key: jax.Array, epoch: int, labels: np.ndarray, batch_size: int, keep_last: bool) -> Plan:
    """Draws one epoch of batches.

    Args:
      sampler: `shuffle` (each example exactly once), `balanced` (a class uniformly, then one of its examples), `sqrt`
        (classes by the square root of their counts) or `paired` (`balanced` in `index`, `shuffle` in `index2`).
      key: of the stage's stream.
      epoch: number within the stage.
      labels: int32 [N] of the training examples; every class 0..C-1 occurs.
      batch_size: global, B.
      keep_last: keep the last partial batch, padded and masked.

    Returns:
      `index` int32 [steps,B], positions in the training set (and `index2` for `paired`); `mask` float32 [steps,B],
      0 where the last batch is padded.
    """
    count, steps = len(labels), steps_per_epoch(len(labels), batch_size, keep_last)
    key = jax.random.fold_in(key, epoch)
    first, second = jax.random.split(key)
    drawn = {"index": _shuffled(first, count) if sampler == "shuffle" else _by_class(sampler, first, labels)}
    if sampler == "paired":
        drawn["index2"] = _shuffled(second, count)
    size = steps * batch_size
    plan = {name: _pad(np.asarray(indices)[:size], size).reshape(steps, batch_size) for name, indices in drawn.items()}
    plan["mask"] = _pad(np.ones(min(count, size), np.float32), size).reshape(steps, batch_size)
    return plan


def in_order(examples: int, batch_size: int) -> Plan:
    """Every example once, in order, the last batch padded and masked: what evaluation reads."""
    steps = steps_per_epoch(examples, batch_size, keep_last=True)
    size = steps * batch_size
    return {
        "index": _pad(np.arange(examples, dtype=np.int32), size).reshape(steps, batch_size),
        "mask": _pad(np.ones(examples, np.float32), size).reshape(steps, batch_size),
    }


@functools.partial(jax.jit, static_argnums=1)
def _shuffled(key: jax.Array, count: int) -> jax.Array:
    return jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))


def _by_class(sampler: str, key: jax.Array, labels: np.ndarray) -> jax.Array:
    """As many draws as there are examples, classes first."""
    counts = np.bincount(labels)
    order = np.argsort(labels, kind="stable").astype(np.int32)
    weights = np.sqrt(counts) if sampler == "sqrt" else np.ones(len(counts))
    cumulative = np.cumsum(weights / weights.sum())[:-1].astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    return _draw(key, order, cumulative, starts, counts.astype(np.int32))


@jax.jit
def _draw(key: jax.Array, order: Any, cumulative: Any, starts: Any, counts: Any) -> jax.Array:
    class_key, member_key = jax.random.split(key)
    classes = jnp.searchsorted(cumulative, jax.random.uniform(class_key, order.shape, jnp.float32), side="right")
    member = jax.random.randint(member_key, order.shape, 0, counts[classes], jnp.int32)
    return order[starts[classes] + member]


def _pad(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)))
