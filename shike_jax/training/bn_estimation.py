"""The variables that a stage is judged by and hands over: the last ones, or averaged ones with BN estimated again.

Averaged weights have no BN statistics of their own: the running ones belong to the weights of the last steps. So one
pass over the training images estimates them before anything is evaluated, saved as weights or handed over (stochastic
weight averaging does the same: Izmailov et al. 2018, sec. 3.2). The images are augmented as in training, but not mixed:
running averages are of augmented images too, and with strong augmentation those of plain images cost accuracy
(docs/methods.md has a measurement). They are shuffled, because the files of a folder come class by class, and pass in
batches of the stage's size; each batch is normalised with its own statistics. The estimate is the mean and the unbiased
variance over all positions of all images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shike_jax.cluster import parallel
from shike_jax.cluster.axis import axis_size
from shike_jax.common.progress import Update, hidden
from shike_jax.data import sampling
from shike_jax.data.feeds import Feed
from shike_jax.errors import UserError
from shike_jax.models.calling import has_features, name_of
from shike_jax.models.layers import MOMENTS
from shike_jax.training import randomness, steps, trainable
from shike_jax.training.loss_variables import of_network
from shike_jax.training.setup import Run
from shike_jax.training.state import TrainState, variables_of
from shike_jax.training.task import Stage

PyTree = Any


def make_outcome(run: Run, stage: Stage) -> Callable[[TrainState], PyTree]:
    """Returns a function of a state to the variables that are evaluated, saved and handed over; both replicated."""
    if stage.program.newest_share is None:
        return variables_of
    settings = stage.settings
    key = randomness.reestimation_key(stage.program.key)
    plan = sampling.epoch_plan("shuffle", key, 0, run.labels, settings.batch_size, True)

    def augmented(batch: steps.Batch, key: jax.Array) -> jax.Array:
        return steps.augmented(stage.program, batch["image"], batch["mask"], key, "augment")

    modes = {"train_trunk": settings.bn_trunk == "batch", "train_experts": settings.bn_experts == "batch"}
    views = randomness.host_seed(run.config.seed, stage.index, settings.epochs)  # of an epoch that does not train
    estimate = make_estimate(run.network, run.feeds["train"], plan, augmented, modes, key, views, run.log.meter)

    def outcome(state: TrainState) -> PyTree:
        params = trainable.merge(state.average, state.params)
        with run.timed("evaluate"):
            batch_stats = estimate({"params": params, "batch_stats": state.batch_stats})
        return {"params": params, "batch_stats": batch_stats}

    return outcome


def make_estimate(
    network: Any,
    feed: Feed,
    plan: sampling.Plan,
    images_of: Callable[[steps.Batch, jax.Array], jax.Array],
    modes: dict[str, bool],
    key: jax.Array,
    views: int | None = None,
    meter: Callable[[str, int], AbstractContextManager[Update]] = hidden,
) -> Callable[[PyTree], PyTree]:
    """Returns a function of replicated variables to BN statistics estimated again, replicated.

    Args:
      images_of: (a device's batch, a key for the global batch) to the images [b,H,W,3] that the network sees.
      modes: `train_trunk` and `train_experts`: which parts are estimated; the others keep their statistics.
      key: of the pass; an argument of the compiled program, which serves every seed.
      views: seed of the host's training views; None: evaluation views.
    """

    def step(given: tuple[PyTree, jax.Array], data: PyTree, inputs: PyTree) -> PyTree:
        variables, of_batch = given
        batch = feed.fetch(data, jax.tree.map(lambda x: x[0], inputs))
        images = images_of(batch, jax.random.wrap_key_data(of_batch))
        method = "features" if has_features(network) else None
        _, found = network.apply(variables, images, **modes, mask=batch["mask"], method=method, mutable=[MOMENTS])
        # With an axis the layers have summed over its devices already; those of devices or groups are summed here.
        sums, axis = found.get(MOMENTS, {}), getattr(network, "axis_name", None)
        if axis == parallel.AXIS:
            return sums
        return jax.tree.map(lambda total: total / axis_size(axis), parallel.psum(sums))

    call = parallel.compile_step(step, replicated_in=(True, True, False), donate=False)

    def estimate(variables: PyTree) -> PyTree:
        stats, totals = parallel.to_host(variables["batch_stats"]), None
        if not any(modes.values()) or not of_network({"": stats})[""]:
            return variables["batch_stats"]
        with meter("estimating BN statistics", len(plan["mask"])) as update:
            for done, (_, inputs) in enumerate(feed.calls(plan, 0, 1, views), 1):
                of_batch = np.asarray(jax.random.key_data(randomness.step_key(key, done - 1)))
                given = variables, parallel.replicate(of_batch)
                sums = parallel.to_host(call(given, feed.data, inputs))  # waits: calls in flight can starve a CPU
                sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
                totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
                update(done)
        if not totals:
            raise UserError(
                f"network {name_of(network)!r}: averaged weights need its batch statistics estimated again; expected "
                "shike_jax.models.layers.BatchNorm, or config.stages.NAME.average='none'"
            )
        return parallel.replicate(with_moments(stats, totals))

    return estimate


def with_moments(batch_stats: PyTree, sums: PyTree) -> PyTree:
    """BN statistics (each layer has `mean` and `var` [C]) with those replaced whose sums are given.

    `sums` has for a layer `total` [C], `squares` [C] and `count` [] of the values that it received.
    """
    flat, found = flatten_dict(batch_stats, sep="/"), flatten_dict(sums, sep="/")
    new = dict(flat)
    for layer in {path.rpartition("/")[0] for path in found}:
        total, squares, count = (found[f"{layer}/{name}"] for name in ("total", "squares", "count"))
        mean = total / count
        var = np.maximum(squares / count - mean * mean, 0) * count / max(count - 1, 1)
        for name, value in (("mean", mean), ("var", var)):
            new[f"{layer}/{name}"] = value.astype(flat[f"{layer}/{name}"].dtype)
    return unflatten_dict(new, sep="/")
