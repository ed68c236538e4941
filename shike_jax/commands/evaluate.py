"""`python -m shike_jax evaluate`: what a checkpoint is worth on any part of its data, or on other data."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import cpu
from shike_jax.common.command import Parser, UserError, aligned, printable, quiet_third_parties, say
from shike_jax.config.loading import checkpoint_config, split_arguments
from shike_jax.data import sources
from shike_jax.evaluation import post_hoc
from shike_jax.evaluation.classifier import Classifier, load
from shike_jax.evaluation.evaluator import evaluate, save, trained_heads, with_classes_of
from shike_jax.methods import ADJUSTMENTS
from shike_jax.methods.scores import describe_scores
from shike_jax.models import HEAD_SETS

_EPILOG = """\
examples:
  python -m shike_jax evaluate --checkpoint=runs/if100 --output=evaluation.json
  python -m shike_jax evaluate --checkpoint=runs/if100/weights/representation --part=train --heads=representation
  python -m shike_jax evaluate --checkpoint=runs/if100 --config.data.data_dir=/data/tfds
  python -m shike_jax evaluate --checkpoint=weights/converted --config=configs/folder_lt.py:root=photos --logits \\
      --output=logits.npz

  python -m shike_jax evaluate --checkpoint=runs/ce --adjust=tau_norm --tau=0.7
  python -m shike_jax evaluate --checkpoint=runs/if100 --prior=train --tune

The data are those of the checkpoint's configuration; --config.field=value changes it (where the data lie, the batch
size), --config=FILE takes other data, seen as the network was trained: its image size, mean and std. They need the same
classes, by name and in any order (by number where a checkpoint names none). A folder or table without parts is scored
whole; --part=test scores what the configuration holds out of it. Many, medium and few go by the images that trained the
checkpoint, or by the training images of the data where it does not say how many these were.

.json: for each set of classifiers all scores. .npz: the same as JSON text in `summary`; `label` [N]; per set
`SET/predicted`, `rank`, `confidence`, `hardest_negative`, `loss` [N], `expert_predicted` [M,N], and with --logits
`SET/logits` [M,N,C].

--prior, --adjust, --tau or --tune adjust the logits to images whose classes have known shares: uniform (the default),
those of the training images, or those of a JSON file (C numbers, or {class name: number}). Accuracies are then given
under that prior, and under long-tailed test sets with imbalance factors 2 to 50: forward ones (classes frequent in
training are frequent) and backward ones. Every image counts by the share of its class. --tune chooses tau on the part
val; --tune=test chooses it on the very images that are reported, and flatters. docs/methods.md has the formulas.
"""


def describe(summary: dict[str, Any]) -> str:
    """Returns the scores as text for people; per-class rows for at most 100 classes."""
    data, heads = summary["data"], summary["heads"]
    lines = [f"{data['name']}, {data['part']}: {data['examples']:,} examples, {len(data['class_names'])} classes"]
    lines += [] if data["same_split"] else ["(another split than the checkpoint's)"]
    if data["classes_by"] == "number":
        lines += ["(classes matched by number: the checkpoint does not name them)"]
    lines += [""]
    columns = {name: about["title"] for name, about in describe_scores().items() if about["detail"]}
    rows = [["percent", *columns.values()]]
    for name, found in heads.items():
        rows.append([f"{name} heads, ensemble", *(_cell(found[key]) for key in columns)])
        for m, (top1, division) in enumerate(zip(found["experts"], found["experts_divisions"], strict=True)):
            alone = {"top1": top1, **division}
            rows.append([f"  expert {m + 1} alone", *(_cell(alone.get(key)) for key in columns)])
    lines += [*aligned(rows), *_not_finite(summary), *_earlier_heads(summary), ""]
    rows = [["percent", "pairs differ", "unanimous", "any right", "all right", "none right", "p(hardest wrong) > 0.5"]]
    for name, found in heads.items():
        shares = found["agreement"]
        keys = ("disagreement", "unanimous", "oracle", "all_right", "none_right")
        cells = [*(shares[key] for key in keys), found["hardest_negative"]["above_half"]]
        rows.append([f"{name} heads, experts", *map(_cell, cells)])
    lines += aligned(rows)
    if len(data["class_names"]) <= 100:
        lines += ["", *aligned(_class_rows(data, trained_heads(summary), heads))]
    if "post_hoc" in summary:
        lines += ["", *_post_hoc_lines(summary)]
    return "\n".join(lines)


def _not_finite(summary: dict[str, Any]) -> list[str]:
    """Says of how many images the network's output is no finite number."""
    counts = {name: found["not_finite"] for name, found in summary["heads"].items() if found["not_finite"]}
    examples = summary["data"]["examples"]
    return [
        f"The {name} heads' logits of {count:,} of {examples:,} images are not finite: wrong in every score."
        for name, count in counts.items()
    ]


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


def _post_hoc_lines(summary: dict[str, Any]) -> list[str]:
    """Accuracy before and after the adjustment: under the prior, and under the long-tailed test distributions."""
    about, found = summary["post_hoc"], {name: one["post_hoc"] for name, one in summary["heads"].items()}
    chosen = f", tau chosen on {about['tuned_on']}" if about["tuned_on"] else ""
    lines = [f"images weighted by the share of their class; prior {printable(about['prior'])}{chosen}"]
    header = [column for name, one in found.items() for column in (name, f"{one['adjust']} {one['tau']:g}")]
    rows = [["percent", *header], [f"prior {printable(about['prior'])}", *_pairs(found.values())]]
    for name in next(iter(found.values()))["distributions"]:
        rows.append([name, *_pairs(one["distributions"][name] for one in found.values())])
    return [*lines, *aligned(rows)]


def _pairs(scores: Iterable[dict[str, Any]]) -> list[str]:
    return [_cell(one[key]) for one in scores for key in ("plain", "adjusted")]


def _class_rows(data: dict[str, Any], name: str, heads: dict[str, Any]) -> list[list[str]]:
    """Accuracy and F1 of each class, most training images first, with one set of classifiers."""
    found = heads[name]
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
        "python -m shike_jax evaluate",
        "Scores a checkpoint: accuracies by division, class and expert, calibration, F1, agreement of the experts.",
        _EPILOG,
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="work directory, weights/STAGE or converted")
    parser.add_argument("--part", help="train, val or test; default: the configuration's data.test_part, test")
    parser.add_argument("--heads", default="both", choices=(*HEAD_SETS, "both"), help="sets of classifiers")
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="other data; --config.field=value changes fields")
    parser.add_argument("--output", type=Path, metavar="FILE", help=".json or .npz to write")
    adjusting = parser.add_argument_group("adjustment to the shares of the classes in the images to classify")
    adjusting.add_argument("--prior", metavar="P", help="uniform (default), train or a JSON file")
    names = ", ".join(ADJUSTMENTS)
    adjusting.add_argument("--adjust", metavar="NAME", help=f"{names}, or auto (default): by the losses that trained")
    adjusting.add_argument("--tau", type=float, help="strength of the adjustment; default 1")
    adjusting.add_argument("--tune", nargs="?", const="val", metavar="PART", help="choose tau on a part; default val")
    parser.add_argument("--logits", action="store_true", help="keep the logits too (.npz only)")
    return parser


@dataclasses.dataclass(frozen=True)
class _Adjusting:
    """What the flags ask of an adjustment, checked before anything is computed.

    Attributes:
      text, prior: `--prior` and its shares [C].
      adjust: name of the adjustment for each set of classifiers.
      tau: its strength.
      tune: the part that chooses tau; empty: none.
    """

    text: str
    prior: np.ndarray
    adjust: dict[str, str]
    tau: float
    tune: str

    @classmethod
    def of(
        cls, args: argparse.Namespace, classifier: Classifier, source: sources.Source, heads: Sequence[str]
    ) -> _Adjusting | None:
        """None without any of the flags.

        Raises:
          UserError: an unknown name or part, a tau that is not finite, or flags that contradict each other.
        """
        if args.prior is None and args.adjust is None and args.tau is None and args.tune is None:
            return None
        if args.tau is not None and args.tune is not None:
            raise UserError(f"--tau={args.tau:g} with --tune: expected one of them")
        tau = 1.0 if args.tau is None else args.tau
        if not math.isfinite(tau):
            raise UserError(f"--tau={tau}: expected a finite number")
        split = source.split
        sizes = {name: len(part) for name, part in split.parts.items()}
        if args.tune and not sizes.get(args.tune):
            known = ", ".join(name for name, size in sizes.items() if size)
            more = " (runs with config.data.validation have a part val)" if args.tune == "val" else ""
            raise UserError(f"--tune={args.tune}: {split.name} has no such part; expected one of {known}{more}")
        text = args.prior or "uniform"
        prior = post_hoc.read_prior(text, split.class_names, split.class_counts)
        run = classifier.meta.get("config")
        adjust = {name: post_hoc.choose_adjustment(args.adjust or "auto", name, run) for name in heads}
        return cls(text, prior, adjust, tau, args.tune or "")

    def add(
        self,
        summary: dict[str, Any],
        found: dict[str, dict[str, np.ndarray]],
        classifier: Classifier,
        config: ConfigDict,
        source: sources.Source,
    ) -> None:
        """Adds `post_hoc` to the summary and to each of its sets of classifiers; `found` must hold logits."""
        tuning = evaluate(classifier, config, source, self.tune, tuple(self.adjust), True)[1] if self.tune else None

        def labelled(arrays: dict[str, dict[str, np.ndarray]], name: str) -> post_hoc.Labelled:
            return post_hoc.Labelled(arrays[name]["logits"], arrays[""]["label"])

        for name, adjust in self.adjust.items():
            summary["heads"][name]["post_hoc"] = post_hoc.scores(
                labelled(found, name),
                adjust,
                self.tau,
                self.prior,
                source.split.class_counts,
                classifier.variables["params"]["heads"].get(name),
                labelled(tuning, name) if tuning is not None else None,
            )
        summary["post_hoc"] = {"prior": self.text, "shares": self.prior.tolist(), "tuned_on": self.tune}


def _load(classifier: Classifier, config: ConfigDict, part: str | None) -> tuple[sources.Source, str]:
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
    classifier = load(args.checkpoint)
    config = checkpoint_config(classifier.meta, changes)
    source, part = _load(classifier, config, args.part)
    heads = HEAD_SETS if args.heads == "both" else (args.heads,)
    adjusting = _Adjusting.of(args, classifier, source, heads)
    summary, found = evaluate(classifier, config, source, part, heads, args.logits or adjusting is not None)
    if adjusting is not None:
        adjusting.add(summary, found, classifier, config, source)
        if not args.logits:
            found = {name: {k: v for k, v in arrays.items() if k != "logits"} for name, arrays in found.items()}
    for line in source.report.lines():
        say(line)
    say(describe(summary))
    if args.output:
        save(args.output, summary, found)
        say(f"\nwritten to {args.output}")
