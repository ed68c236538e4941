"""The training step: a pure function of the program, the state and one device's share of a batch.

A batch is a dict of arrays of one device's share: `image` uint8 [b,H,W,3], `label` int32 [b], `mask` float32 [b]
(1 = real example), `partner` {`image`, `label`} when a sampler draws pairs, and `views`, a tuple of further `image`s,
when a loss wants several views of images that are cropped on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shike_jax.cluster import parallel
from shike_jax.methods import LossInputs
from shike_jax.methods.averaging import moved_average, uphill
from shike_jax.methods.feature_hooks import FEATURE_HOOKS, HookInputs, hooked
from shike_jax.methods.loss_calls import value_of
from shike_jax.methods.loss_registry import active_losses, further_views, number_of
from shike_jax.methods.mixing import MIXINGS, MixingInputs, mixed_by, partners
from shike_jax.models.calling import applied, has_features, pooled
from shike_jax.training import loss_variables, randomness, trainable
from shike_jax.training.program import Program
from shike_jax.training.state import TrainState

Array = jax.Array
PyTree = Any
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How a batch was mixed: with weight `lam` ([] or [b]) the images' own labels count, else the partners' [b]."""

    lam: Array
    partner_labels: Array


def train_step(program: Program, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on this device's share of the batch; under plain `jax.jit`, on the whole batch.

    Returns the new state, and sums over the global batch: `count`, `loss` and each loss term (times count), `correct`.
    """
    key = randomness.step_key(program.key, state.step)
    total = jnp.maximum(parallel.psum(jnp.sum(batch["mask"])), 1)
    seen = _seen(program, batch, key)

    def objective(trained: PyTree) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        params = trainable.merge(trained, trainable.select(state.params, program.trainable, False))
        inputs, batch_stats = _forward(program, params, state, batch, seen, key)
        terms, carried = loss_terms(program, params, state.batch_stats, inputs, seen.mixing, key)
        if carried:
            batch_stats = {**batch_stats, loss_variables.ROOM: carried}
        sums = {name: jnp.sum(value * batch["mask"]) for name, value in terms.items()}
        correct = jnp.argmax(jnp.mean(inputs.logits, 0), -1) == batch["label"]
        sums["correct"] = jnp.sum(correct * batch["mask"])
        sums["count"] = jnp.sum(batch["mask"])
        return sums["loss"] / total, (batch_stats, sums)

    trained = trainable.select(state.params, program.trainable)
    grads, (batch_stats, sums) = jax.grad(objective, has_aux=True)(trained)
    # Each device differentiated its own share of the global mean, so the shares add up.
    grads, sums = parallel.psum((grads, sums))
    if rho := program.stage["sam_rho"]:
        # SAM's second gradient. BN statistics and sums stay those of the weights themselves. optax.contrib.sam takes
        # the same step, but wraps the optimiser's state and divides by a gradient's norm even where it is 0.
        grads, _ = jax.grad(objective, has_aux=True)(uphill(trained, grads, rho))
        grads = parallel.psum(grads)
    apart = getattr(program.network, "axis_name", None) != parallel.AXIS  # each device's own, or those of its group
    uneven = {name: tree for name, tree in batch_stats.items() if apart or name == loss_variables.ROOM}
    batch_stats = {**batch_stats, **averaged_over_devices(uneven, batch["mask"])}
    return update(program, state, grads, batch_stats), sums


def averaged_over_devices(batch_stats: PyTree, mask: Array) -> PyTree:
    """Running averages that each device has of its own: their mean over the devices with real examples.

    Whole numbers, such as counters, are left as they are.
    """
    real = jnp.any(mask > 0)

    def mean(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return parallel.psum(x * real) / jnp.maximum(parallel.psum(real.astype(x.dtype)), 1)

    return jax.tree.map(mean, batch_stats)


def update(program: Program, state: TrainState, grads: PyTree, batch_stats: PyTree) -> TrainState:
    """The state after the optimiser has seen the gradients of the trainable parameters (None for the others)."""
    moved = trainable.select(state.params, program.updated)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads = trainable.select(trainable.merge(grads, zeros), program.updated)
    updates, opt_state = program.optimizer.update(grads, state.opt_state, moved)
    moved = optax.apply_updates(moved, updates)
    params = trainable.merge(moved, trainable.select(state.params, program.updated, False))
    average = state.average
    if program.newest_share is not None:
        average = moved_average(average, moved, program.newest_share(state.step + 1))
    return TrainState(state.step + 1, params, batch_stats, opt_state, average)


def loss_terms(
    program: Program, params: PyTree, batch_stats: PyTree, inputs: LossInputs, mixing: Mixing | None, key: Array
) -> tuple[dict[str, Array], dict[str, PyTree]]:
    """The losses of this device's share of a batch, from variables with those of losses that are modules.

    Returns the weighted total (`loss`) and each unweighted term that has a weight, per example [b]; and {name:
    {collection: tree}}, what the losses that carry variables from step to step have made of them, those of other
    stages included.
    """
    total, terms, carried = jnp.zeros_like(inputs.labels, inputs.logits.dtype), {}, {}
    first, count = parallel.device_index() * len(inputs.labels), len(inputs.labels)
    for entry, weight, parameters in active_losses(program.stage["loss"]):
        own = dataclasses.replace(
            inputs,
            key=randomness.example_keys(key, "losses", first, count, number_of(entry.name)),
            views=inputs.views[: entry.options["views"] - 1],
        )
        variables = loss_variables.of_loss(entry.name, params, batch_stats)
        value, after = value_of(entry, own, parameters, variables)
        if after:
            carried[entry.name] = after
        if mixing is not None and entry.options["uses_labels"] and not entry.options["module"]:
            other, _ = value_of(entry, dataclasses.replace(own, labels=mixing.partner_labels), parameters)
            value = mixing.lam * value + (1 - mixing.lam) * other
        terms[entry.name] = value
        total = total + weight * value
    return {"loss": total, **terms}, {**batch_stats.get(loss_variables.ROOM, {}), **carried}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the network sees of a batch: augmented and mixed. No gradient flows through it."""

    images: Array  # normalised [b,H,W,3]
    partners: Any  # the same of the images that a sampler of pairs has drawn; None where nothing asks for them
    views: tuple[Array, ...]  # further augmented copies of the images, as many as the losses ask for
    mixing: Mixing | None


def _seen(program: Program, batch: Batch, key: Array) -> Seen:
    """Augments and mixes this device's share of a batch; `key` is that of the step."""
    stage, mask = program.stage, batch["mask"]
    mixings = MIXINGS.active(stage)
    images, mixing, partner_images = augmented(program, batch["image"], mask, key, "augment"), None, None
    drawn_with: list[Any] = [*mixings, *FEATURE_HOOKS.active(stage)]
    if any(entry.options["pairs"] for entry, _ in drawn_with):
        partner_images = augmented(program, batch["partner"]["image"], mask, key, "augment_partner")
    if mixings:
        images, mixing = _mix(program, images, partner_images, batch, key)
    views = []
    for number in range(further_views(stage["loss"])):
        pixels = batch["views"][number] if "views" in batch else batch["image"]
        views.append(augmented(program, pixels, mask, key, "views", number=number + 1))
    return Seen(images, partner_images, tuple(views), mixing)


def _forward(
    program: Program, params: PyTree, state: TrainState, batch: Batch, seen: Seen, key: Array
) -> tuple[LossInputs, PyTree]:
    """Runs the network on what it sees of a batch: what the losses receive, and the new BN statistics."""
    stage, network, mask = program.stage, program.network, batch["mask"]
    modes = {"train_trunk": stage["bn_trunk"] == "batch", "train_experts": stage["bn_experts"] == "batch"}
    # What a network draws for itself (dropout) is each device's own.
    drawn = {"dropout": jax.random.fold_in(randomness.role_key(key, "network"), parallel.device_index())}

    def run(images: Array, batch_stats: PyTree, **how: Any) -> tuple[Any, PyTree]:
        variables = {"params": params, "batch_stats": batch_stats}
        found, new = applied(network, variables, images, **modes, mask=mask, mutable=["batch_stats"], rngs=drawn, **how)
        return found, new.get("batch_stats", batch_stats)

    def features(images: Array, batch_stats: PyTree) -> tuple[list[Array], PyTree]:
        found, new = run(images, batch_stats, method="features")
        return found["fused"], new

    batch_stats = {name: tree for name, tree in state.batch_stats.items() if name != loss_variables.ROOM}
    views: list[Array] = []
    pooled_features: Any = None
    if not has_features(network):
        logits, batch_stats = run(seen.images, batch_stats, heads=stage["heads"])
    else:
        fused, batch_stats = features(seen.images, batch_stats)
        partner, hooks = None, FEATURE_HOOKS.active(stage)
        if any(entry.options["pairs"] for entry, _ in hooks):
            partner, batch_stats = features(seen.partners, batch_stats)
        for place, (entry, strength) in enumerate(hooks):
            fused = hooked(entry, HookInputs(fused, partner, randomness.hook_key(key, place), strength))
        for view in seen.views:
            maps, batch_stats = features(view, batch_stats)
            views.append(pooled(maps))
        logits = applied(network, {"params": params}, fused, stage["heads"], method="classify")
        pooled_features = pooled(fused)
    inputs = LossInputs(
        logits=logits,
        features=pooled_features,
        labels=batch["label"],
        class_counts=program.class_counts,
        progress=state.step / program.course.steps,
        mask=mask,
        views=tuple(views),
        gather=parallel.all_gather,
    )
    return inputs, batch_stats


def augmented(
    program: Program, images: Array, mask: Array, key: Array, role: str, first: Any = None, number: int = 0
) -> Array:
    """Normalised images [b,H,W,3], each augmented by the key of its position in the global batch.

    `first` is the position of the first image; None: where this device's share of the batch begins.
    """
    first = parallel.device_index() * len(images) if first is None else first
    return program.augment(images, randomness.example_keys(key, role, first, len(images), number), mask=mask)


def _mix(program: Program, images: Array, partner_images: Any, batch: Batch, key: Array) -> tuple[Array, Mixing]:
    """Mixes by one of the stage's mixings: with images that a sampler of pairs has drawn, else within the global batch,
    where every real example has a real partner."""
    mixings, pairs = MIXINGS.active(program.stage), partner_images is not None
    if pairs:
        others, labels = partner_images, batch["partner"]["label"]
    else:
        everyone = parallel.all_gather({"label": batch["label"], "mask": batch["mask"]})
        # The order has always been drawn from the second half of this role's key: other draws would change old runs.
        _, order_key = jax.random.split(randomness.role_key(key, "partners"))
        here = parallel.device_index() * len(images) + jnp.arange(len(images))
        partner = partners(order_key, everyone["mask"])[here]
        others, labels = parallel.rows_of_all(images, partner), everyone["label"][partner]

    def mixed(entry: Any, strength: float) -> tuple[Array, Array]:
        first = parallel.device_index() * len(images)
        own = randomness.example_keys(key, "mixings", first, len(images), number_of(entry.name))
        inputs = MixingInputs(
            images=images,
            labels=batch["label"],
            partners=others,
            partner_labels=labels,
            class_counts=program.class_counts,
            key=randomness.mixing_key(key, entry.name, entry.options["draws"]),
            keys=own,
            strength=strength,
        )
        return mixed_by(entry, inputs)

    found, share = mixed(*mixings[-1])
    which = randomness.role_key(key, "which_mixing")
    for place, (entry, strength) in reversed(list(enumerate(mixings[:-1]))):
        # Each of the n from this one on: this one with probability 1 / n.
        count = len(mixings) - place
        take = jax.random.bernoulli(jax.random.fold_in(which, place) if place else which, 1 / count)
        other, own_share = mixed(entry, strength)
        found = jnp.where(take, other, found)
        share = jnp.where(take, own_share, share)
    return found, Mixing(share, labels)


def preview(
    program: Program, fetch: Callable[[PyTree, PyTree], Batch], data: PyTree, item: PyTree, count: int
) -> Array:
    """The first images of a stage's first batch as the network sees them before mixing: [count,H,W,3], normalised.

    `item` is what the first device gets of the step's inputs.
    """

    def show(data: PyTree, item: PyTree, key: Array) -> Array:
        batch = fetch(data, item)
        images, mask = batch["image"][:count], batch["mask"][:count]
        return augmented(program, images, mask, key, "augment", first=0)

    return jax.jit(show)(data, item, randomness.step_key(program.key, 0))
