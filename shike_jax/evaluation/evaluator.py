"""Scoring one part of the data: the same evaluator during training and for a checkpoint afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from shike_jax.augment import make_eval_transform
from shike_jax.cluster import parallel
from shike_jax.common.progress import Update, unseen
from shike_jax.data import sampling
from shike_jax.data.feeds import Feed
from shike_jax.evaluation import metrics
from shike_jax.evaluation.classifier import mirrored
from shike_jax.models import ExpertNetwork

Arrays = dict[str, np.ndarray]
PyTree = Any


class Evaluator:
    """Runs a network over one part of a split, on all devices, with running averages in batch normalisation."""

    def __init__(
        self,
        network: ExpertNetwork,
        feed: Feed,
        examples: int,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        announced: Callable[[Callable], Callable] = lambda call: call,
        mirror: bool = False,
    ) -> None:
        """Nothing is compiled yet.

        Args:
          feed: of the part.
          examples: in the part.
          batch_size: global; rounded up to a multiple of the devices.
          mean, std: of the RGB values in 0..1.
          announced: wraps a compiled function, whose first call takes long.
          mirror: as for `make_predict`.
        """
        devices = jax.device_count()
        self._network, self._feed = network, feed
        self._mean, self._std, self._mirror = mean, std, mirror
        self._plan = sampling.in_order(examples, math.ceil(batch_size / devices) * devices)
        self._announced = announced
        self._compiled: dict[tuple[tuple[str, ...], bool], Any] = {}

    def __call__(
        self, variables: PyTree, heads: Sequence[str], keep_logits: bool = False, update: Update = unseen
    ) -> dict[str, Arrays]:
        """Predictions for every example that could be read, in order; features are computed once for all head sets.

        Args:
          variables: {`params`, `batch_stats`}, replicated.
          heads: sets of classifiers.
          keep_logits: add `logits` [M,N,C].
          update: told of each batch that is done, see `batches`.

        Returns:
          {set: arrays of `metrics.per_example`}, and under "" `label` [N].
        """
        key = tuple(heads), keep_logits
        if key not in self._compiled:
            self._compiled[key] = self._announced(self._compile(*key))
        batches = []
        for _, inputs in self._feed.calls(self._plan, 0, 1, None):
            found = parallel.to_host(self._compiled[key](variables, self._feed.data, inputs))
            real = found[""].pop("mask") > 0
            batches.append(
                {
                    name: {k: v[..., real, :] if k == "logits" else v[..., real] for k, v in arrays.items()}
                    for name, arrays in found.items()
                }
            )
            update(len(batches))
        return {
            name: {k: np.concatenate([batch[name][k] for batch in batches], _example_axis(k)) for k in arrays}
            for name, arrays in batches[0].items()
        }

    @property
    def batches(self) -> int:
        """Batches of the part."""
        return len(self._plan["mask"])

    def _compile(self, heads: tuple[str, ...], keep_logits: bool) -> Any:
        predict = make_predict(self._network, heads, self._mean, self._std, keep_logits, self._mirror)
        return parallel.compile_step(predict_call(predict, self._feed.fetch), **PREDICT_CALL)


PREDICT_CALL: dict[str, Any] = {"replicated_in": (True, True, False), "donate": False}


def predict_call(predict: Callable[[PyTree, Any], Any], fetch: Callable[[PyTree, PyTree], Any]) -> Callable:
    """One call of an evaluation on each device: a function of (variables, data, inputs [1, ...])."""

    def call(variables: PyTree, data: PyTree, inputs: PyTree) -> dict[str, dict[str, jax.Array]]:
        return predict(variables, fetch(data, jax.tree.map(lambda x: x[0], inputs)))

    return call


def make_predict(
    network: ExpertNetwork,
    heads: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    keep_logits: bool = False,
    mirror: bool = False,
) -> Callable[[PyTree, dict[str, jax.Array]], dict[str, dict[str, jax.Array]]]:
    """Builds an evaluation step: (variables, this device's share of a batch) to predictions of the global batch.

    Args:
      heads: sets of classifiers; features are computed once for all of them.
      mean, std: of the RGB values in 0..1.
      keep_logits: add `logits` [M,B,C].
      mirror: logits are the means of an image's and its mirror image's.

    Returns:
      A function, traced inside a compiled step, to {set: arrays of `metrics.per_example`}, and under "" `label` and
      `mask` [B], on every device.
    """
    transform = make_eval_transform(mean=mean, std=std, dtype=network.dtype)

    def predict(variables: PyTree, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        views = mirrored(transform(batch["image"]), mirror)
        fused = [network.apply(variables, images, method="features")["fused"] for images in views]
        found = {"": {"label": batch["label"], "mask": batch["mask"]}}
        for name in heads:
            logits = sum(network.apply(variables, maps, name, method="classify") for maps in fused) / len(fused)
            found[name] = metrics.per_example(logits, batch["label"]) | ({"logits": logits} if keep_logits else {})
        return {
            name: {k: lax.all_gather(v, parallel.AXIS, axis=_example_axis(k), tiled=True) for k, v in one.items()}
            for name, one in found.items()
        }

    return predict


def _example_axis(name: str) -> int:
    """Where the examples are: [M,N,...] for what each expert has, else [N]."""
    return 1 if name in ("expert_predicted", "logits") else 0
