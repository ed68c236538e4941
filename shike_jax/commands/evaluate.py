"""`python -m shike_jax evaluate`: what a checkpoint is worth on any part of its data, or on other data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shike_jax.cluster import compiled_cache, cpu
from shike_jax.common.buckets import place
from shike_jax.common.parser import Parser
from shike_jax.common.quiet import quiet_third_parties
from shike_jax.common.text import aligned, number, printable, say
from shike_jax.config import own_files
from shike_jax.config.loading import checkpoint_config, split_arguments
from shike_jax.errors import UserError
from shike_jax.evaluation import checkpoint, post_hoc
from shike_jax.evaluation.classifier import HEAD_SETS, load

_EPILOG = """\
examples:
  python -m shike_jax evaluate --checkpoint=runs/if100 --output=evaluation.json --config.eval.mirror=True
  python -m shike_jax evaluate --checkpoint=weights/converted --config=configs/folder_lt.py:root=photos
  python -m shike_jax evaluate --checkpoint=runs/if100 --prior=train --tune

The data are those of the checkpoint's configuration; --config.field=value changes it (where the data lie, the batch
size), --config=FILE takes other data, seen as the network was trained, or registers what the checkpoint names, such as
your own network. Other data need the same classes, by name (by number where a checkpoint names none). A folder or table
without parts is scored whole; --part=test scores what the configuration holds out of it. Many, medium and few go by the
images that trained the checkpoint where it says how many these were, else by the training images of the data.

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
    """The scores as text for people; per-class rows for at most 100 classes."""
    data, heads = summary["data"], summary["heads"]
    lines = [f"{data['name']}, {data['part']}: {data['examples']:,} examples, {len(data['class_names'])} classes"]
    if not data["same_split"]:
        lines += ["(another split than the checkpoint's)"]
    if data["classes_by"] == "number":
        lines += ["(classes matched by number: the checkpoint does not name them)"]
    columns = {name: about["title"] for name, about in summary["scores"].items() if about["detail"]}
    rows = [["percent", *columns.values()]]
    for name, found in heads.items():
        rows.append([name, *(number(found[key]) for key in columns)])
        for m, (top1, division) in enumerate(zip(found["experts"], found["experts_divisions"], strict=True)):
            alone = {"top1": top1, **division}
            rows.append([f"  expert {m + 1}", *(number(alone.get(key)) for key in columns)])
        if mirrored := found.get("mirrored"):
            rows.append(["  with mirror images", *(number(mirrored[key]) for key in columns)])
    wrong = {name: found["not_finite"] for name, found in heads.items() if found["not_finite"]}
    lines += ["", *aligned(rows)]
    lines += [
        f"The {name} heads' logits of {count:,} of {data['examples']:,} images are not finite: wrong in every score."
        for name, count in wrong.items()
    ]
    lines += _earlier_heads(summary)
    rows = [["percent", "differ", "unanimous", "any right", "all right", "none right", "p > 0.5"]]
    for name, found in heads.items():
        shares = found["agreement"]
        keys = ("disagreement", "unanimous", "oracle", "all_right", "none_right")
        cells = [*(shares[key] for key in keys), found["hardest_negative"]["above_half"]]
        rows.append([name, *map(number, cells)])
    lines += [
        "",
        *aligned(rows),
        "differ: images on which two experts disagree, mean over pairs",
        "p > 0.5: images whose hardest wrong class has a probability above one half",
    ]
    if len(data["class_names"]) <= 100:
        lines += ["", *aligned(_class_rows(data, checkpoint.trained_heads(summary), heads))]
    if "post_hoc" in summary:
        lines += ["", *_post_hoc_lines(summary)]
    return "\n".join(lines)


def _earlier_heads(summary: dict[str, Any]) -> list[str]:
    """Says why classifiers of an earlier stage may score otherwise than in results.json."""
    checkpoint = summary["checkpoint"]
    earlier = [name for name in summary["heads"] if name != checkpoint["heads"]]
    if not earlier or not checkpoint.get("stage_index"):
        return []
    return [
        "",
        f"The {earlier[0]} heads are scored on the network as stage {checkpoint['stage']}",
        "left it. That stage did not train them, but it moved the running averages of",
        "batch normalisation: results.json has their scores at the end of their own",
        "stage, and the weights of that stage lie in WORKDIR/weights.",
    ]


def _post_hoc_lines(summary: dict[str, Any]) -> list[str]:
    """Accuracy before and after the adjustment: under the prior, and under the long-tailed test distributions."""
    about, found = summary["post_hoc"], {name: one["post_hoc"] for name, one in summary["heads"].items()}
    chosen = f", tau chosen on {about['tuned_on']}" if about["tuned_on"] else ""
    lines = [f"images weighted by the share of their class; prior {printable(about['prior'])}{chosen}"]
    header = [column for name, one in found.items() for column in (name, f"{one['adjust']} {one['tau']:g}")]

    def pairs(scores: Iterable[dict[str, Any]]) -> list[str]:
        return [number(one[key]) for one in scores for key in ("plain", "adjusted")]

    rows = [["percent", *header], [f"prior {printable(about['prior'])}", *pairs(found.values())]]
    for name in next(iter(found.values()))["distributions"]:
        rows.append([name, *pairs([one["distributions"][name] for one in found.values()])])
    return [*lines, *aligned(rows)]


def _class_rows(data: dict[str, Any], name: str, heads: dict[str, Any]) -> list[list[str]]:
    """Accuracy and F1 of each class, most training images first, with one set of classifiers."""
    found = heads[name]
    experts = [f"expert {m + 1}" for m in range(len(found["experts"]))]
    rows = [[name, "train", data["part"], "accuracy", "F1", *experts]]
    for c in np.argsort(-np.array(data["class_counts"]), kind="stable"):
        cells = [found["per_class"][c], found["f1_per_class"][c], *(e[c] for e in found["experts_per_class"])]
        counts = [f"{data['class_counts'][c]:,}", f"{found['examples_per_class'][c]:,}"]
        rows.append([printable(data["class_names"][c]), *counts, *map(number, cells)])
    return rows


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    changes, rest = split_arguments(argv)
    about = "Scores a checkpoint: accuracies by division, class and expert, calibration, F1, agreement of the experts."
    parser = Parser("python -m shike_jax evaluate", about, _EPILOG)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="work directory, weights/STAGE or converted")
    parser.add_argument("--part", help="train, val or test; default: the configuration's data.test_part, test")
    about = "representation, classifier or both; default: those that were trained"
    parser.add_argument(
        "--heads", default="trained", choices=(*HEAD_SETS, "both", "trained"), metavar="SETS", help=about
    )
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="other data; --config.field=value changes fields")
    parser.add_argument("--output", type=place, metavar="FILE", help=".json or .npz to write")
    group = parser.add_argument_group("adjustment to the shares of the classes in the images to classify")
    group.add_argument("--prior", metavar="P", help="uniform (default), train or a JSON file")
    names = ", ".join(post_hoc.ADJUSTMENTS)
    group.add_argument("--adjust", metavar="NAME", help=f"{names}, or auto (default): by the losses that trained")
    group.add_argument("--tau", type=float, help="strength of the adjustment; default 1")
    group.add_argument("--tune", nargs="?", const="val", metavar="PART", help="choose tau on a part; default val")
    parser.add_argument("--logits", action="store_true", help="keep the logits too (.npz only)")
    args = parser.parse_args(rest)
    if args.output and args.output.suffix not in (".json", ".npz"):
        raise UserError(f"--output={args.output}: expected a name ending in .json or .npz")
    if args.logits and (not args.output or args.output.suffix != ".npz"):
        raise UserError("--logits: expected --output=FILE.npz with it")
    quiet_third_parties("info")
    cpu.prepare()
    compiled_cache.use_default_folder()
    own_files.register([item.removeprefix("--config=") for item in changes if item.startswith("--config=")])
    classifier = load(args.checkpoint)
    config = checkpoint_config(classifier.meta, own_files.without_registering(classifier.meta, changes))
    source, part = checkpoint.load_data(classifier, config, args.part)
    sets = {"trained": checkpoint.trained_of(classifier), "both": checkpoint.sets_of(classifier)}
    heads = sets.get(args.heads, (args.heads,))
    asked, what = (args.prior, args.adjust, args.tau, args.tune), (classifier, config, source, part, heads)
    if any(value is not None for value in asked):
        summary, found = checkpoint.evaluate_adjusted(*what, *asked)
    else:
        summary, found = checkpoint.evaluate(*what, keep_logits=args.logits)
    if not args.logits:
        found = {name: {k: v for k, v in arrays.items() if k != "logits"} for name, arrays in found.items()}
    for line in source.report.lines():
        say(line)
    say(describe(summary))
    if args.output:
        checkpoint.save(args.output, summary, found)
        say(f"\nwritten to {args.output}")
