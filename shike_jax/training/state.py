"""The state of a run, and turning the end of one stage into the start of the next."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import numpy as np
import optax

from shike_jax.training import optim

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32, optimiser steps done in the current stage.
      params: all parameters, trained or not.
      batch_stats: running averages of batch normalisation.
      opt_state: momentum of the trained parameters only.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def start_stage(variables: PyTree, optimizer: optax.GradientTransformation, trainable: PyTree) -> TrainState:
    """The state at step 0 of a stage: given variables, a fresh optimiser.

    Args:
      variables: {`params`, `batch_stats`} host arrays: initial ones or those at the end of the stage before.
      optimizer: of the stage.
      trainable: booleans like params.
    """
    params = variables["params"]
    opt_state = jax.tree.map(np.asarray, jax.jit(optimizer.init)(optim.select(params, trainable)))
    return TrainState(np.zeros((), np.int32), params, variables["batch_stats"], opt_state)


def variables_of(state: TrainState) -> PyTree:
    """The network's variables {`params`, `batch_stats`} of a state."""
    return {"params": state.params, "batch_stats": state.batch_stats}
