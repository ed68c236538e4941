"""What one stage does in a step: everything that stays the same from step to step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from shike_jax import models
from shike_jax.config import to_plain
from shike_jax.methods import AVERAGES, SCHEDULES, StageLength
from shike_jax.methods.averaging import AverageSettings
from shike_jax.methods.loss_registry import check_losses
from shike_jax.methods.optimizers import make_optimizer
from shike_jax.training.trainable import trainable_mask

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What one stage does in a step.

    Attributes:
      network: with the name of the device axis for global BN statistics.
      stage: the fields of `config.stages.NAME` as a plain dict.
      class_counts: [C] of the training split.
      trainable: booleans like params: what the losses differentiate.
      updated: booleans like params: what the optimiser moves; equal to `trainable` unless frozen weights decay too.
      optimizer: its update is added to the parameters.
      schedule: step to learning rate, for reports; the optimiser has its own copy.
      newest_share: steps done to the share of the newest weights in their average; None where nothing is averaged.
      steps: length of the stage.
      augment: (images uint8 [b,H,W,3], keys [b], mask=[b]) to normalised float images.
      key: PRNG key of the stage.
    """

    network: models.ExpertNetwork
    stage: dict[str, Any]
    class_counts: Array
    trainable: PyTree
    updated: PyTree
    optimizer: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    newest_share: Callable[[Array], Array] | None
    steps: int
    augment: Callable[..., Array]
    key: Array


def trained_in(settings: ConfigDict, network: models.ExpertNetwork, params: PyTree) -> PyTree:
    """What a stage trains, as booleans like params; finds the mistakes of its patterns and losses without computing.

    Args:
      settings, network, params: as for `make_program`.

    Raises:
      UserError: patterns that match no parameter, losses that cannot be computed.
    """
    experts = params["heads"]["representation"]
    check_losses(settings.loss, len(experts), *experts["expert0"]["kernel"].shape)
    # A set of classifiers that the stage does not use has no gradient: as in PyTorch, weight decay leaves it alone too.
    unused = tuple(f"heads/{heads}/" for heads in models.HEAD_SETS if heads not in network.sets_used_by(settings.heads))
    return trainable_mask(params, settings.train, unused)


def make_program(
    settings: ConfigDict,
    network: models.ExpertNetwork,
    params: PyTree,
    class_counts: np.ndarray,
    augment: Callable[..., Array],
    key: Array,
    steps_per_epoch: int,
    steps: int,
) -> Program:
    """Builds the program of a stage from its configuration.

    Args:
      settings: the fields of `config.stages.NAME`.
      params: the network's parameters, or shapes; their names decide what trains.
      class_counts, augment, key, steps: as in `Program`.
      steps_per_epoch: for the schedule.

    Raises:
      UserError: patterns that match no parameter, an unknown schedule or optimiser, losses that cannot be computed.
    """
    trained = trained_in(settings, network, params)
    length = StageLength(settings.lr, settings.epochs, steps_per_epoch, settings.warmup_lr, settings.warmup_epochs)
    function: Callable[..., Array] = SCHEDULES[settings.schedule].function
    schedule = functools.partial(function, stage=length)
    updated = jax.tree.map(lambda _: True, trained) if settings.decay_frozen else trained
    return Program(
        network=network,
        stage=to_plain(settings),
        class_counts=jnp.asarray(class_counts),
        trainable=trained,
        updated=updated,
        optimizer=make_optimizer(
            settings.optimizer, schedule, settings.momentum, settings.weight_decay, settings.optimizer_options
        ),
        schedule=schedule,
        newest_share=_newest_share(settings, steps_per_epoch, steps),
        steps=steps,
        augment=augment,
        key=key,
    )


def _newest_share(settings: ConfigDict, steps_per_epoch: int, steps: int) -> Callable[[Array], Array] | None:
    if settings.average == "none":
        return None
    first = max(steps - settings.average_epochs * steps_per_epoch, 0) + 1
    rule, chosen = AVERAGES[settings.average].function, AverageSettings(settings.average_decay, first)
    return lambda done: rule(done, chosen)
