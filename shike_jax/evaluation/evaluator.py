"""Scoring one part of the data: the same evaluator during training and for a checkpoint afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from shike_jax.cluster import parallel
from shike_jax.common.progress import Update, unseen
from shike_jax.data import sampling
from shike_jax.data.feeds import Feed
from shike_jax.data.views import make_eval_transform
from shike_jax.evaluation import metrics
from shike_jax.evaluation.classifier import mirrored
from shike_jax.models.calling import logits_of

Arrays = dict[str, np.ndarray]
PyTree = Any
Seen = Callable[[dict[str, jax.Array]], list[jax.Array]]
VIEWS = 2**31 - 3  # tells the draws of evaluation views apart from those of training


class Evaluator:
    """Runs a network over one part of a split, on all devices, with running averages in batch normalisation.

    The global batch size is rounded up to a multiple of the devices; `seen` is as for `make_predict`. `announced` wraps
    a compiled function, whose first call takes long. `view` is the number of an augmented view, from 1 on, for
    `augmented_view`; 0: the images as they are evaluated.
    """

    def __init__(
        self,
        network: Any,
        feed: Feed,
        examples: int,
        batch_size: int,
        seen: Seen,
        announced: Callable[[Callable], Callable] = lambda call: call,
        view: int = 0,
    ) -> None:
        devices = jax.device_count()
        self._network, self._feed, self._seen, self._view, self._announced = network, feed, seen, view, announced
        self._plan = sampling.in_order(examples, math.ceil(batch_size / devices) * devices)
        if view:  # of files, the host draws the view of each image
            index = self._plan["index"].astype(np.uint32)
            self._plan["seed"] = np.stack([np.full_like(index, VIEWS + view), index], -1)
        self._compiled: dict[tuple[tuple[str, ...], bool], Any] = {}

    def __call__(
        self, variables: PyTree, heads: Sequence[str], keep_logits: bool = False, update: Update = unseen
    ) -> dict[str, Arrays]:
        """Predictions for every example that could be read, in order; features are computed once for all head sets.

        The variables are {`params`, `batch_stats`}, replicated; `update` is told of each of `batches` that is done.
        Gives {set: arrays of `metrics.per_example`, with `keep_logits` `logits` [M,N,C] too}, and under "" `label` [N].
        """
        key = tuple(heads), keep_logits
        if key not in self._compiled:
            predict = predict_call(make_predict(self._network, heads, self._seen, keep_logits), self._feed.fetch)
            self._compiled[key] = self._announced(parallel.compile_step(predict, **PREDICT_CALL))
        batches = []
        for number, (_, inputs) in enumerate(self._feed.calls(self._plan, 0, 1, None)):
            if self._view:
                position = parallel.split_batch({"position": self._plan["index"][number]})
                inputs = {**inputs, **{name: values[:, None] for name, values in position.items()}}
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
        return len(self._plan["mask"])


PREDICT_CALL: dict[str, Any] = {"replicated_in": (True, True, False), "donate": False}


def predict_call(predict: Callable[[PyTree, Any], Any], fetch: Callable[[PyTree, PyTree], Any]) -> Callable:
    """One call of an evaluation on each device: a function of (variables, data, inputs [1, ...])."""

    def call(variables: PyTree, data: PyTree, inputs: PyTree) -> dict[str, dict[str, jax.Array]]:
        item = jax.tree.map(lambda x: x[0], inputs)
        batch = fetch(data, item)
        return predict(variables, {**batch, "position": item["position"]} if "position" in item else batch)

    return call


def plain_views(mean: Sequence[float], std: Sequence[float], dtype: Any, mirror: bool = False) -> Seen:
    """What evaluation sees of a batch: its normalised images, and with `mirror` their mirror images too."""
    transform = make_eval_transform(mean=mean, std=std, dtype=dtype)
    return lambda batch: mirrored(transform(batch["image"]), mirror)


def augmented_view(augment: Callable[[jax.Array, jax.Array], jax.Array], seed: int, number: int) -> Seen:
    """A batch's images augmented as in training, by draws that follow from the seed and each image's place in the part.

    `augment` takes images [B,...] and keys [B]; views are numbered from 1 on.
    """

    def seen(batch: dict[str, jax.Array]) -> list[jax.Array]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), VIEWS), number)
        return [augment(batch["image"], jax.vmap(lambda place: jax.random.fold_in(key, place))(batch["position"]))]

    return seen


def make_predict(
    network: Any,
    heads: Sequence[str],
    seen: Seen,
    keep_logits: bool = False,
) -> Callable[[PyTree, dict[str, jax.Array]], dict[str, dict[str, jax.Array]]]:
    """An evaluation step, to be compiled: (variables, this device's share of a batch) to what `Evaluator` gives.

    The arrays are of the global batch, on every device, with `mask` [B] next to `label`. `seen` takes a batch to the
    views [B,...] whose logits are averaged, such as `plain_views` makes.
    """

    def predict(variables: PyTree, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        each = [logits_of(network, variables, images, heads) for images in seen(batch)]
        found = {"": {"label": batch["label"], "mask": batch["mask"]}}
        for name, of_views in zip(heads, zip(*each, strict=True), strict=True):
            logits = sum(of_views) / len(of_views)
            found[name] = metrics.per_example(logits, batch["label"]) | ({"logits": logits} if keep_logits else {})
        return {
            name: {k: lax.all_gather(v, parallel.AXIS, axis=_example_axis(k), tiled=True) for k, v in one.items()}
            for name, one in found.items()
        }

    return predict


def _example_axis(name: str) -> int:
    """Where the examples are: [M,N,...] for what each expert has, else [N]."""
    return 1 if name in ("expert_predicted", "logits") else 0
