"""Parts drawn from a data set's own images: test images of a folder that has none, validation images of any source.

Which images are drawn is a function of the seed and of their names alone, not of their order or of where they lie.
Images that are added to a class later leave the others where they are, but for a few at the border.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common import atomic
from shike_jax.data.splits import Part, Split, to_bytes
from shike_jax.data.types import Source
from shike_jax.errors import UserError

COLUMNS = ("path", "label", "part")  # of split.csv; `config.data.source='table'` reads them
# The names that people give to parts, in small letters.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
PART_OF = {name: part for part, names in PARTS.items() for name in names}


def evaluated_part(data: ConfigDict) -> str:
    """The part that a run looks at during and after training: `val` where `config.data.validation` makes one."""
    return "val" if data.validation else data.test_part


def draw(part: Part, amount: float, seed: int, purpose: str) -> np.ndarray:
    """Positions of the images that are drawn from each class of a part, ascending: int64 [n].

    An amount of 0 draws nothing. Below 1 it is the share of each class, rounded; from 1 on so many images of each
    class, but at most half of them. Of two images or more at least one is drawn and at least one is left; a single one
    is never drawn. Draws for other purposes are independent.
    """
    if not amount:
        return np.zeros(0, np.int64)
    drawn: list[np.ndarray] = []
    by_class = np.argsort(part.labels, kind="stable")
    for positions in np.split(by_class, np.cumsum(np.bincount(part.labels))[:-1]):
        count = len(positions)
        if count < 2:
            continue
        wanted = round(amount * count) if amount < 1 else min(int(amount), count // 2)
        keys = [hashlib.sha256(to_bytes(f"{purpose}\0{seed}\0{part.members[i]}")).digest() for i in positions]
        order = sorted(range(count), key=keys.__getitem__)
        drawn.append(positions[order[: min(max(wanted, 1), count - 1)]])
    return np.sort(np.concatenate(drawn or [np.zeros(0, np.int64)])).astype(np.int64)


def parted(part: Part, amount: float, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """(positions that stay, positions drawn) of `draw`."""
    drawn = draw(part, amount, seed, purpose)
    return np.setdiff1d(np.arange(len(part)), drawn), drawn


def drawn_for_testing(part: Part, data: ConfigDict) -> tuple[dict[str, Part], str]:
    """Parts `train` and, where anything is drawn, `test` (`config.data.test_share`), and what the rule says of it."""
    staying, held_out = parted(part, data.test_share, data.subset_seed, "test")
    parts = {"train": part[staying]} | ({"test": part[held_out]} if len(held_out) else {})
    return parts, f", {each_class(data.test_share)} for testing by name"


def each_class(amount: float) -> str:
    """The amount in words: `20 % of each class`, `5 images of each class`."""
    return f"{100 * amount:g} % of each class" if amount < 1 else f"{amount:g} images of each class"


def with_validation(source: Source, data: ConfigDict) -> Source:
    """The source with a part `val` of `config.data.validation` images of each class, which no longer train.

    Class counts, and all that follows from them, are those of the images that still train.
    """
    split, amount = source.split, data.validation
    if "val" in split.parts:
        raise UserError(
            f"config.data.validation={amount:g}: {split.name} has a part val already; to look at that during training: "
            "validation 0 and config.data.test_part='val'"
        )
    train = split.parts["train"]
    taken = dict(zip(("train", "val"), parted(train, amount, data.subset_seed, "validation"), strict=True))
    parts = {name: train[chosen] for name, chosen in taken.items()}
    parts |= {name: part for name, part in split.parts.items() if name != "train"}
    rule = f"{split.rule}; {each_class(amount)} held out for validation by name"
    # Another name: reports put runs into one table by it, and accuracies of other images do not belong there.
    changed = dataclasses.replace(split, name=f"{split.name}-val{amount:g}", rule=rule, parts=parts)
    images, read = source.images, source.read
    if images is not None:
        images = images | {name: images["train"][chosen] for name, chosen in taken.items()}
    if read is not None:
        stored = read

        def read(part: str, indices: Sequence[int]) -> list[bytes]:
            return stored("train", taken[part][list(indices)].tolist()) if part in taken else stored(part, indices)

    return dataclasses.replace(source, split=changed, images=images, read=read, drawn=True)


def write_csv(path: Path, split: Split) -> None:
    """Writes which image is in which part, as `path,label,part` with the names of the classes.

    Names stand as they are, so that the file can be read back as a source: it is data, not for a spreadsheet. Every
    value is quoted where a name begins or ends with a blank or holds a carriage return: such files are read exactly.
    """
    names = (*split.class_names, *(str(member) for part in split.parts.values() for member in part.members))
    odd = any(name != name.strip() or "\r" in name for name in names)
    with (
        atomic.replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL)
        writer.writerow(COLUMNS)
        for name, part in split.parts.items():
            for member, label in zip(part.members, part.labels, strict=True):
                writer.writerow((member, split.class_names[label], name))
