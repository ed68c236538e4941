"""What a run trains, and on which data: all that follows from its configuration, wherever and however far it runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.data.types import Source
from shike_jax.data.views import device_augment, images_seen
from shike_jax.methods.scores import check_scores
from shike_jax.training import randomness
from shike_jax.training.compiled_steps import gains_by_onednn
from shike_jax.training.loss_variables import with_losses
from shike_jax.training.plan import StagePlan, plan_stages
from shike_jax.training.program import Program, check_stage, make_program

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Stage(StagePlan):
    """A stage that is trained: its place and length, and what its steps do."""

    program: Program


@dataclasses.dataclass(frozen=True)
class Task:
    """A configuration and its data, and what both decide together: the network, the stages, the first variables."""

    config: ConfigDict
    source: Source

    @functools.cached_property
    def plans(self) -> tuple[StagePlan, ...]:
        """The plan of each stage, in order."""
        return plan_stages(self.config, len(self.labels))

    @functools.cached_property
    def network(self) -> Any:
        return network_of(self.config, self.source.split.num_classes)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the training examples, int32 [N]."""
        return self.source.split.parts["train"].labels

    def first_variables(self, warm: Callable[[PyTree], PyTree] | None = None) -> PyTree:
        """The variables {`params`, `batch_stats`} that training begins with, on the host, those of losses included.

        `warm` puts the weights of another run in place of the network's own. Raises `UserError` for a network, score,
        loss or feature hook of the stages that does not work with the others.
        """
        split, images = self.source.split, images_seen(self.source, self.config)
        variables = models.init_variables(self.network, self.config.seed, images)
        sizes = models.sizes_of(self.network, variables, images, split.num_classes)
        check_scores(split.num_classes, split.divisions, sizes[0])
        if warm is not None:
            variables = warm(variables)
        stages = [plan.settings for plan in self.plans]
        for plan in self.plans:
            check_stage(plan.name, plan.settings, self.network, sizes, split.class_counts)
        variables = with_losses(variables, stages, sizes, split.class_counts, self.config.seed)
        return jax.tree.map(np.asarray, variables)

    def by_onednn(self, index: int) -> bool:
        """Whether oneDNN is to compute the convolutions of a stage's steps, where JAX can call it."""
        config, batch = self.config, self.plans[index].settings.batch_size
        ours = config.train.onednn and config.dtype == "float32" and isinstance(self.network, models.ExpertNetwork)
        return ours and gains_by_onednn((batch, *images_seen(self.source, config).shape[1:]))

    def stage(self, index: int, params: PyTree) -> Stage:
        """A stage with its program; `params` (or shapes) give the names of the parameters."""
        return make_stage(self.config, self.plans[index], self.network, params, self.source.split.class_counts)


def network_of(config: ConfigDict, classes: int) -> Any:
    """The network of a run, with the device axis of its BN statistics."""
    axis = parallel.bn_axis(config.train.sync_bn, config.train.bn_group)
    return models.build_model(config.model, classes, dtype=jnp.dtype(config.dtype), axis_name=axis)


def make_stage(
    config: ConfigDict, plan: StagePlan, network: Any, params: PyTree, class_counts: np.ndarray, platform: str = ""
) -> Stage:
    """A planned stage with its program, as `Task.stage`.

    `platform` is what the steps are compiled for; empty: the one that JAX computes on.
    """
    augment = device_augment(config, jnp.dtype(config.dtype), platform)
    key = randomness.stage_key(config.seed, plan.index)
    lengths = plan.steps_per_epoch, plan.steps
    program = make_program(plan.settings, network, params, class_counts, augment, key, *lengths)
    return Stage(**vars(plan), program=program)
