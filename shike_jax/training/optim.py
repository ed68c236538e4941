"""Learning-rate schedules, trainable-parameter patterns, and SGD as PyTorch does it (optax)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from shike_jax.errors import UserError

PyTree = Any
Schedule = Callable[[jax.Array], jax.Array]


def learning_rate(stage: Mapping[str, Any], epochs: int, steps_per_epoch: int) -> Schedule:
    """Builds the schedule of a stage: a function from the step (counted from the stage's start) to the learning rate.

    Args:
      stage: the fields `schedule`, `lr` (peak), `warmup_lr`, `warmup_epochs` of `config.stages.NAME`.
      epochs: T, the stage's length.
      steps_per_epoch: optimiser steps per epoch.

    The names: `warmup_cosine` is the authors' code, set once per epoch e: `warmup_lr + (peak - warmup_lr) (e - 1) / 4`
    for e < 5, then `peak (1 + cos(pi (e - 5) / (T - 5))) / 2`. `cosine` (the paper) is `peak (1 + cos(pi e / T)) / 2`
    per epoch, `cosine_per_step` the same per step, `constant` the peak.
    """
    name, peak = stage["schedule"], stage["lr"]
    start, warmup = stage["warmup_lr"], stage["warmup_epochs"]

    def at(step: jax.Array) -> jax.Array:
        epoch = step // steps_per_epoch
        if name == "constant":
            return jnp.full((), peak)
        if name == "cosine_per_step":
            return peak * 0.5 * (1 + jnp.cos(math.pi * step / (epochs * steps_per_epoch)))
        if name == "cosine":
            return peak * 0.5 * (1 + jnp.cos(math.pi * epoch / epochs))
        rising = start + (peak - start) / max(warmup - 1, 1) * (epoch - 1)
        falling = peak * 0.5 * (1 + jnp.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1)))
        return jnp.where(epoch < warmup, rising, falling)

    return at


def trainable_mask(params: PyTree, patterns: Sequence[str], unused: tuple[str, ...] = ()) -> PyTree:
    """Marks the parameters whose path ("heads/classifier/expert0/kernel") a pattern matches in full.

    Args:
      params: nested dicts.
      patterns: regular expressions.
      unused: beginnings of the paths of parameters that take no part, whatever the patterns say.

    Returns:
      A pytree of booleans like `params`.

    Raises:
      UserError: a pattern that matches nothing, or no parameter trains.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in flat):
            raise UserError(f"train pattern {pattern!r} matches no parameter; paths look like {next(iter(flat))!r}")
    marked = {
        path: any(re.fullmatch(pattern, path) for pattern in patterns) and not path.startswith(unused) for path in flat
    }
    if not any(marked.values()):
        raise UserError(f"train patterns {tuple(patterns)} leave nothing to train")
    return traverse_util.unflatten_dict(marked, sep="/")


def select(params: PyTree, mask: PyTree, keep: bool = True) -> PyTree:
    """Returns the parameters whose mask equals `keep`, with None in place of the others."""
    return jax.tree.map(lambda leaf, marked: leaf if marked == keep else None, params, mask)


def merge(trained: PyTree, frozen: PyTree) -> PyTree:
    """Puts the two halves that `select` made together again."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's SGD without its learning rate: weight decay joins the gradient, then the momentum buffer.

    The learning rate multiplies the update afterwards (it is a function of the step, so no state needs to hold it).
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))
