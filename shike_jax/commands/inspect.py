"""`python -m shike_jax inspect`: what a configuration trains on, in numbers and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common import atomic
from shike_jax.common.extras import optional
from shike_jax.common.parser import Parser
from shike_jax.common.text import aligned, printable, say
from shike_jax.config.loading import parse_command
from shike_jax.data import sampling, sources
from shike_jax.data.held_out import evaluated_part
from shike_jax.data.host_pipeline import HostPipeline
from shike_jax.data.splits import Split
from shike_jax.data.types import Source
from shike_jax.data.views import device_augment
from shike_jax.errors import UserError
from shike_jax.report import fonts

_EPILOG = """\
example:
  python -m shike_jax inspect --config=folder_lt:root=photos --json=split.json --figure=photos.png --check

JSON keys: train_size, test_size (of the part that is evaluated: val with config.data.validation, else
config.data.test_part), num_classes, class_counts (training images of each class), many, medium, few (numbers of
classes), hash, name, rule, parts and class_names.
"""
NAMED = 12  # so many classes or fewer have their names under the curve
VIEWS = 7  # augmented views of one image on the sheet
FIGURES = (".png", ".pdf", ".svg")


def summary(split: Split, test_part: str) -> dict[str, Any]:
    """What the JSON file holds: plain numbers, strings and lists."""
    about = split.summary()
    return {
        **{name: about[name] for name in ("name", "rule", "hash", "class_counts", "class_names")},
        "parts": about["sizes"],
        "train_size": about["sizes"]["train"],
        "test_size": about["sizes"][test_part],
        "num_classes": split.num_classes,
        **{name: len(classes) for name, classes in split.divisions.items()},
    }


def describe(split: Split, test_part: str) -> str:
    """Returns the same for people."""
    counts, evaluated = split.class_counts, {test_part: " (evaluated)"}
    parts = ", ".join(f"{name} {len(part):,}{evaluated.get(name, '')}" for name, part in split.parts.items())
    divisions = ", ".join(f"{name} {len(classes)}" for name, classes in split.divisions.items())
    return "\n".join(
        [
            f"{printable(split.name)}: {printable(split.rule)}",
            f"images     {parts}",
            f"classes    {split.num_classes}; training images of a class: {counts.max():,} to {counts.min():,}",
            f"divisions  {divisions}",
            "",
            *histogram(split),
            "",
            f"hash       {split.hash}",
        ]
    )


def histogram(split: Split, rows: int = 10, width: int = 50) -> list[str]:
    """Bars of the training images of classes, most to fewest; of more classes than `rows` the means of neighbours."""
    order = np.argsort(-split.class_counts, kind="stable")
    most, lines = split.class_counts.max(), [["classes", "images", ""]]
    for ranks in np.array_split(np.arange(len(order)), min(rows, len(order))):
        mean = split.class_counts[order[ranks]].mean()
        alone = shortened(split.class_names[order[ranks[0]]])
        which = alone if len(ranks) == 1 else f"{ranks[0] + 1}-{ranks[-1] + 1}"
        lines.append([which, f"{mean:,.0f}", "#" * max(1, round(width * mean / most))])
    return aligned(lines, left=(0, 2))


def shortened(name: str, length: int = 30) -> str:
    """A name as it can be printed, cut where it is longer."""
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 3]}..."


def sample_sheet(source: Source, config: ConfigDict) -> tuple[list[str], np.ndarray]:
    """Returns class names [R] and uint8 [R, 1 + VIEWS, S, S, 3]: two images of each division, as is and augmented."""
    import jax

    split, (mean, std) = source.split, (np.array(config.data.mean), np.array(config.data.std))
    classes = np.concatenate([found[[0, -1]] for found in split.divisions.values() if len(found)])
    rows = np.array([np.flatnonzero(split.parts["train"].labels == c)[0] for c in classes], np.int32)
    index = np.repeat(rows, VIEWS)
    if source.images is not None:
        originals, views = source.images["train"][rows], source.images["train"][index]
    else:
        pipeline, mask = HostPipeline(source, "train", config), np.ones((1, len(index)), np.float32)
        [batch] = pipeline.batches({"index": index[None], "mask": mask}, seed=0)
        [plain] = pipeline.batches({"index": rows[None], "mask": mask[:, : len(rows)]})
        originals, views = plain["image"], batch["image"]
    augment = device_augment(config, np.float32)
    normalised = np.asarray(jax.jit(augment)(views, jax.random.split(jax.random.key(config.seed), len(index))))
    views = np.clip(np.round((normalised * std + mean) * 255), 0, 255).astype(np.uint8)
    sheet = np.concatenate([originals[:, None], views.reshape(len(rows), VIEWS, *views.shape[1:])], axis=1)
    names = fonts.names_or_numbers(split.class_names)
    return [names[c] for c in classes], sheet


def draw(source: Source, config: ConfigDict, path: Path) -> None:
    """Draws the class-count curve, and below it the sheet of augmented samples where there are images."""
    from shike_jax.report import style

    split, has_images = source.split, source.has_pictures
    figure, (curve, sheet) = style.figure(7.2, nrows=2, height_ratios=(2, 5 if has_images else 0.01))
    order = np.argsort(-split.class_counts, kind="stable")
    rank = np.empty(split.num_classes, int)
    rank[order] = np.arange(split.num_classes)
    for (name, classes), marker in zip(split.divisions.items(), "os^", strict=True):
        curve.plot(rank[classes], split.class_counts[classes], marker, markersize=4, label=f"{name} ({len(classes)})")
    curve.set(xlabel="class, by training images", ylabel="training images", yscale="log", title=split.name)
    if split.num_classes <= NAMED:
        shown = [shortened(name) for name in fonts.names_or_numbers(split.class_names)]
        curve.set_xticks(range(len(order)), [shown[c] for c in order], rotation=30, ha="right")
        curve.set(yscale="linear", xlabel="", ylim=(0, None))
    curve.legend()
    sheet.axis("off")
    if has_images:
        names, images = sample_sheet(source, config)
        rows, columns, side = images.shape[:3]
        sheet.imshow(images.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3), aspect="equal")
        sheet.set_title("image as is, then augmented")
        for row, name in enumerate(names):
            sheet.text(-0.1 * side, (row + 0.5) * side, name, ha="right", va="center", fontsize=8)
    style.save(figure, path)


def main(argv: Sequence[str]) -> None:
    """Prints sizes, counts, divisions and hash; writes JSON and a figure on request."""
    about = "Shows the split of a configuration: sizes, class counts, divisions, hash, samples."
    parser = Parser("python -m shike_jax inspect", about, _EPILOG)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    about = ".png, .pdf or .svg: class-count curve and a sheet of augmented samples"
    parser.add_argument("--figure", type=Path, help=about)
    parser.add_argument("--check", action="store_true", help="decode every image and report the unreadable ones")
    config, options = parse_command(parser, argv)
    if options.figure:
        if options.figure.suffix.lower() not in FIGURES:
            raise UserError(f"--figure={options.figure}: expected a name ending in {', '.join(FIGURES)}")
        optional("matplotlib", f"--figure={options.figure}")
    source = sources.load(config.data)
    for name, part in source.split.parts.items() if options.check and source.read is not None else ():
        for _ in HostPipeline(source, name, config).batches(sampling.in_order(len(part), 64)):
            pass  # `source.report` names the images that cannot be decoded
    say(describe(source.split, evaluated_part(config.data)))
    for line in source.report.lines():
        say(line)
    if options.json:
        with atomic.output(options.json, f"--json={options.json}") as partial:
            atomic.write_json(partial, summary(source.split, evaluated_part(config.data)))
    if options.figure:
        with atomic.output(options.figure, f"--figure={options.figure}") as partial:
            draw(source, config, partial)
