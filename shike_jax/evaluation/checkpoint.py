"""What a checkpoint is worth: its classifiers scored on a part of its data, or of other data with its classes."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel
from shike_jax.common import atomic, class_names
from shike_jax.common.progress import meter
from shike_jax.common.text import parse_json, to_json
from shike_jax.data import sources
from shike_jax.data.feeds import make_feeds
from shike_jax.data.held_out import evaluated_part
from shike_jax.data.views import device_augment
from shike_jax.errors import UserError
from shike_jax.evaluation import metrics, post_hoc
from shike_jax.evaluation.classifier import Classifier, check_mirror
from shike_jax.evaluation.evaluator import Arrays, Evaluator, Seen, augmented_view, plain_views
from shike_jax.methods import ADJUSTMENTS
from shike_jax.methods.scores import describe_scores
from shike_jax.models import HEAD_SETS
from shike_jax.models.calling import head_sets
from shike_jax.storage.weights import load_weights


def evaluate(
    classifier: Classifier,
    config: ConfigDict,
    source: sources.Source,
    part: str,
    heads: Sequence[str] = (),
    keep_logits: bool = False,
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Scores one part of the data with each set of classifiers of a checkpoint, on all devices.

    Args:
      config: `data` and `eval` are used; image size, mean and std are the checkpoint's (`checkpoint_config`).
      source: of `config.data`, whose classes are those of the checkpoint by name (`with_classes_of`).
      heads: sets of classifiers; empty: all that the network tells apart.

    Returns:
      The summary: `checkpoint` facts, `data`, `heads` {set: `metrics.analyse`} and `scores`, what these mean. With
      `config.eval.mirror` each set also has `mirrored`: the scores of an image's and its mirror image's mean logits.
      {set: per-example arrays} and, under "", `label` [N] of the examples that could be read.
    """
    source, heads = with_classes_of(classifier, source), heads or sets_of(classifier)
    split, classes, known = source.split, source.split.num_classes, source.split.summary()
    if part not in split.parts or not len(split.parts[part]):
        raise UserError(f"--part={part}: expected one of {', '.join(k for k, v in split.parts.items() if len(v))}")
    if config.eval.mirror:
        check_mirror(classifier.meta)
    predict = _predictor(classifier, config, source, part, heads)
    view = classifier.mean, classifier.std, classifier.dtype
    found = predict(plain_views(*view), keep_logits=keep_logits)
    label, bad = found[""]["label"], source.report.bad_images()
    facts = ("stage", "stage_index", "digest", "heads", "model", "version")
    summary = {
        "checkpoint": {fact: classifier.meta.get(fact) for fact in facts},
        "data": {
            **{name: known[name] for name in ("name", "hash", "class_names", "class_counts", "divisions")},
            "part": part,
            "examples": len(label),
            "bad_images": {"count": len(bad), "limit": config.data.bad_image_limit, "list": bad},
            "same_split": split.hash == classifier.meta.get("split_hash"),
            "classes_by": "name" if classifier.meta.get("class_names") else "number",
        },
        "heads": {name: metrics.analyse(found[name], label, classes, split.divisions) for name in heads},
        "scores": describe_scores(),
    }
    if config.eval.mirror:
        mirrored = predict(plain_views(*view, mirror=True), ", mirrored too")
        for name in heads:
            summary["heads"][name]["mirrored"] = metrics.analyse(mirrored[name], label, classes, split.divisions)
    return summary, found


def _predictor(
    classifier: Classifier, config: ConfigDict, source: sources.Source, part: str, heads: Sequence[str]
) -> Callable[..., dict[str, Arrays]]:
    """A function of what is seen of a batch to what `Evaluator` finds; a bar shows how far it is."""
    feed, examples = make_feeds(source, config)[part], len(source.split.parts[part])
    variables = parallel.replicate(classifier.variables)

    def predict(seen: Seen, about: str = "", keep_logits: bool = False, view: int = 0) -> dict[str, Arrays]:
        evaluator = Evaluator(classifier.network, feed, examples, config.eval.batch_size, seen, view=view)
        with meter(f"{source.split.name}, {part}{about}", evaluator.batches, sys.stderr) as update:
            return evaluator(variables, heads, keep_logits, update)

    return predict


def sets_of(classifier: Classifier) -> tuple[str, ...]:
    """The sets of classifiers that a network tells apart; of one with a single set the one that was trained last."""
    return head_sets(classifier.network) or (classifier.heads,)


def evaluate_as_trained(classifier: Classifier, config: ConfigDict) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """`evaluate` on the part that the run itself evaluated; consecutive calls with the same data read them once."""
    source = _source(config.data.to_json_best_effort())
    return evaluate(classifier, config, source, evaluated_part(config.data), trained_of(classifier))


@functools.lru_cache(maxsize=1)
def _source(data: str) -> sources.Source:
    return sources.load(ConfigDict(parse_json(data)))


def meta_of(path: Any) -> dict[str, Any]:
    """What the weights that a run ended with remember of it; raises UserError where there are none."""
    return load_weights(path)[1]


def with_classes_of(classifier: Classifier, source: sources.Source) -> sources.Source:
    """The source with its classes in the order of a checkpoint's outputs, and the counts of its training images.

    Classes are matched by name, or by number where the checkpoint does not name them (converted weights). Whatever
    depends on the frequency of classes (divisions, adjustments) goes by the images that trained the checkpoint, where
    it tells how many these were, else by those of the data. Other classes are a UserError that names them.
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


def trained_sets(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The sets of classifiers that a checkpoint's stages have trained; both where it does not say what trained it."""
    config = meta.get("config") or {}
    if not config.get("stages") or config.get("init_from") or meta.get("stage_index") is None:
        return HEAD_SETS
    past = config["run"][: meta["stage_index"] + 1]
    return tuple(name for name in HEAD_SETS if name in {config["stages"][stage]["heads"] for stage in past})


def trained_of(classifier: Classifier) -> tuple[str, ...]:
    """The sets of classifiers of a network that its checkpoint's stages have trained; all where none of them is."""
    known = sets_of(classifier)
    return tuple(name for name in known if name in trained_sets(classifier.meta)) or known


def trained_heads(summary: Mapping[str, Any]) -> str:
    """The set of classifiers in a summary that the checkpoint's stage trained; else the last one."""
    trained = summary["checkpoint"]["heads"]
    return trained if trained in summary["heads"] else list(summary["heads"])[-1]


def save(path: Path, summary: dict[str, Any], found: dict[str, Arrays]) -> None:
    """Writes .json (scores) or .npz (scores and per-example arrays), wholly or not at all."""
    with atomic.output(path, f"--output={path}") as partial:
        if path.suffix == ".json":
            partial.write_text(to_json(summary, indent=1) + "\n", encoding="utf-8")
            return
        arrays: dict[str, Any] = {}
        for name, per_set in found.items():
            arrays |= {f"{name}/{key}" if name else key: values for key, values in per_set.items()}
        np.savez_compressed(partial, summary=to_json(summary), **arrays)


def load_data(classifier: Classifier, config: ConfigDict, part: str | None) -> tuple[sources.Source, str]:
    """The data with the checkpoint's classes, and the part to score: of other data without parts, all images."""
    own = (classifier.meta.get("config") or {}).get("data", {})
    given = any(os.path.realpath(config.data[key]) != os.path.realpath(own.get(key) or "") for key in ("root", "table"))
    whole = sources.load_whole(config.data) if given and not part else None
    if whole is not None and not _trained_on(config, classifier):
        return with_classes_of(classifier, whole), "test"
    return with_classes_of(classifier, sources.load(config.data)), part or config.data.test_part


def _trained_on(config: ConfigDict, classifier: Classifier) -> bool:
    """Whether the data, divided as the configuration says, are those of the checkpoint, which may have moved."""
    try:
        return sources.load(config.data).split.hash == classifier.meta.get("split_hash")
    except UserError:  # nothing can be held out of them
        return False


def evaluate_adjusted(
    classifier: Classifier,
    config: ConfigDict,
    source: sources.Source,
    part: str,
    heads: Sequence[str],
    prior: str | None,
    adjust: str | None,
    tau: float | None,
    tune: str | None,
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """`evaluate` with logits, and with `post_hoc` in the summary and in each of its sets of classifiers.

    That holds an adjustment to the shares of the classes in the images to classify, checked before anything is
    computed. The source has the checkpoint's classes. None stands for the prior `uniform`, the adjustment `auto` (by
    the losses that trained), and for a tau of 1, or one chosen on the part `tune`.
    """
    if tau is not None and tune:
        raise UserError(f"--tau={tau:g} with --tune: expected one of them")
    if not math.isfinite(tau := 1.0 if tau is None else tau):
        raise UserError(f"--tau={tau}: expected a finite number")
    split, tune, prior = source.split, tune or "", prior or "uniform"
    sizes = {name: len(one) for name, one in split.parts.items()}
    if tune and not sizes.get(tune):
        known = ", ".join(name for name, size in sizes.items() if size)
        more = " (runs with config.data.validation have a part val)" if tune == "val" else ""
        raise UserError(f"--tune={tune}: {split.name} has no such part; expected one of {known}{more}")
    shares = post_hoc.read_prior(prior, split.class_names, split.class_counts)
    run = classifier.meta.get("config")
    chosen = {name: post_hoc.choose_adjustment(adjust or "auto", name, run) for name in heads}
    summary, found = evaluate(classifier, config, source, part, heads, keep_logits=True)
    further = max(ADJUSTMENTS[name].options["views"] for name in chosen.values()) - 1
    augment = device_augment(config, classifier.dtype)

    def labelled(arrays: dict[str, Arrays], name: str) -> dict[str, post_hoc.Labelled]:
        """What each set of classifiers says of a part, of its further views too."""
        predict = _predictor(classifier, config, source, name, heads)
        seen = [augmented_view(augment, config.seed, number) for number in range(1, further + 1)]
        views = [predict(view, f", view {i}", True, i) for i, view in enumerate(seen, 1)]
        label = arrays[""]["label"]
        return {
            of: post_hoc.Labelled(arrays[of]["logits"], label, tuple(view[of]["logits"] for view in views))
            for of in heads
        }

    test = labelled(found, part)
    tuning = labelled(evaluate(classifier, config, source, tune, heads, keep_logits=True)[1], tune) if tune else {}
    for name in heads:
        parameters = classifier.variables["params"].get("heads", {}).get(name)
        summary["heads"][name]["post_hoc"] = post_hoc.scores(
            test[name], chosen[name], tau, shares, split.class_counts, parameters, tuning.get(name)
        )
    summary["post_hoc"] = {"prior": prior, "shares": shares.tolist(), "tuned_on": tune}
    return summary, found
