"""Training and evaluation steps: pure per-device functions, and their compilation over devices and steps.

A batch is a dict of arrays of one device's share: `image` uint8 [b,H,W,3], `label` int32 [b], `mask` float32 [b]
(1 = real example), and `image2`, `label2` when batches come in pairs. Randomness is a function of (seed, step, role,
position in the global batch), never of the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from shike_jax.cluster import parallel
from shike_jax.methods import losses
from shike_jax.methods.exchange import exchange_channels
from shike_jax.models import ExpertNetwork
from shike_jax.training import metrics, optim
from shike_jax.training.state import TrainState, variables_of

Array = jax.Array
PyTree = Any
Batch = dict[str, Array]
ROLES = {"augment": 0, "augment2": 1, "mixup": 2, "exchange": 3}


@dataclasses.dataclass(frozen=True)
class Program:
    """What one stage does in a step: everything that stays the same from step to step.

    Attributes:
      network: with the pmapped axis' name for global BN statistics.
      stage: the fields of `config.stages.NAME` as a plain dict.
      class_counts: [C] of the training split.
      trainable: booleans like params: what the losses differentiate.
      updated: booleans like params: what the optimiser moves; equal to `trainable` unless frozen weights decay too.
      optimizer: from `optim.sgd`.
      schedule: step to learning rate.
      augment: (images uint8 [b,H,W,3], keys [b], mask=[b]) to normalised float images.
      key: PRNG key of the stage.
    """

    network: ExpertNetwork
    stage: dict[str, Any]
    class_counts: Array
    trainable: PyTree
    updated: PyTree
    optimizer: optax.GradientTransformation
    schedule: Callable[[Array], Array]
    augment: Callable[..., Array]
    key: Array


def train_step(program: Program, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array], Array]:
    """One optimiser step on this device's share of the batch.

    Returns:
      The new state; sums over the global batch: `count`, `loss` and each loss term (times count), `correct`; and the
      augmented, normalised images [b,H,W,3] that the network saw.
    """
    key = jax.random.fold_in(program.key, state.step)
    total = jnp.maximum(parallel.psum(jnp.sum(batch["mask"])), 1)

    def objective(trained: PyTree) -> tuple[Array, tuple[PyTree, dict[str, Array], Array]]:
        params = optim.merge(trained, optim.select(state.params, program.trainable, False))
        logits, batch_stats, mixed, seen = _forward(program, params, state.batch_stats, batch, key)
        terms = _loss_terms(program, logits, batch, mixed)
        sums = {name: jnp.sum(value * batch["mask"]) for name, value in terms.items()}
        correct = jnp.argmax(jnp.mean(logits, 0), -1) == batch["label"]
        sums["correct"] = jnp.sum(correct * batch["mask"])
        sums["count"] = jnp.sum(batch["mask"])
        return sums["loss"] / total, (batch_stats, sums, seen)

    trained = optim.select(state.params, program.trainable)
    grads, (batch_stats, sums, seen) = jax.grad(objective, has_aux=True)(trained)
    # Each device differentiated its own share of the global mean, so the shares add up.
    grads, sums = parallel.psum((grads, sums))
    if not _is_global(program.network):
        # Per-device statistics: running averages agree again by averaging over the devices.
        batch_stats = jax.tree.map(lambda x: parallel.psum(x) / parallel.psum(1), batch_stats)
    return _update(program, state, grads, batch_stats), sums, seen


def _update(program: Program, state: TrainState, grads: PyTree, batch_stats: PyTree) -> TrainState:
    """SGD: weight decay and momentum from optax, times the learning rate of this step."""
    moved = optim.select(state.params, program.updated)
    grads = optim.select(optim.merge(grads, jax.tree.map(jnp.zeros_like, state.params)), program.updated)
    updates, opt_state = program.optimizer.update(grads, state.opt_state, moved)
    rate = program.schedule(state.step)
    moved = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), moved, updates)
    params = optim.merge(moved, optim.select(state.params, program.updated, False))
    return TrainState(state.step + 1, params, batch_stats, opt_state)


def _forward(
    program: Program, params: PyTree, batch_stats: PyTree, batch: Batch, key: Array
) -> tuple[Array, PyTree, tuple[Array, Array] | None, Array]:
    """Augments and runs the network: logits [M,b,C], new BN statistics, (lam, partner labels) when mixed, its input."""
    stage, network, mask = program.stage, program.network, batch["mask"]
    images = _augmented(program, batch["image"], mask, key, "augment")
    mixed = None
    if stage["mixup"]:
        images, mixed = _mix(images, batch, jax.random.fold_in(key, ROLES["mixup"]), stage["mixup"])

    def features(images: Array, batch_stats: PyTree) -> tuple[list[Array], PyTree]:
        train = {"train_trunk": stage["bn_trunk"] == "batch", "train_experts": stage["bn_experts"] == "batch"}
        found, new = network.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            **train,
            mask=mask,
            method="features",
            mutable=["batch_stats"],
        )
        return found["fused"], new["batch_stats"]

    fused, batch_stats = features(images, batch_stats)
    if stage["exchange"]:
        others = _augmented(program, batch["image2"], mask, key, "augment2")
        others, batch_stats = features(others, batch_stats)
        fused = exchange_channels(jax.random.fold_in(key, ROLES["exchange"]), fused, others, stage["exchange"])
    logits = network.apply({"params": params}, fused, stage["heads"], method="classify")
    return logits, batch_stats, mixed, images


def _loss_terms(program: Program, logits: Array, batch: Batch, mixed: tuple[Array, Array] | None) -> dict[str, Array]:
    """The weighted total (`loss`) and each unweighted term that has a weight, per example [b]."""
    weights, labels = program.stage["loss"], batch["label"]
    functions = {
        "ce": lambda y: losses.cross_entropy(logits, y),
        "balanced": lambda y: losses.balanced_softmax(logits, y, program.class_counts),
        "nt": lambda y: losses.non_target_distillation(logits, y, weights["form"]),
        "mu": lambda y: losses.mutual_distillation(logits, weights["form"]),
    }
    terms = {}
    for name, function in functions.items():
        if weights[name]:
            terms[name] = function(labels)
            if mixed is not None and name != "mu":
                lam, partner_labels = mixed
                terms[name] = lam * terms[name] + (1 - lam) * function(partner_labels)
    return {"loss": sum(weights[name] * value for name, value in terms.items()), **terms}


def _augmented(program: Program, images: Array, mask: Array, key: Array, role: str) -> Array:
    """Normalised images, each augmented by the key of its position in the global batch."""
    key = jax.random.fold_in(key, ROLES[role])
    position = parallel.device_index() * len(images) + jnp.arange(len(images))
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(position)
    return program.augment(images, keys, mask=mask)


def _mix(images: Array, batch: Batch, key: Array, alpha: float) -> tuple[Array, tuple[Array, Array]]:
    """Mixup within the global batch: every real example meets a real one, one lam for all (Zhang et al. 2018)."""
    from shike_jax.augment import mixup

    lam_key, order_key = jax.random.split(key)
    everyone = {"image": images, "label": batch["label"], "mask": batch["mask"]}
    everyone = jax.tree.map(lambda x: lax.all_gather(x, parallel.AXIS, tiled=True), everyone)
    real = everyone["mask"] > 0
    drawn = jnp.argsort(jnp.where(real, jax.random.uniform(order_key, real.shape), 2.0))
    partner = jnp.zeros_like(drawn).at[jnp.argsort(~real, stable=True)].set(drawn)
    here = parallel.device_index() * len(images) + jnp.arange(len(images))
    partner = partner[here]
    mixed, lam = mixup(lam_key, images, everyone["image"][partner], alpha)
    return mixed, (lam, everyone["label"][partner])


def eval_step(network: ExpertNetwork, heads: str, transform: Callable, variables: PyTree, batch: Batch) -> PyTree:
    """Counts of `metrics.count_correct` over the global batch, running averages in BN."""
    logits = network.apply(variables, transform(batch["image"]), heads)
    return parallel.psum(metrics.count_correct(logits, batch["label"], batch["mask"]))


def compile_train(program: Program, fetch: Callable[[PyTree, PyTree], Batch], shown: int = 0) -> Callable:
    """Compiles (state, data, inputs) -> (state, sums) over all devices.

    Args:
      program: of the stage.
      fetch: turns (data, one step's inputs) into a batch; runs inside the compiled step.
      shown: when positive, the call also returns so many of the first step's images from each device, as the network
        saw them: [devices, shown, H, W, 3]. To augment them once more would mean to compile the augmentation again.

    Returns:
      A function of the replicated state (donated), the replicated data and inputs [devices, k, ...]: k steps in one
      call, k being free to vary. The sums are added over the k steps.
    """

    def call(state: TrainState, data: PyTree, inputs: PyTree) -> tuple[TrainState, PyTree, Array]:
        def one(state: TrainState, item: PyTree) -> tuple[TrainState, tuple[PyTree, Array]]:
            state, sums, seen = train_step(program, state, fetch(data, item))
            return state, (sums, seen[:shown])

        if len(jax.tree.leaves(inputs)[0]) == 1:  # XLA:CPU runs convolutions inside a scan many times slower
            state, (sums, seen) = one(state, jax.tree.map(lambda x: x[0], inputs))
        else:
            state, (sums, seen) = lax.scan(one, state, inputs)
            sums, seen = jax.tree.map(lambda x: jnp.sum(x, 0), sums), seen[0]
        return (state, sums, seen) if shown else (state, sums)

    out = (True, True, False) if shown else (True, True)
    return parallel.pmap_step(call, replicated_in=(True, True, False), replicated_out=out, donate=True)


def compile_eval(network: ExpertNetwork, heads: str, transform: Callable, fetch: Callable) -> Callable:
    """Compiles (state, data, inputs [devices, 1, ...]) -> summed counts over all devices."""

    def call(state: TrainState, data: PyTree, inputs: PyTree) -> PyTree:
        batch = fetch(data, jax.tree.map(lambda x: x[0], inputs))
        return eval_step(network, heads, transform, variables_of(state), batch)

    return parallel.pmap_step(call, replicated_in=(True, True, False), replicated_out=True, donate=False)


def _is_global(network: ExpertNetwork) -> bool:
    return network.axis_name is not None
