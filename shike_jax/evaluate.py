"""`python -m shike_jax.evaluate`: what a checkpoint is worth on any part of its data, or on other data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shike_jax.cli.flags import checkpoint_config, split_arguments
from shike_jax.cli.parser import Parser
from shike_jax.cluster import cpu
from shike_jax.data import sources
from shike_jax.errors import UserError, run_main
from shike_jax.methods.scores import describe_scores
from shike_jax.models import HEAD_SETS
from shike_jax.serving.classifier import load_classifier
from shike_jax.storage.logs import quiet_third_parties
from shike_jax.text import aligned, printable, say
from shike_jax.training.evaluation import evaluate, save

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


def describe(summary: dict[str, Any]) -> str:
    """Returns the scores as text for people; per-class rows for at most 100 classes."""
    data, heads = summary["data"], summary["heads"]
    lines = [f"{data['name']}, {data['part']}: {data['examples']:,} examples, {len(data['class_names'])} classes"]
    lines += ["" if data["same_split"] else "(another split than the checkpoint's)"]
    columns = {name: about["title"] for name, about in describe_scores().items() if about["detail"]}
    rows = [["percent", *columns.values()]]
    for name, found in heads.items():
        rows.append([f"{name} heads, ensemble", *(_cell(found[key]) for key in columns)])
        for m, (top1, division) in enumerate(zip(found["experts"], found["experts_divisions"], strict=True)):
            alone = {"top1": top1, **division}
            rows.append([f"  expert {m + 1} alone", *(_cell(alone.get(key)) for key in columns)])
    lines += [*aligned(rows), *_earlier_heads(summary), ""]
    rows = [["percent", "pairs differ", "unanimous", "any right", "all right", "none right", "p(hardest wrong) > 0.5"]]
    for name, found in heads.items():
        shares = found["agreement"]
        keys = ("disagreement", "unanimous", "oracle", "all_right", "none_right")
        cells = [*(shares[key] for key in keys), found["hardest_negative"]["above_half"]]
        rows.append([f"{name} heads, experts", *map(_cell, cells)])
    lines += aligned(rows)
    if len(data["class_names"]) <= 100:
        lines += ["", *aligned(_class_rows(data, heads))]
    return "\n".join(lines)


def _earlier_heads(summary: dict[str, Any]) -> list[str]:
    """Says why classifiers of an earlier stage may score otherwise than in results.json."""
    checkpoint = summary["checkpoint"]
    earlier = [name for name in summary["heads"] if name != checkpoint["heads"]]
    if not earlier or not checkpoint.get("stage_index"):
        return []
    return [
        "",
        f"The {earlier[0]} heads are scored on the network as stage {checkpoint['stage']} left it. That stage did",
        "not train them, but it moved the running averages of batch normalisation: results.json has their scores at",
        "the end of their own stage, and the weights of that stage lie in WORKDIR/weights.",
    ]


def _class_rows(data: dict[str, Any], heads: dict[str, Any]) -> list[list[str]]:
    """Accuracy and F1 of each class, most training images first, with the last set of classifiers."""
    name, found = list(heads.items())[-1]
    experts = [f"expert {m + 1}" for m in range(len(found["experts"]))]
    rows = [[f"{name} heads", "train", data["part"], "accuracy", "F1", *experts]]
    for c in np.argsort(-np.array(data["class_counts"]), kind="stable"):
        cells = [found["per_class"][c], found["f1_per_class"][c], *(e[c] for e in found["experts_per_class"])]
        counts = [f"{data['class_counts'][c]:,}", f"{found['examples_per_class'][c]:,}"]
        rows.append([printable(data["class_names"][c]), *counts, *map(_cell, cells)])
    return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m shike_jax.evaluate",
        "Scores a checkpoint: accuracies by division, class and expert, calibration, F1, agreement of the experts.",
        _EPILOG,
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="work directory, weights/STAGE or converted")
    parser.add_argument("--part", help="train, val or test; default: the configuration's data.test_part, test")
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
    cpu.use_cores()
    classifier = load_classifier(args.checkpoint)
    config = checkpoint_config(classifier.meta, changes)
    source = sources.load(config.data)
    heads = HEAD_SETS if args.heads == "both" else (args.heads,)
    part = args.part or config.data.test_part
    summary, found = evaluate(classifier, config, source, part, heads, args.logits)
    for line in source.report.lines():
        say(line)
    say(describe(summary))
    if args.output:
        save(args.output, summary, found)
        say(f"\nwritten to {args.output}")


if __name__ == "__main__":
    run_main(main)
