"""`python -m shike_jax predict`: classes and probabilities of images, from a trained or converted checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from shike_jax.commands import classifiers
from shike_jax.common import atomic
from shike_jax.common.buckets import place
from shike_jax.common.parser import Parser
from shike_jax.common.progress import meter, unseen
from shike_jax.common.text import printable, say, spreadsheet
from shike_jax.data import pictures
from shike_jax.errors import UserError
from shike_jax.evaluation.classifier import BatchedLogits, Classifier, softmax

_EPILOG = """\
examples:
  python -m shike_jax predict --checkpoint=runs/mine --images=photos --output=photos.csv --top_k=3 --per_expert

--images takes files, folders (with all below them), a .txt list of paths, or one .npy array: uint8 [N,height,width,3],
or float32 [N,height,width,3] already normalised (used as it is). Pictures are resized and cropped as in the evaluation
that followed training. Broken ones are named and left out; the exit status is 0 when at least one could be read. Images
for which the network gives numbers that are not finite are named and left out too, and the exit status is 1.

.csv: file, then class_1, probability_1, ... and with --per_expert each expert's own first class and its probability.
      A name that a spreadsheet would take for a formula begins with an apostrophe; control characters are escaped.
.npz: logits [M,N,C] of the M experts, averaged_logits and probabilities [N,C], classes [N,k] (indices, best first),
      class_names [C], files [N], skipped.
"""
Batches = Iterator[tuple[list[str], np.ndarray]]  # names of images with their pixels or logits
NOT_FINITE = "the network's output is not finite"
NAMED = 20  # unreadable pictures that are named at the end


def best(values: np.ndarray, top_k: int) -> np.ndarray:
    """Indices of the k largest values of the last axis, largest first, ties by index: int64 [..., k]."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :top_k]


def ranked(logits: np.ndarray, names: Sequence[str], top_k: int) -> list[tuple[str, float]]:
    """The most probable classes of one image, with their probabilities; logits [C]."""
    share = softmax(logits)
    return [(names[c], share[c]) for c in best(logits, top_k)]


def to_terminal(batches: Batches, names: Sequence[str], top_k: int, per_expert: bool) -> None:
    """Prints a few lines for each image."""

    def line(logits: np.ndarray) -> str:
        return "  ".join(f"{printable(name)} {100 * share:.1f} %" for name, share in ranked(logits, names, top_k))

    for files, logits in batches:
        for i, file in enumerate(files):
            say(f"{printable(file)}\n  {line(logits[:, i].mean(0))}")
            for m, alone in enumerate(logits[:, i] if per_expert else ()):
                say(f"  expert {m + 1}: {line(alone)}")


def to_csv(path: Path, batches: Batches, names: Sequence[str], top_k: int, experts: int) -> int:
    """Writes one row for each image, with the first class of each of so many experts; returns how many rows."""

    def cells(logits: np.ndarray, top_k: int) -> list[str]:
        return [cell for name, share in ranked(logits, names, top_k) for cell in (spreadsheet(name), f"{share:.6f}")]

    places = [f"{what}_{k + 1}" for k in range(top_k) for what in ("class", "probability")]
    alone = [f"expert_{m + 1}_{what}" for m in range(experts) for what in ("class", "probability")]
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *places, *alone])
        for files, logits in batches:
            for i, name in enumerate(files):
                first = [cell for m in range(experts) for cell in cells(logits[m, i], 1)]
                writer.writerow([spreadsheet(name), *cells(logits[:, i].mean(0), top_k), *first])
            count += len(files)
    return count


def to_npz(path: Path, batches: Batches, names: Sequence[str], top_k: int, skipped: Mapping[str, str]) -> int:
    """Writes everything as arrays, which are kept in memory until the end; returns how many images."""
    found = list(batches)
    logits = np.concatenate([one for _, one in found], axis=1)
    averaged = logits.mean(0)
    with path.open("wb") as file:
        np.savez(
            file,
            logits=logits,
            averaged_logits=averaged,
            probabilities=softmax(averaged),
            classes=best(averaged, top_k),
            class_names=np.array(names),
            files=np.array([name for files, _ in found for name in files]),
            skipped=np.array(list(skipped), dtype=str),
        )
    return logits.shape[1]


def predict(
    classifier: Classifier, images: Sequence[str], batch_size: int, show: bool
) -> tuple[Batches, dict[str, str]]:
    """The logits of images, computed as they are asked for, and the dict that will name those left out, with reasons.

    The images are files, folders, .txt lists, or a single .npy. The batch size never changes the result; `show` tells
    how far it is, on stderr.
    """
    size, resize, one = classifier.image_size, classifier.resize, classifier.input
    skipped: dict[str, str] = {}
    arrays = [path for path in images if path.endswith(".npy") and os.path.isfile(path)]
    if arrays and len(images) > 1:
        raise UserError(f"--images: {len(images)} paths with {arrays[0]} among them; expected one .npy, or no .npy")
    if arrays:
        array = pictures.read_array(arrays[0], None if classifier.is_of_images else one)
        total = len(array)
        batches = pictures.array_batches(array, os.path.basename(arrays[0]), size, resize, batch_size)
    elif classifier.is_of_images:
        files = pictures.find(images)
        total, batches = len(files), pictures.batches(files, size, resize, batch_size, skipped)
    else:
        if not os.path.exists(images[0]):
            raise UserError(f"--images={images[0]}: no such file")
        takes = f"this network takes {one.dtype} {list(one.shape)}"
        raise UserError(f"--images={images[0]}: {takes}; expected one .npy file")
    run = BatchedLogits(classifier, min(batch_size, total))

    def found() -> Batches:
        count = 0
        with meter("predicting", total, sys.stderr) if show else contextlib.nullcontext(unseen) as update:
            for files, pixels in batches:
                logits = run(pixels)
                finite = np.isfinite(logits).all((0, 2))
                skipped.update({file: NOT_FINITE for file, good in zip(files, finite, strict=True) if not good})
                if finite.any():
                    yield [file for file, good in zip(files, finite, strict=True) if good], logits[:, finite]
                count += int(finite.sum())
                update(count + len(skipped))
        if not count:
            file, reason = next(iter(skipped.items()))
            raise UserError(f"none of the {total} images could be classified; the first: {file}: {reason}")

    return found(), skipped


def main(argv: Sequence[str]) -> int:
    """Runs the command; 1 where the output for some images is not finite."""
    about = "Predicts the classes of images: to the terminal, or to a .csv or .npz file."
    parser = Parser("python -m shike_jax predict", about, _EPILOG)
    classifiers.add_options(parser)
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="what to classify; see below")
    parser.add_argument("more", nargs="*", metavar="PATH", help=argparse.SUPPRESS)  # --images=a.jpg b.jpg
    about = "a .csv or .npz to write; without it the terminal is used"
    parser.add_argument("--output", type=place, metavar="FILE", help=about)
    parser.add_argument("--top_k", type=int, default=5, metavar="K", help="classes listed per image (default 5)")
    parser.add_argument("--batch_size", type=int, default=64, metavar="B", help="images at once (default 64)")
    parser.add_argument("--per_expert", action="store_true", help="each expert's own prediction too")
    args = parser.parse_args(argv)
    for name in ("top_k", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: expected at least 1")
    output, kind = args.output, args.output.suffix.lower() if args.output else ""
    if output and kind not in (".csv", ".npz"):
        raise UserError(f"--output={output}: expected a name ending in .csv or .npz")
    classifier = classifiers.loaded(args)
    names = classifier.class_names
    top_k = min(args.top_k, len(names))
    batches, skipped = predict(classifier, args.images + args.more, args.batch_size, show=bool(output))
    if not output:
        to_terminal(batches, names, top_k, args.per_expert)
    else:
        with atomic.output(output, f"--output={output}") as partial:
            if kind == ".npz":
                count = to_npz(partial, batches, names, top_k, skipped)
            else:
                count = to_csv(partial, batches, names, top_k, classifier.experts if args.per_expert else 0)
        say(f"{output}: {count} images, {len(skipped)} skipped")
    for file, reason in list(skipped.items())[:NAMED]:
        say(f"skipped {printable(file)}: {reason}", file=sys.stderr)
    if len(skipped) > NAMED:
        print(f"... and {len(skipped) - NAMED} more (a .npz names all)", file=sys.stderr)
    return int(NOT_FINITE in skipped.values())
