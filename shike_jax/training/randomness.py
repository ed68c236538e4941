"""Every random number of training: one table of roles, and the keys that follow from (seed, stage, step, role).

Nothing else holds a random state. The batch at a step, its augmentation and its mixing are functions of these numbers,
so a restored run continues exactly, and any number of devices and processes sees the same global batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.methods.loss_registry import number_of

Array = jax.Array

# Roles within a step: folded into the key of the step. Mixings may have a number of their own, below 10.
ROLES = {
    "augment": 0,
    "augment_partner": 1,
    "partners": 2,
    "feature_hooks": 3,
    "which_mixing": 5,
    "losses": 6,
    "views": 7,
    "mixings": 8,
    "network": 9,
}
# The order of a stage's examples is drawn from the key of the stage, under a number that no step reaches.
ORDER = 2**31 - 1
# So are order and augmentation of the images that BN statistics are estimated on.
REESTIMATION = 2**31 - 2


def stage_key(seed: int, stage_index: int) -> Array:
    """The key of a stage."""
    return jax.random.fold_in(jax.random.key(seed), stage_index)


def order_key(stage: Array) -> Array:
    """The key that the plans of a stage's epochs are drawn from."""
    return jax.random.fold_in(stage, ORDER)


def reestimation_key(stage: Array) -> Array:
    """The key of the pass over the images on which a stage's BN statistics are estimated again."""
    return jax.random.fold_in(stage, REESTIMATION)


def step_key(stage: Array, step: Array | int) -> Array:
    """The key of a step, counted from the stage's start."""
    return jax.random.fold_in(stage, step)


def role_key(step: Array, role: str) -> Array:
    """The key of one role (`ROLES`) in a step, the same on all devices."""
    return jax.random.fold_in(step, ROLES[role])


def mixing_key(step: Array, name: str, number: int | None) -> Array:
    """The key of a mixing, the same on all devices: by the number of its own where it has one, else by its name."""
    if number is not None:
        return jax.random.fold_in(step, number)
    return jax.random.fold_in(role_key(step, "mixings"), number_of(name))


def hook_key(step: Array, place: int) -> Array:
    """The key of a stage's feature hook at `place`, the same on all devices."""
    key = role_key(step, "feature_hooks")
    return key if place == 0 else jax.random.fold_in(key, place)


def example_keys(step: Array, role: str, first: Array | int, count: int, number: int = 0) -> Array:
    """The keys [count] of examples at positions first, first + 1, ...; `number` tells uses of one role apart."""
    key = role_key(step, role)
    key = jax.random.fold_in(key, number) if number else key
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(first + jnp.arange(count))


def host_seed(seed: int, stage_index: int, epoch: int) -> int:
    """The seed of the host pipeline's views in one epoch."""
    return int(np.random.SeedSequence([seed, stage_index, epoch]).generate_state(1)[0])
