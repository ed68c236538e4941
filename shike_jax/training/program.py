"""What one stage does in a step: everything that stays the same from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from shike_jax import models
from shike_jax.config import to_plain
from shike_jax.errors import UserError
from shike_jax.methods import AVERAGES, SCHEDULES, StageLength
from shike_jax.methods.averaging import AverageSettings
from shike_jax.methods.feature_hooks import FEATURE_HOOKS
from shike_jax.methods.loss_calls import check_losses
from shike_jax.methods.loss_registry import active_losses
from shike_jax.methods.optimizers import make_optimizer
from shike_jax.methods.schedules import computed_once, scale, warmed_up
from shike_jax.models.calling import has_features, name_of, sets_used_by
from shike_jax.training.loss_variables import ROOM
from shike_jax.training.trainable import trainable_mask

Array = jax.Array
PyTree = Any


@flax.struct.dataclass
class Course:
    """What runs of one program may differ in: arguments of the compiled step, which so serves any length and seed."""

    key: Any  # of the stage, uint32 as `jax.random.key_data` gives it
    epochs: Any  # this and the following: int32
    steps_per_epoch: Any
    steps: Any
    first_averaged: Any  # the first step whose weights count in a uniform average


@dataclasses.dataclass(frozen=True)
class Program:
    """What one stage does in a step."""

    network: Any  # a Flax module (`models.calling`), with the name of the device axis for global BN statistics
    stage: dict[str, Any]  # the fields of `config.stages.NAME`
    class_counts: Array  # [C] of the training split
    trainable: PyTree  # booleans like params: what the losses differentiate
    updated: PyTree  # and what the optimiser moves: the same unless frozen weights decay too
    optimizer: optax.GradientTransformation
    schedule: Callable[[Any], Any]  # step to learning rate, for reports; the optimiser has its own copy
    newest_share: Callable[[Array], Array] | None  # of the newest weights in their average, by the steps done
    course: Course  # numbers, or arguments of a compiled step (`during`)
    augment: Callable[..., Array]  # (images uint8 [b,H,W,3], keys [b], mask=[b]) to normalised float images

    @property
    def key(self) -> Array:
        return jax.random.wrap_key_data(self.course.key)

    def during(self, course: Course) -> Program:
        """The same program with another key and length."""
        return dataclasses.replace(self, course=course, **_depending_on_length(self.stage, course))


def check_stage(
    name: str, settings: ConfigDict, network: Any, sizes: tuple[int, int | None], class_counts: np.ndarray
) -> None:
    """Raises `UserError` for a stage's losses that cannot be computed, or a feature hook on a network without features.

    Nothing is computed; `sizes` are the network's (`models.sizes_of`).
    """
    check_losses(settings.loss, *sizes, class_counts, name_of(network))
    for hook, _ in FEATURE_HOOKS.active(settings):
        if not has_features(network):
            missing = f"network {name_of(network)!r} has no methods `features` and `classify`"
            raise UserError(f"config.stages.{name}.{hook.name}: {missing}, which a feature hook needs")


def trained_in(settings: ConfigDict, network: Any, params: PyTree) -> PyTree:
    """What a stage trains, as booleans like params; `UserError` for patterns that match no parameter."""
    # A set of classifiers that the stage does not use has no gradient: as in PyTorch, weight decay leaves it alone too.
    unused = [f"heads/{heads}/" for heads in models.HEAD_SETS if heads not in sets_used_by(network, settings.heads)]
    used = [entry.name for entry, _, _ in active_losses(settings.loss)]
    unused += [f"{ROOM}/{name}/" for name in params.get(ROOM, {}) if name not in used]
    return trainable_mask(params, settings.train, tuple(unused))


def make_program(
    settings: ConfigDict,
    network: Any,
    params: PyTree,
    class_counts: np.ndarray,
    augment: Callable[..., Array],
    key: Array,
    steps_per_epoch: int,
    steps: int,
) -> Program:
    """Builds the program of a stage from the fields of `config.stages.NAME`.

    The names of `params` (or shapes) decide what trains. `UserError` for patterns that match no parameter, an unknown
    schedule or optimiser.
    """
    trained = trained_in(settings, network, params)
    updated = jax.tree.map(lambda _: True, trained) if settings.decay_frozen else trained
    first_averaged = max(steps - settings.average_epochs * steps_per_epoch, 0) + 1
    lengths = map(np.int32, (settings.epochs, steps_per_epoch, steps, first_averaged))
    stage, course = to_plain(settings), Course(np.asarray(jax.random.key_data(key)), *lengths)
    given = {"network": network, "stage": stage, "class_counts": jnp.asarray(class_counts), "augment": augment}
    length = _depending_on_length(stage, course)
    return Program(**given, trainable=trained, updated=updated, course=course, **length)


def _depending_on_length(stage: dict[str, Any], course: Course) -> dict[str, Any]:
    """The fields of `Program` that follow from the stage's length: schedule, optimiser, share in the average."""
    factor = scale(stage["lr_scaling"], stage["batch_size"], stage["base_batch_size"])
    lr, warmup_lr, warmup_steps = factor * stage["lr"], factor * stage["warmup_lr"], stage["warmup_steps"]
    warmup_epochs = 0 if warmup_steps else stage["warmup_epochs"]
    length = StageLength(lr, course.epochs, course.steps_per_epoch, warmup_lr, warmup_epochs)
    schedule = _with(SCHEDULES[stage["schedule"]].call, length)
    if warmup_steps:
        schedule = warmed_up(schedule, warmup_lr, warmup_steps)
    newest_share = None
    if stage["average"] != "none":
        chosen = AverageSettings(stage["average_decay"], course.first_averaged)
        newest_share = _with(AVERAGES[stage["average"]].call, chosen)
    options = stage["momentum"], stage["weight_decay"], stage["optimizer_options"]
    optimizer = make_optimizer(stage["optimizer"], computed_once(schedule), *options)
    return {"schedule": schedule, "optimizer": optimizer, "newest_share": newest_share}


def _with(function: Callable[[Array, Any], Array], settings: Any) -> Callable[[Array], Array]:
    return lambda step: function(step, settings)
