"""The state of a stage: what training changes, how a stage begins, and reading states that older code has written."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import numpy as np
import optax
from flax import serialization, traverse_util

from shike_jax.training import trainable

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32, optimiser steps done in the current stage.
      params: all parameters, trained or not.
      batch_stats: running averages of batch normalisation.
      opt_state: of the optimiser; it holds arrays for the updated parameters only.
      average: of the updated parameters (None for the others) over the steps; None where the stage averages nothing.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = None


def start_stage(
    variables: PyTree, optimizer: optax.GradientTransformation, updated: PyTree, averages: bool = False
) -> TrainState:
    """The state at step 0 of a stage: given variables, a fresh optimiser.

    Args:
      variables: {`params`, `batch_stats`} host arrays: initial ones or those at the end of the stage before.
      optimizer: of the stage.
      updated: booleans like params: what the optimiser moves.
      averages: whether the stage averages its weights.
    """
    params = variables["params"]
    moved = trainable.select(params, updated)
    opt_state = jax.tree.map(np.asarray, jax.jit(optimizer.init)(moved))
    average = moved if averages else None
    return TrainState(np.zeros((), np.int32), params, variables["batch_stats"], opt_state, average)


def variables_of(state: TrainState) -> PyTree:
    """The network's variables {`params`, `batch_stats`} of a state, as the last step left them."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def upgraded(tree: PyTree, template: TrainState) -> PyTree:
    """A saved state with the step counters of an optimiser that did not keep them when it was written.

    Until version 0.1 the learning rate multiplied the optimiser's update from outside, so no counter was saved. It
    equals the step of the stage.

    Args:
      tree: nested dicts of arrays, as saved.
      template: a state of today's structure.
    """
    wanted = traverse_util.flatten_dict(serialization.to_state_dict(template), sep="/")
    found = traverse_util.flatten_dict(tree, sep="/")
    for name in wanted:
        if name.startswith("opt_state/") and name.endswith("/count") and name not in found:
            found[name] = np.asarray(found["step"], np.int32)
    return traverse_util.unflatten_dict(found, sep="/")
