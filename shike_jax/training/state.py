"""The state of a stage: what training changes, how a stage begins, and reading states that older code has written."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import numpy as np
from flax import serialization, traverse_util

from shike_jax.training import trainable
from shike_jax.training.program import Program

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes."""

    step: Any  # int32, optimiser steps done in the current stage
    params: PyTree  # all parameters, trained or not
    batch_stats: PyTree  # running averages of batch normalisation
    opt_state: PyTree  # arrays for the updated parameters only
    average: PyTree = None  # of the updated parameters over the steps, None for the others; None: nothing is averaged


def start_stage(variables: PyTree, program: Program) -> TrainState:
    """The state at step 0 of a stage, with a fresh optimiser, from host variables {`params`, `batch_stats`}."""
    params = variables["params"]
    moved = trainable.select(params, program.updated)
    opt_state = jax.tree.map(np.asarray, jax.jit(program.optimizer.init)(moved))
    average = None if program.newest_share is None else moved
    return TrainState(np.zeros((), np.int32), params, variables["batch_stats"], opt_state, average)


def variables_of(state: TrainState) -> PyTree:
    """The network's variables {`params`, `batch_stats`} of a state, as the last step left them."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def upgraded(tree: PyTree, template: TrainState) -> PyTree:
    """A saved state (nested dicts of arrays) with the step counters of optimisers that today's `template` has.

    Until version 0.1 the learning rate multiplied the optimiser's update from outside, so no counter was saved. It
    equals the step of the stage.
    """
    wanted = traverse_util.flatten_dict(serialization.to_state_dict(template), sep="/")
    found = traverse_util.flatten_dict(tree, sep="/")
    for name in wanted:
        if name.startswith("opt_state/") and name.endswith("/count") and name not in found:
            found[name] = np.asarray(found["step"], np.int32)
    return traverse_util.unflatten_dict(found, sep="/")
