"""Scoring a checkpoint on one part of its data: every number that follows from a few values per example."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from shike_jax.augment import make_eval_transform
from shike_jax.cluster import parallel
from shike_jax.data import sampling, sources
from shike_jax.data.feeds import make_feeds
from shike_jax.errors import UserError
from shike_jax.models import HEAD_SETS
from shike_jax.serving.classifier import Classifier
from shike_jax.training import metrics

Arrays = dict[str, np.ndarray]


def evaluate(
    classifier: Classifier,
    config: ConfigDict,
    source: sources.Source,
    part: str,
    heads: Sequence[str] = HEAD_SETS,
    keep_logits: bool = False,
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Scores one part of the data with each set of classifiers, on all devices.

    Args:
      classifier: the checkpoint.
      config: `data` and `eval` are used; image size, mean and std are the checkpoint's (`checkpoint_config`).
      source: of `config.data`.
      part: of the split.
      heads: sets of classifiers.
      keep_logits: return them too.

    Returns:
      The summary: `checkpoint` facts, `data`, and `heads` {set: `metrics.analyse`}.
      {set: per-example arrays} and, under "", `label` [N] of the examples that could be read.

    Raises:
      UserError: no such part, another number of classes, unreadable images beyond the limit.
    """
    split = source.split
    classes = classifier.meta["num_classes"]
    if split.num_classes != classes:
        raise UserError(f"{split.name} has {split.num_classes} classes; expected the checkpoint's {classes}")
    if part not in split.parts or not len(split.parts[part]):
        raise UserError(f"--part={part}: expected one of {', '.join(k for k, v in split.parts.items() if len(v))}")
    found = _run(classifier, config, source, part, heads, keep_logits)
    label, bad = found[""]["label"], source.report.bad_images()
    summary = {
        "checkpoint": {k: classifier.meta.get(k) for k in ("stage", "digest", "heads", "model", "version")},
        "data": {
            "name": split.name,
            "part": part,
            "examples": len(label),
            "bad_images": {"count": len(bad), "limit": config.data.bad_image_limit, "list": bad},
            "hash": split.hash,
            "same_split": split.hash == classifier.meta.get("split_hash"),
            "class_names": list(split.class_names),
            "class_counts": split.class_counts.tolist(),
            "divisions": {name: found.tolist() for name, found in split.divisions.items()},
        },
        "heads": {name: metrics.analyse(found[name], label, classes, split.divisions) for name in heads},
    }
    return summary, found


def _run(
    classifier: Classifier, config: ConfigDict, source: sources.Source, part: str, heads: Sequence[str], logits: bool
) -> dict[str, Arrays]:
    """{set: per-example arrays} over the whole part, in order; features are computed once for all sets."""
    feed = make_feeds(source, config)[part]
    transform = make_eval_transform(mean=classifier.mean, std=classifier.std, dtype=classifier.network.dtype)

    def call(variables: Any, data: Any, inputs: Any) -> Any:
        batch = feed.fetch(data, jax.tree.map(lambda x: x[0], inputs))
        fused = classifier.network.apply(variables, transform(batch["image"]), method="features")["fused"]
        found = {"": {"label": batch["label"], "mask": batch["mask"]}}
        for name in heads:
            scores = classifier.network.apply(variables, fused, name, method="classify")
            found[name] = metrics.per_example(scores, batch["label"]) | ({"logits": scores} if logits else {})
        return {
            name: {k: lax.all_gather(v, parallel.AXIS, axis=_axis(k), tiled=True) for k, v in arrays.items()}
            for name, arrays in found.items()
        }

    compiled = parallel.pmap_step(call, replicated_in=(True, True, False), replicated_out=True, donate=False)
    variables = parallel.replicate(classifier.variables)
    devices = jax.device_count()
    plan = sampling.in_order(len(source.split.parts[part]), math.ceil(config.eval.batch_size / devices) * devices)
    batches = []
    for _, inputs in feed.calls(plan, 0, 1, None):
        found = parallel.to_host(compiled(variables, feed.data, inputs))
        real = found[""].pop("mask") > 0
        batches.append(
            {
                n: {k: v[..., real, :] if k == "logits" else v[..., real] for k, v in arrays.items()}
                for n, arrays in found.items()
            }
        )
    return {n: {k: np.concatenate([b[n][k] for b in batches], _axis(k)) for k in batches[0][n]} for n in batches[0]}


def _axis(name: str) -> int:
    """Where the examples are: [M,N,...] for what each expert has, else [N]."""
    return 1 if name in ("expert_predicted", "logits") else 0


def save(path: Path, summary: dict[str, Any], found: dict[str, Arrays]) -> None:
    """Writes .json (scores) or .npz (scores and per-example arrays), wholly or not at all.

    Raises:
      UserError: another suffix, or not writable.
    """
    if path.suffix not in (".json", ".npz"):
        raise UserError(f"--output={path}: expected a name ending in .json or .npz")
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            partial.write_text(json.dumps(summary, indent=1) + "\n")
        else:
            arrays = {f"{n}/{k}" if n else k: v for n, per_set in found.items() for k, v in per_set.items()}
            np.savez_compressed(partial, summary=json.dumps(summary), **arrays)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"--output={path}: {error.strerror or error}") from error
