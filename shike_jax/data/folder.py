"""Any folder `{train,test}/CLASS/*.jpg` (`val` too, if there), with its own counts or a requested imbalance factor."""

from __future__ import annotations

import os

import numpy as np
from ml_collections import ConfigDict

from shike_jax.data.files import reader
from shike_jax.data.splits import Part, Split, longtailed
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError
from shike_jax.paths import EXTENSIONS, files_below, is_image, subfolders


def load(data: ConfigDict) -> Source:
    """Loads the image folder `config.data.root`; classes are the subfolders of `train`, sorted by name.

    Raises:
      UserError: no such folder, no class, a class without a training image, a class in `test` or `val` only.
    """
    root = data.root
    if not root:
        raise UserError("config.data.root is empty; expected a folder with train/CLASS/ and test/CLASS/")
    report = Report()
    parts: dict[str, Part] = {}
    class_names = _class_names(root, "train")
    for part in ("train", "val", "test"):
        if os.path.isdir(os.path.join(root, part)):
            parts[part] = _list_part(root, part, class_names, report)
    counts = np.bincount(parts["train"].labels, minlength=len(class_names))
    if not counts.all():
        empty = [class_names[c] for c in np.flatnonzero(counts == 0)]
        raise UserError(
            f"{root}/train/{empty[0]} holds no image, also not in its "
            f"subfolders ({len(empty)} empty classes); expected files ending in {', '.join(EXTENSIONS)}"
        )
    for part in parts.keys() - {"train"}:
        absent = len(class_names) - len(np.unique(parts[part].labels))
        if absent:
            report.notes.append(f"{absent} classes have no image in {root}/{part}: their accuracy cannot be measured")

    train = parts["train"]
    kept, rule = longtailed(train.labels, len(class_names), data, "folder")
    parts["train"] = Part(train.members[kept], train.labels[kept])
    name = data.name or os.path.basename(os.path.abspath(root))
    split = Split(name, rule, data.subset_seed, class_names, parts, data.divisions)
    return Source(split, read=reader(root, {part: one.members for part, one in parts.items()}), report=report)


def _class_names(root: str, part: str) -> tuple[str, ...]:
    folder = os.path.join(root, part)
    try:
        names = subfolders(folder)
    except OSError as error:
        expected = "expected {train,test}/CLASS/*.jpg under config.data.root"
        raise UserError(f"{folder}: {error.strerror}; {expected}") from None
    if not names:
        raise UserError(f"{folder} holds no class folder; expected {folder}/CLASS/*.jpg")
    return tuple(names)


def _list_part(root: str, part: str, class_names: tuple[str, ...], report: Report) -> Part:
    extra = sorted(set(_class_names(root, part)) - set(class_names))
    if extra:
        raise UserError(f"{root}/{part}/{extra[0]} has no counterpart in {root}/train ({len(extra)} such classes)")
    members: list[str] = []
    labels: list[int] = []
    other: list[str] = []
    for label, name in enumerate(class_names):
        folder = os.path.join(root, part, name)
        for file in _files(folder) if os.path.lexists(folder) else ():
            if is_image(os.path.basename(file)):
                members.append(f"{part}/{name}/{file}")
                labels.append(label)
            else:
                other.append(f"{part}/{name}/{file}")
    if other:
        report.notes.append(f"{len(other)} entries in {root}/{part} are no images and left out, such as {other[0]}")
    return Part(np.array(members, dtype=object), np.array(labels, np.int32))


def _files(folder: str) -> list[str]:
    try:
        return list(files_below(folder))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; expected a folder that can be read") from None
