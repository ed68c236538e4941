"""`python -m shike_jax.evaluate`: what a checkpoint is worth on any part of its data, or on other data."""

from __future__ import annotations

import argparse
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
from shike_jax.cli.flags import load_config, override_config, split_arguments
from shike_jax.cli.parser import Parser
from shike_jax.cluster import parallel
from shike_jax.data import sampling, sources
from shike_jax.data.feeds import make_feeds
from shike_jax.errors import UserError, run_main
from shike_jax.models import HEAD_SETS
from shike_jax.serving.classifier import Classifier, load_classifier
from shike_jax.storage.logs import quiet_third_parties
from shike_jax.training import metrics

_EPILOG = """\
examples:
  python -m shike_jax.evaluate --checkpoint=runs/if100 --output=evaluation.json
  python -m shike_jax.evaluate --checkpoint=runs/if100/weights/representation --part=train --heads=representation
  python -m shike_jax.evaluate --checkpoint=runs/if100 --config.data.data_dir=/data/tfds
  python -m shike_jax.evaluate --checkpoint=weights/converted --config=configs/folder_lt.py:root=photos --logits \\
      --output=logits.npz

The data are those of the checkpoint's configuration; --config.field=value changes it (where the data lie, the batch
size), --config=FILE takes other data with the same number of classes, seen as the network was trained: its image size,
mean and std. Many, medium and few go by the training images of the data.

.json: for each set of classifiers all scores. .npz: the same as JSON text in `summary`; `label` [N]; per set
`SET/predicted`, `rank`, `confidence`, `hardest_negative`, `loss` [N], `expert_predicted` [M,N], and with --logits
`SET/logits` [M,N,C].
"""
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
      config: `data` and `eval` are used; image size, mean and std must be those of the checkpoint (`data_config`).
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


def data_config(classifier: Classifier, arguments: Sequence[str] = ()) -> ConfigDict:
    """The configuration of the data to evaluate on: the checkpoint's, changed or replaced by --config arguments.

    Raises:
      UserError: a checkpoint without configuration and no --config, and all that `load_config` raises.
    """
    if any(item.startswith("--config=") for item in arguments):
        config, _ = load_config(arguments)
    elif classifier.meta.get("config"):
        config, _ = override_config(classifier.meta["config"], arguments)
    else:
        raise UserError("the checkpoint has no configuration (converted weights): expected --config=FILE with the data")
    view = {"image_size": classifier.image_size, "resize": classifier.meta.get("resize") or 0}
    config.data.update({**view, "mean": classifier.mean, "std": classifier.std})
    return config


def describe(summary: dict[str, Any]) -> str:
    """Returns the scores as text for people; per-class rows for at most 100 classes."""
    data, heads = summary["data"], summary["heads"]
    lines = [f"{data['name']}, {data['part']}: {data['examples']:,} examples, {len(data['class_names'])} classes"]
    lines += ["" if data["same_split"] else "(another split than the checkpoint's)"]
    columns = ("top1", "top5", "many", "medium", "few", "macro_f1", "ece")
    titles = ("top-1", "top-5", "many", "medium", "few", "macro F1", "ECE")
    rows = [["percent", *titles]]
    for name, found in heads.items():
        rows.append([f"{name} heads, ensemble", *(_cell(found[key]) for key in columns)])
        for m, (top1, division) in enumerate(zip(found["experts"], found["experts_divisions"], strict=True)):
            cells = (top1, None, division["many"], division["medium"], division["few"], None, None)
            rows.append([f"  expert {m + 1} alone", *map(_cell, cells)])
    lines += [*_aligned(rows), ""]
    rows = [["percent", "pairs differ", "unanimous", "any right", "all right", "none right", "p(hardest wrong) > 0.5"]]
    for name, found in heads.items():
        shares = found["agreement"]
        keys = ("disagreement", "unanimous", "oracle", "all_right", "none_right")
        cells = [*(shares[key] for key in keys), found["hardest_negative"]["above_half"]]
        rows.append([f"{name} heads, experts", *map(_cell, cells)])
    lines += _aligned(rows)
    if len(data["class_names"]) <= 100:
        lines += ["", *_aligned(_class_rows(data, heads))]
    return "\n".join(lines)


def _class_rows(data: dict[str, Any], heads: dict[str, Any]) -> list[list[str]]:
    """Accuracy and F1 of each class, most training images first, with the last set of classifiers."""
    name, found = list(heads.items())[-1]
    experts = [f"expert {m + 1}" for m in range(len(found["experts"]))]
    rows = [[f"{name} heads", "train", data["part"], "accuracy", "F1", *experts]]
    for c in np.argsort(-np.array(data["class_counts"]), kind="stable"):
        cells = [found["per_class"][c], found["f1_per_class"][c], *(e[c] for e in found["experts_per_class"])]
        counts = [f"{data['class_counts'][c]:,}", f"{found['examples_per_class'][c]:,}"]
        rows.append([data["class_names"][c], *counts, *map(_cell, cells)])
    return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m shike_jax.evaluate",
        "Scores a checkpoint: accuracies by division, class and expert, calibration, F1, agreement of the experts.",
        _EPILOG,
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="work directory, weights/STAGE or converted")
    parser.add_argument("--part", help="train, val or test; default: the configuration's data.test_part")
    parser.add_argument("--heads", default="both", choices=(*HEAD_SETS, "both"), help="sets of classifiers")
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="other data; --config.field=value changes fields")
    parser.add_argument("--output", type=Path, metavar="FILE", help=".json or .npz to write")
    parser.add_argument("--logits", action="store_true", help="keep the logits too (.npz only)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    changes, rest = split_arguments(argv)
    args = _parser().parse_args(rest)
    if args.output and args.output.suffix not in (".json", ".npz"):
        raise UserError(f"--output={args.output}: expected a name ending in .json or .npz")
    if args.logits and (not args.output or args.output.suffix != ".npz"):
        raise UserError("--logits: expected --output=FILE.npz with it")
    quiet_third_parties("info")
    classifier = load_classifier(args.checkpoint)
    config = data_config(classifier, changes)
    source = sources.load(config.data)
    heads = HEAD_SETS if args.heads == "both" else (args.heads,)
    part = args.part or config.data.test_part
    summary, found = evaluate(classifier, config, source, part, heads, args.logits)
    for line in source.report.lines():
        print(line)
    print(describe(summary))
    if args.output:
        save(args.output, summary, found)
        print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    run_main(main)
