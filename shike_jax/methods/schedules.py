"""Learning rates over a stage: pure functions of the step, counted from the stage's start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from shike_jax.methods.registry import Option, Registry

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class StageLength:
    """What a schedule knows of its stage.

    Attributes:
      lr: peak learning rate.
      epochs: length of the stage, T; in a training step an argument, int32 [], so that one compiled step serves runs of
        every length. A schedule computes with it and asks no Python `if` of it.
      steps_per_epoch: optimiser steps in an epoch; in a training step int32 [] too.
      warmup_lr: learning rate that a warm-up starts from.
      warmup_epochs: length of the warm-up.
    """

    lr: float
    epochs: int | Array
    steps_per_epoch: int | Array
    warmup_lr: float = 0.0
    warmup_epochs: int = 0


Schedule = Callable[[Array, StageLength], Array]
SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    "(step int32 [], stage: StageLength) to the learning rate float []",
    inputs=StageLength,
    given=2,
    parameters=False,
    lowest_start=Option(
        None, "with a warm-up: a function of the stage to the smallest `warmup_lr` that leaves no rate below 0"
    ),
)


def lowest_start(stage: StageLength) -> float:
    """The `warmup_lr` at which the first epoch of `warmup_cosine` has learning rate 0; below that it is negative."""
    return stage.lr / max(stage.warmup_epochs, 2) if stage.warmup_epochs else 0.0


def scale(rule: str, batch_size: int, base_batch_size: int) -> float:
    """What learning rates are multiplied with for another batch size than the one that they are meant for.

    The rule is `linear` (Goyal et al., arXiv 1706.02677), `sqrt` (Krizhevsky, arXiv 1404.5997) or `none`.
    """
    ratio = batch_size / base_batch_size if rule != "none" else 1.0
    return math.sqrt(ratio) if rule == "sqrt" else ratio


def warmed_up(schedule: Callable[[Array], Array], start: float, steps: int) -> Callable[[Array], Array]:
    """A schedule that rises from `start` in the first `steps` steps, in each by the same share of what it is there."""

    def rising(step: Array) -> Array:
        share = jnp.minimum((step + 1) / steps, 1)
        return start + (schedule(step) - start) * share

    return rising


def computed_once(schedule: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same schedule for use in a compiled step, kept out of the update of every parameter.

    XLA's CPU backend fuses the arithmetic of a scalar into all loops that use it: the cosine would be compiled, and
    computed, once for each parameter. It does not fuse what a condition chooses.
    """

    def on_cpu(step: Array) -> Array:
        return jax.lax.cond(step < 0, lambda step: jnp.zeros_like(schedule(step)), schedule, step)

    return lambda step: jax.lax.platform_dependent(jnp.asarray(step), cpu=on_cpu, default=schedule)


@SCHEDULES.register("warmup_cosine", lowest_start=lowest_start)
def warmup_cosine(step: Array, stage: StageLength) -> Array:
    """The authors' code, set once per epoch e.

    `warmup_lr + (lr - warmup_lr) (e - 1) / 4` for e < 5 (`warmup_epochs`), then
    `lr (1 + cos(pi (e - 5) / (T - 5))) / 2`. The warm-up is at `warmup_lr` in its second epoch, and below in its first.
    """
    epoch, warmup = step // stage.steps_per_epoch, stage.warmup_epochs
    rising = stage.warmup_lr + (stage.lr - stage.warmup_lr) / max(warmup - 1, 1) * (epoch - 1)
    falling = stage.lr * 0.5 * (1 + jnp.cos(math.pi * (epoch - warmup) / jnp.maximum(stage.epochs - warmup, 1)))
    return jnp.where(epoch < warmup, rising, falling)


@SCHEDULES.register("cosine")
def cosine(step: Array, stage: StageLength) -> Array:
    """The paper's: `lr (1 + cos(pi e / T)) / 2`, set once per epoch e."""
    epoch = step // stage.steps_per_epoch
    return stage.lr * 0.5 * (1 + jnp.cos(math.pi * epoch / stage.epochs))


@SCHEDULES.register("cosine_per_step")
def cosine_per_step(step: Array, stage: StageLength) -> Array:
    """The cosine to 0, set every step."""
    return stage.lr * 0.5 * (1 + jnp.cos(math.pi * step / (stage.epochs * stage.steps_per_epoch)))


@SCHEDULES.register("constant")
def constant(step: Array, stage: StageLength) -> Array:
    """The peak learning rate throughout."""
    return jnp.full((), stage.lr)
