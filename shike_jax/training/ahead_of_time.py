"""The training and the evaluation step as programs for devices that are not there, from a configuration alone.

What is lowered is what a run compiles. No data are read: images, labels and weights
are shapes, and the numbers of images and classes are those of the published data sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.data.feeds import DeviceFeed
from shike_jax.data.splits import longtail_counts
from shike_jax.data.views import is_decoded_on_host
from shike_jax.errors import UserError
from shike_jax.evaluation.evaluator import PREDICT_CALL, make_predict, plain_views, predict_call
from shike_jax.methods import SAMPLERS
from shike_jax.methods.loss_registry import further_views
from shike_jax.training import compiled_steps
from shike_jax.training.loss_variables import with_losses
from shike_jax.training.plan import plan_stages
from shike_jax.training.state import TrainState
from shike_jax.training.task import make_stage, network_of
from shike_jax.training.trainable import select

PyTree = Any
# `config.data.name`: (classes, training images, evaluation images), as published; CIFAR before it is made long-tailed,
# and for digits numbers of the size that they have.
PUBLISHED = {
    "cifar10": (10, 50_000, 10_000),
    "cifar100": (100, 50_000, 10_000),
    "imagenet_lt": (1000, 115_846, 50_000),
    "places_lt": (365, 62_500, 36_500),
    "places365_small": (365, 62_500, 36_500),
    "i_naturalist2018": (8142, 437_513, 24_426),
    "digits": (10, 1_000, 300),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a compiled step depends on of the data."""

    class_counts: np.ndarray  # int64 [C] of the training images
    train: int  # images
    test: int


def published_sizes(config: ConfigDict, classes: int = 0, images: int = 0) -> Sizes:
    """Sizes of the configuration's data set; `classes` and `images` (training) win where they are given.

    `UserError` for a data set of unknown size, or a long-tailed rule that leaves a class without images.
    """
    data = config.data
    name = "digits" if data.source == "digits" else data.name
    if name not in PUBLISHED and not classes:
        raise UserError(
            f"config.data.name={data.name!r}: its size is not known; expected --classes=C and --images=N too"
        )
    known, train, test = PUBLISHED.get(name, (classes, 100 * classes, 10 * classes))
    count = classes or known
    if name.startswith("cifar") and data.profile != "natural" and not images:
        counts = longtail_counts(train // known, count, data.imbalance_factor, data.profile)
    else:
        counts = np.full(count, max((images or train) // count, 1), np.int64)
    return Sizes(counts, images or (int(counts.sum()) if name.startswith("cifar") else train), test)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What lowers a configuration's steps over given devices."""

    config: ConfigDict
    sizes: Sizes
    devices: Sequence[Any]  # to compile for
    platform: str  # of the devices, in JAX's terms

    @property
    def steps_per_call(self) -> int:
        """Optimiser steps of a training call: as configured, else one; `UserError` where the data forbid several."""
        steps = self.config.train.steps_per_call or 1
        if steps > 1 and is_decoded_on_host(self.config.data):
            expected = "0 or 1, as images that are decoded on the host come one batch a call"
            raise UserError(f"config.train.steps_per_call={steps}: expected {expected}")
        return steps

    def train(self, stage: str, batch: int) -> jax.stages.Lowered:
        """A call of a stage's optimiser steps: (state, data, inputs) -> (state, sums), the state donated.

        `batch` is the global number of images of a step; `UserError` if it cannot be split evenly.
        """
        network, config, counts = self._network(), self.config, self.sizes.class_counts
        stages, own = [config.stages[name] for name in config.run], self._variables()
        sizes = models.sizes_of(network, own, self._images())
        losses = jax.eval_shape(lambda: with_losses({}, stages, sizes, counts, config.seed))
        variables = {kind: {**tree, **losses[kind]} for kind, tree in own.items()}
        fields, plan = config.stages[stage], plan_stages(config, self.sizes.train)[config.run.index(stage)]
        # A compiled step serves any length.
        program = make_stage(config, plan, network, variables["params"], counts, self.platform).program
        moved = select(variables["params"], program.updated)
        opt_state = jax.eval_shape(program.optimizer.init, moved)
        average = moved if program.newest_share is not None else None
        step = jax.ShapeDtypeStruct((), jnp.int32)
        state = TrainState(step, variables["params"], variables["batch_stats"], opt_state, average)

        paired = bool(SAMPLERS[fields.sampler].options["partner"])
        views = further_views(fields.loss)
        inputs = self._inputs(batch, f"config.stages.{stage}.batch_size", paired, self.steps_per_call, views)
        arguments = state, (self._data(self.sizes.train), program.course), inputs
        return self._lower(compiled_steps.train_call(program, self._fetch), arguments, compiled_steps.TRAIN_CALL)

    def evaluate(self, heads: str, batch: int) -> jax.stages.Lowered:
        """One evaluation step: (variables, data, inputs) -> what is kept of each example; raises as `train`."""
        data = self.config.data
        predict = make_predict(
            self._network(), (heads,), plain_views(data.mean, data.std, jnp.dtype(self.config.dtype))
        )
        arguments = self._variables(), self._data(self.sizes.test), self._inputs(batch, "config.eval.batch_size")
        return self._lower(predict_call(predict, self._fetch), arguments, PREDICT_CALL)

    def _network(self) -> Any:
        return network_of(self.config, len(self.sizes.class_counts))

    def _variables(self) -> PyTree:
        found = jax.eval_shape(self._network().init, jax.random.key(0), self._images())
        return {"batch_stats": {}, **found}

    def _images(self) -> jax.ShapeDtypeStruct:
        size = self.config.data.image_size
        return jax.ShapeDtypeStruct((1, size, size, 3), jnp.dtype(self.config.dtype))

    def _data(self, images: int) -> PyTree:
        """What every device holds of a part: all of its images where they are small."""
        if is_decoded_on_host(self.config.data):
            return {}
        size = self.config.data.image_size
        return {
            "image": jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((images,), jnp.int32),
        }

    def _inputs(self, batch: int, field: str, paired: bool = False, steps: int = 1, views: int = 0) -> PyTree:
        """Shapes [devices, steps, b, ...] of what a call gets of the batches."""
        count, side = len(self.devices), self.config.data.image_size
        if batch % count:
            raise UserError(f"{field}={batch}: expected a multiple of the {count} devices")

        def shaped(*rest: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, steps, batch // count, *rest), dtype)

        mask = {"mask": shaped(dtype=jnp.float32)}
        if not is_decoded_on_host(self.config.data):
            return {"index": shaped(), **({"partner": shaped()} if paired else {}), **mask}
        pixels = shaped(side, side, 3, dtype=jnp.uint8)
        images: PyTree = {"image": pixels, "label": shaped()}
        further = {"views": (pixels,) * views} if views else {}
        return {**images, **({"partner": images} if paired else {}), **further, **mask}

    def _fetch(self, data: PyTree, inputs: PyTree) -> PyTree:
        return DeviceFeed.fetch(data, inputs) if data else inputs

    def _lower(self, call: Callable, arguments: Sequence[PyTree], how: Mapping[str, Any]) -> jax.stages.Lowered:
        return parallel.lower_step(call, arguments, devices=self.devices, platform=self.platform, **how)
