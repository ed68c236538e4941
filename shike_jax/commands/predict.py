"""`python -m shike_jax predict`: classes and probabilities of images, from a trained or converted checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, TextIO

import numpy as np

from shike_jax.common import atomic
from shike_jax.common.buckets import place
from shike_jax.common.parser import Parser
from shike_jax.common.progress import meter, unseen
from shike_jax.common.text import printable, say, spreadsheet
from shike_jax.config import own_files
from shike_jax.data import pictures
from shike_jax.errors import UserError
from shike_jax.evaluation.classifier import BatchedLogits, Classifier, load

_EPILOG = """\
examples:
  python -m shike_jax predict --checkpoint=runs/mine --images=holiday.jpg
  python -m shike_jax predict --checkpoint=runs/mine --images=photos --output=photos.csv --top_k=3 --per_expert
  python -m shike_jax predict --checkpoint=weights/resnet50 --images=batch.npy --output=batch.npz

--images takes files, folders (with all below them), a .txt list of paths, or one .npy array: uint8 [N,height,width,3],
or float32 [N,height,width,3] already normalised (used as it is). Pictures are resized and cropped as in the evaluation
that followed training. Broken ones are named and left out; the exit status is 0 when at least one could be read. Images
for which the network gives numbers that are not finite are named and left out too, and the exit status is 1.

.csv: file, then class_1, probability_1, ... and with --per_expert each expert's own first class and its probability.
      A name that a spreadsheet would take for a formula begins with an apostrophe; control characters are escaped.
.npz: logits [M,N,C] of the M experts, averaged_logits and probabilities [N,C], classes [N,k] (indices, best first),
      class_names [C], files [N], skipped.
"""
Files = list[str]
NOT_FINITE = "the network's output is not finite"
NAMED = 20  # unreadable pictures that are named at the end


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis: float32 [..., C]."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def best(values: np.ndarray, top_k: int) -> np.ndarray:
    """Indices of the k largest values of the last axis, largest first, ties by index: int64 [..., k]."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :top_k]


class Sink(Protocol):
    """Takes batches of predictions as they come."""

    def add(self, files: Files, logits: np.ndarray) -> None:
        """Takes the logits [M,b,C] of b files."""

    def finish(self, skipped: dict[str, str]) -> None:
        """Completes the output; `skipped` names what could not be read."""


class Terminal:
    """A few lines per image, for people."""

    def __init__(self, names: Sequence[str], top_k: int, per_expert: bool) -> None:
        """Args: names: of the C classes."""
        self._names, self._top_k, self._per_expert = names, top_k, per_expert

    def add(self, files: Files, logits: np.ndarray) -> None:
        """Prints the classes of each image."""
        for i, file in enumerate(files):
            say(f"{printable(file)}\n  {self._line(logits[:, i].mean(0))}")
            for m, alone in enumerate(logits[:, i] if self._per_expert else ()):
                say(f"  expert {m + 1}: {self._line(alone)}")

    def _line(self, logits: np.ndarray) -> str:
        share = probabilities(logits)
        return "  ".join(f"{printable(self._names[c])} {100 * share[c]:.1f} %" for c in best(logits, self._top_k))

    def finish(self, skipped: dict[str, str]) -> None:
        """Does nothing: everything has been printed."""


class CsvTable:
    """One row per image."""

    def __init__(self, file: TextIO, names: Sequence[str], top_k: int, per_expert: bool, experts: int) -> None:
        """Writes the header."""
        self._names, self._top_k, self._per_expert = names, top_k, per_expert
        self._writer = csv.writer(file, lineterminator="\n")
        places = [f"{what}_{k + 1}" for k in range(top_k) for what in ("class", "probability")]
        alone = [f"expert_{m + 1}_{what}" for m in range(experts) for what in ("class", "probability")]
        self._writer.writerow(["file", *places, *(alone if per_expert else ())])

    def add(self, files: Files, logits: np.ndarray) -> None:
        """Writes one row for each image."""
        for i, file in enumerate(files):
            cells = self._cells(logits[:, i].mean(0), self._top_k)
            for alone in logits[:, i] if self._per_expert else ():
                cells += self._cells(alone, 1)
            self._writer.writerow([spreadsheet(file), *cells])

    def _cells(self, logits: np.ndarray, top_k: int) -> list[str]:
        share = probabilities(logits)
        return [cell for c in best(logits, top_k) for cell in (spreadsheet(self._names[c]), f"{share[c]:.6f}")]

    def finish(self, skipped: dict[str, str]) -> None:
        """Does nothing: the file is closed by its owner."""


class Arrays:
    """Everything as arrays; kept in memory until the end."""

    def __init__(self, path: str, names: Sequence[str], top_k: int) -> None:
        """Args: path: of the .npz."""
        self._path, self._names, self._top_k = path, names, top_k
        self._files: Files = []
        self._logits: list[np.ndarray] = []

    def add(self, files: Files, logits: np.ndarray) -> None:
        """Keeps the logits for the file that `finish` writes."""
        self._files += files
        self._logits.append(logits)

    def finish(self, skipped: dict[str, str]) -> None:
        """Writes the file."""
        logits = np.concatenate(self._logits, axis=1)
        averaged = logits.mean(0)
        with open(self._path, "wb") as file:
            np.savez(
                file,
                logits=logits,
                averaged_logits=averaged,
                probabilities=probabilities(averaged),
                classes=best(averaged, self._top_k),
                class_names=np.array(self._names),
                files=np.array(self._files),
                skipped=np.array(list(skipped), dtype=str),
            )


def predict(
    classifier: Classifier,
    images: Sequence[str],
    sink: Sink,
    batch_size: int = 64,
    show: bool = False,
) -> tuple[int, dict[str, str]]:
    """Classifies images.

    Args:
      images: files, folders, .txt lists, or a single .npy.
      sink: receives the predictions.
      batch_size: images on the device at once; never changes the result.
      show: how far it is, on stderr.

    Returns:
      The number of images classified, and the skipped ones with reasons.

    Raises:
      UserError: nothing there to classify, nothing that can be read, or no output that is finite.
    """
    total, batches, skipped = _open(classifier, images, batch_size)
    run = BatchedLogits(classifier, min(batch_size, total))
    count = 0
    with meter("predicting", total, sys.stderr) if show else contextlib.nullcontext(unseen) as update:
        for files, pixels in batches:
            logits = run(pixels)
            finite = np.isfinite(logits).all((0, 2))
            skipped |= {file: NOT_FINITE for file, good in zip(files, finite, strict=True) if not good}
            if finite.any():
                sink.add([file for file, good in zip(files, finite, strict=True) if good], logits[:, finite])
            count += int(finite.sum())
            update(count + len(skipped))
    if not count:
        file, reason = next(iter(skipped.items()))
        raise UserError(f"none of the {total} images could be classified; the first: {file}: {reason}")
    sink.finish(skipped)
    return count, skipped


def _open(
    classifier: Classifier, images: Sequence[str], batch_size: int
) -> tuple[int, Iterator[tuple[Files, np.ndarray]], dict[str, str]]:
    """How many images, their batches, and the dict that will name the unreadable ones."""
    size, resize = classifier.image_size, classifier.resize
    arrays = [path for path in images if path.endswith(".npy") and os.path.isfile(path)]
    if arrays:
        if len(images) > 1:
            raise UserError(f"--images: {len(images)} paths with {arrays[0]} among them; expected one .npy, or no .npy")
        array = pictures.read_array(arrays[0], None if classifier.is_of_images else classifier.input)
        batches = pictures.array_batches(array, os.path.basename(arrays[0]), size, resize, batch_size)
        return len(array), batches, {}
    if not classifier.is_of_images:
        one = classifier.input
        raise UserError(
            f"--images={images[0]}: this network takes {one.dtype} {list(one.shape)}; expected one .npy file"
        )
    files = pictures.find(images)
    reader = pictures.Reader(files, size, resize, min(batch_size, len(files)))
    return len(files), iter(reader), reader.skipped


def parser() -> Parser:
    """The command's options."""
    found = Parser(
        "python -m shike_jax predict",
        "Predicts the classes of images: to the terminal, or to a .csv or .npz file.",
        _EPILOG,
    )
    found.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's work directory, its weights/STAGE, or converted weights",
    )
    own_files.add_option(found)
    found.add_argument("--images", required=True, nargs="+", metavar="PATH", help="what to classify; see below")
    found.add_argument("more", nargs="*", metavar="PATH", help=argparse.SUPPRESS)  # --images=a.jpg b.jpg
    found.add_argument(
        "--output", type=place, metavar="FILE", help="a .csv or .npz to write; without it the terminal is used"
    )
    found.add_argument(
        "--head", default="", metavar="SET", help="representation or classifier; default: what the run trained last"
    )
    found.add_argument("--top_k", type=int, default=5, metavar="K", help="classes listed per image (default 5)")
    found.add_argument("--batch_size", type=int, default=64, metavar="B", help="images at once (default 64)")
    about = "average the logits of each image and its mirror image; for networks trained with flips"
    found.add_argument("--mirror", action="store_true", help=about)
    found.add_argument("--per_expert", action="store_true", help="each expert's own prediction too")
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the command; 1 where the output for some images is not finite."""
    args = parser().parse_args(argv)
    own_files.register(args.config)
    for name in ("top_k", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: expected at least 1")
    kind = args.output.suffix.lower() if args.output else ""
    if kind not in ("", ".csv", ".npz") or (args.output and not kind):
        raise UserError(f"--output={args.output}: expected a name ending in .csv or .npz")
    classifier = load(args.checkpoint, args.head, mirror=args.mirror)
    names, images = classifier.class_names, args.images + args.more
    top_k = min(args.top_k, len(names))
    if not args.output:
        _, skipped = predict(classifier, images, Terminal(names, top_k, args.per_expert), args.batch_size)
    else:
        skipped = _to_file(args, kind, classifier, images, top_k)
    for file, reason in list(skipped.items())[:NAMED]:
        say(f"skipped {printable(file)}: {reason}", file=sys.stderr)
    if len(skipped) > NAMED:
        print(f"... and {len(skipped) - NAMED} more (a .npz names all)", file=sys.stderr)
    return int(NOT_FINITE in skipped.values())


def _to_file(
    args: argparse.Namespace, kind: str, classifier: Classifier, images: Sequence[str], top_k: int
) -> dict[str, str]:
    """Predicts into a temporary file that takes its name when it is complete."""
    output = args.output
    names, experts = classifier.class_names, classifier.experts
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(output) as partial:
            if kind == ".npz":
                sink: Sink = Arrays(str(partial), names, top_k)
                count, skipped = predict(classifier, images, sink, args.batch_size, show=True)
            else:
                with partial.open("w", newline="", encoding="utf-8") as file:
                    sink = CsvTable(file, names, top_k, args.per_expert, experts)
                    count, skipped = predict(classifier, images, sink, args.batch_size, show=True)
    except OSError as error:
        raise UserError(f"--output={args.output}: {error.strerror or error}") from error
    say(f"{args.output}: {count} images, {len(skipped)} skipped")
    return skipped
