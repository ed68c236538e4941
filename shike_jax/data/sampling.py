"""Which examples a step sees: streams that are functions of (seed, epoch), the same on every device and process."""

from __future__ import annotations

import jax
import numpy as np

from shike_jax.errors import UserError
from shike_jax.methods import SAMPLERS

Plan = dict[str, np.ndarray]


def steps_per_epoch(examples: int, batch_size: int, keep_last: bool) -> int:
    """Optimiser steps in an epoch; the last partial batch counts when it is kept (or when it is all there is)."""
    full, rest = divmod(examples, batch_size)
    return full + (1 if rest and (keep_last or not full) else 0)


def epoch_plan(sampler: str, key: jax.Array, epoch: int, labels: np.ndarray, batch_size: int, keep_last: bool) -> Plan:
    """One epoch of global batches, drawn by a registered sampler from the stage's stream and the epoch in the stage.

    `labels` are int32 [N]; every class 0..C-1 occurs. Gives `index` int32 [steps,B], positions in the training set (and
    `partner` alike for samplers of pairs), and `mask` float32 [steps,B], 0 where the last batch is padded. UserError
    for a sampler that is unknown, or did not return a position for each example of the training set.
    """
    steps = steps_per_epoch(len(labels), batch_size, keep_last)
    first, second = jax.random.split(jax.random.fold_in(key, epoch))
    entry = SAMPLERS[sampler]
    drawn = {"index": _draw(entry.name, first, labels)}
    if entry.options["partner"]:
        drawn["partner"] = _draw(entry.options["partner"], second, labels)
    drawn["mask"] = np.ones(len(labels), np.float32)
    return {name: _rows(values, steps, batch_size) for name, values in drawn.items()}


def _draw(sampler: str, key: jax.Array, labels: np.ndarray) -> np.ndarray:
    positions = np.asarray(SAMPLERS[sampler].call(key, labels))
    if positions.shape != labels.shape or positions.dtype.kind not in "iu":
        found = f"{positions.dtype} {positions.shape}"
        raise UserError(f"sampler {sampler!r} returned {found}; expected int32 ({len(labels)},), one for each example")
    if positions.min() < 0 or positions.max() >= len(labels):
        bounds = f"{positions.min()}..{positions.max()}"
        raise UserError(f"sampler {sampler!r} returned positions {bounds}; expected 0..{len(labels) - 1}")
    return positions.astype(np.int32)


def in_order(examples: int, batch_size: int) -> Plan:
    """Every example once, in order, the last batch padded and masked: what evaluation reads."""
    steps = steps_per_epoch(examples, batch_size, keep_last=True)
    index, mask = np.arange(examples, dtype=np.int32), np.ones(examples, np.float32)
    return {"index": _rows(index, steps, batch_size), "mask": _rows(mask, steps, batch_size)}


def _rows(values: np.ndarray, steps: int, batch_size: int) -> np.ndarray:
    """The values [steps,B], cut off or padded with 0."""
    size = steps * batch_size
    return np.pad(values[:size], (0, max(size - len(values), 0))).reshape(steps, batch_size)
