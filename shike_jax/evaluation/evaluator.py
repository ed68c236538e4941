"""Scoring one part of the data: the same evaluator during training and for a checkpoint afterwards."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from shike_jax.augment import make_eval_transform
from shike_jax.cluster import parallel
from shike_jax.common import atomic, class_names
from shike_jax.common.progress import Update, meter, unseen
from shike_jax.common.text import to_json
from shike_jax.data import sampling, sources
from shike_jax.data.feeds import Feed, make_feeds
from shike_jax.errors import UserError
from shike_jax.evaluation import metrics
from shike_jax.evaluation.classifier import Classifier
from shike_jax.models import HEAD_SETS, ExpertNetwork

Arrays = dict[str, np.ndarray]
PyTree = Any
CHECKPOINT_FACTS = ("stage", "stage_index", "digest", "heads", "model", "version")


class Evaluator:
    """Runs a network over one part of a split, on all devices, with running averages in batch normalisation."""

    def __init__(
        self,
        network: ExpertNetwork,
        feed: Feed,
        examples: int,
        batch_size: int,
        mean: Sequence[float],
        std: Any,
        announced: Callable[[Callable], Callable] = lambda call: call,
    ) -> None:
        """Nothing is compiled yet.

        Args:
          feed: of the part.
          examples: in the part.
          batch_size: global; rounded up to a multiple of the devices.
          mean, std: of the RGB values in 0..1.
          announced: wraps a compiled function, whose first call takes long.
        """
        devices = jax.device_count()
        self._network, self._feed = network, feed
        self._transform = make_eval_transform(mean=mean, std=std, dtype=network.dtype)
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
        network, feed = self._network, self._feed

        def call(variables: PyTree, data: PyTree, inputs: PyTree) -> dict[str, dict[str, jax.Array]]:
            batch = feed.fetch(data, jax.tree.map(lambda x: x[0], inputs))
            return predict_step(network, heads, self._transform, keep_logits, variables, batch)

        return parallel.compile_step(call, replicated_in=(True, True, False), donate=False)


def predict_step(
    network: ExpertNetwork,
    heads: Sequence[str],
    transform: Callable[[jax.Array], jax.Array],
    keep_logits: bool,
    variables: PyTree,
    batch: dict[str, jax.Array],
) -> dict[str, dict[str, jax.Array]]:
    """One evaluation step on this device's share of a batch: predictions of the global batch, on every device.

    Returns:
      {set: arrays of `metrics.per_example`}, and under "" `label` and `mask` [B].
    """
    fused = network.apply(variables, transform(batch["image"]), method="features")["fused"]
    found = {"": {"label": batch["label"], "mask": batch["mask"]}}
    for name in heads:
        logits = network.apply(variables, fused, name, method="classify")
        found[name] = metrics.per_example(logits, batch["label"]) | ({"logits": logits} if keep_logits else {})
    return {
        name: {k: lax.all_gather(v, parallel.AXIS, axis=_example_axis(k), tiled=True) for k, v in one.items()}
        for name, one in found.items()
    }


def _example_axis(name: str) -> int:
    """Where the examples are: [M,N,...] for what each expert has, else [N]."""
    return 1 if name in ("expert_predicted", "logits") else 0


def evaluate(
    classifier: Classifier,
    config: ConfigDict,
    source: sources.Source,
    part: str,
    heads: Sequence[str] = HEAD_SETS,
    keep_logits: bool = False,
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Scores one part of the data with each set of classifiers of a checkpoint, on all devices.

    Args:
      classifier: the checkpoint.
      config: `data` and `eval` are used; image size, mean and std are the checkpoint's (`checkpoint_config`).
      source: of `config.data`, whose classes are those of the checkpoint by name (`with_classes_of`).
      part: of the split.
      heads: sets of classifiers.
      keep_logits: return them too.

    Returns:
      The summary: `checkpoint` facts, `data`, and `heads` {set: `metrics.analyse`}.
      {set: per-example arrays} and, under "", `label` [N] of the examples that could be read.

    Raises:
      UserError: no such part, other classes, unreadable images beyond the limit.
    """
    source = with_classes_of(classifier, source)
    split, classes = source.split, source.split.num_classes
    if part not in split.parts or not len(split.parts[part]):
        raise UserError(f"--part={part}: expected one of {', '.join(k for k, v in split.parts.items() if len(v))}")
    feed, examples = make_feeds(source, config)[part], len(split.parts[part])
    evaluator = Evaluator(classifier.network, feed, examples, config.eval.batch_size, classifier.mean, classifier.std)
    with meter(f"{split.name}, {part}", evaluator.batches, sys.stderr) as update:
        found = evaluator(parallel.replicate(classifier.variables), heads, keep_logits, update)
    label, bad = found[""]["label"], source.report.bad_images()
    summary = {
        "checkpoint": {fact: classifier.meta.get(fact) for fact in CHECKPOINT_FACTS},
        "data": {
            "name": split.name,
            "part": part,
            "examples": len(label),
            "bad_images": {"count": len(bad), "limit": config.data.bad_image_limit, "list": bad},
            "hash": split.hash,
            "same_split": split.hash == classifier.meta.get("split_hash"),
            "class_names": list(split.class_names),
            "classes_by": "name" if classifier.meta.get("class_names") else "number",
            "class_counts": split.class_counts.tolist(),
            "divisions": {name: classes.tolist() for name, classes in split.divisions.items()},
        },
        "heads": {name: metrics.analyse(found[name], label, classes, split.divisions) for name in heads},
    }
    return summary, found


def with_classes_of(classifier: Classifier, source: sources.Source) -> sources.Source:
    """The source with its classes in the order of a checkpoint's outputs, and the counts of its training images.

    Classes are matched by name, or by number where the checkpoint does not name them (converted weights). Whatever
    depends on the frequency of classes (divisions, adjustments) goes by the images that trained the checkpoint, where
    it tells how many these were, else by those of the data.

    Raises:
      UserError: the data have other classes; names those that are missing and those that are extra.
    """
    split, meta = source.split, classifier.meta
    if meta.get("class_names"):
        matching = class_names.match(split.class_names, meta["class_names"])
        if not matching.places:
            raise UserError(f"{split.name} has other classes than the checkpoint (by name): {matching.differences()}")
        places = matching.places
    else:
        if split.num_classes != (expected := meta["num_classes"]):
            raise UserError(f"{split.name} has {split.num_classes} classes; expected the checkpoint's {expected}")
        places = list(range(split.num_classes))
    counts = meta.get("class_counts") or ()
    if places == sorted(places) and list(counts or split.class_counts) == split.class_counts.tolist():
        return source
    return dataclasses.replace(source, split=split.reordered(places, counts))


def trained_heads(summary: Mapping[str, Any]) -> str:
    """Of the sets of classifiers in a summary, the one that the checkpoint's stage trained; else the last one."""
    trained = summary["checkpoint"]["heads"]
    return trained if trained in summary["heads"] else list(summary["heads"])[-1]


def save(path: Path, summary: dict[str, Any], found: dict[str, Arrays]) -> None:
    """Writes .json (scores) or .npz (scores and per-example arrays), wholly or not at all.

    Raises:
      UserError: another suffix, or not writable.
    """
    if path.suffix not in (".json", ".npz"):
        raise UserError(f"--output={path}: expected a name ending in .json or .npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as partial:
            if path.suffix == ".json":
                partial.write_text(to_json(summary, indent=1) + "\n")
            else:
                arrays: dict[str, Any] = {}
                for name, per_set in found.items():
                    arrays |= {f"{name}/{key}" if name else key: values for key, values in per_set.items()}
                np.savez_compressed(partial, summary=to_json(summary), **arrays)
    except OSError as error:
        raise UserError(f"--output={path}: {error.strerror or error}") from error
