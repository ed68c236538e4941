"""Any folder `{train,test}/CLASS/*.jpg` (`val` too, if there) or `CLASS/*.jpg`, whose test images are drawn here."""

from __future__ import annotations

import os
import posixpath

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.errors import UserError
from shike_jax.common.paths import EXTENSIONS, files_below, is_image, subfolders
from shike_jax.data.files import reader
from shike_jax.data.held_out import each_class, parted
from shike_jax.data.splits import Part, Split, longtailed
from shike_jax.data.types import Report, Source

# Names that people give to parts; only `train`, `val` and `test` are taken for them.
_PARTS = ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing")


def load(data: ConfigDict) -> Source:
    """Loads the image folder `config.data.root`; classes are the subfolders of `train`, or of the folder itself.

    They are sorted by name. Without `train` a share of each class is held out for testing (`config.data.test_share`).

    Raises:
      UserError: no such folder, no class, a class without a training image, a class in `test` or `val` only.
    """
    root = data.root
    if not root:
        raise UserError("config.data.root is empty; expected a folder with train/CLASS/ and test/CLASS/")
    report, drawn, rule = Report(), classes_lie_below(root), "folder"
    if drawn:
        class_names = _class_names(root, "")
        everything = _list_part(root, "", class_names, report)
        staying, held_out = parted(everything, data.test_share, data.subset_seed, "test")
        parts = {"train": Part(everything.members[staying], everything.labels[staying])}
        if len(held_out):
            parts["test"] = Part(everything.members[held_out], everything.labels[held_out])
        rule += f", {each_class(data.test_share)} for testing by name"
        if data.test_share:
            report.notes.append(f"{root} has no train/: {each_class(data.test_share)} held out for testing")
    else:
        class_names = _class_names(root, "train")
        there = [part for part in ("train", "val", "test") if os.path.isdir(os.path.join(root, part))]
        parts = {part: _list_part(root, part, class_names, report) for part in there}
    counts = np.bincount(parts["train"].labels, minlength=len(class_names))
    if not counts.all():
        empty = [class_names[c] for c in np.flatnonzero(counts == 0)]
        raise UserError(
            f"{os.path.join(root, '' if drawn else 'train', empty[0])} holds no image, also not in its "
            f"subfolders ({len(empty)} empty classes); expected files ending in {', '.join(EXTENSIONS)}"
        )
    train = parts["train"]
    kept, rule = longtailed(train.labels, len(class_names), data, rule, notes=report.notes)
    parts["train"] = Part(train.members[kept], train.labels[kept])
    name = data.name or os.path.basename(os.path.abspath(root))
    split = Split(name, rule, data.subset_seed, class_names, parts, data.divisions)
    read = reader(root, {part: one.members for part, one in parts.items()})
    return Source(split, read=read, report=report, root=root, drawn=drawn)


def classes_lie_below(root: str) -> bool:
    """Whether the class folders lie directly in `root`: others than `train`, `val`, `test`, and none of these has any.

    Raises:
      UserError: folders that seem to be parts under another name.
    """
    try:
        names = subfolders(root)
        nested = {name for name in names if name.lower() in _PARTS and subfolders(os.path.join(root, name))}
    except OSError:  # said when the folder is listed
        return False
    parts = {"train", "val", "test"}
    if nested - parts and "train" not in nested:
        wrong = min(nested - parts)
        raise UserError(f"{os.path.join(root, wrong)} holds folders: expected the names train, val, test for parts")
    return bool(set(names) - parts) and not nested


def _class_names(root: str, part: str) -> tuple[str, ...]:
    folder = os.path.join(root, part)
    try:
        names = subfolders(folder)
    except OSError as error:
        expected = "expected {train,test}/CLASS/*.jpg or CLASS/*.jpg under config.data.root"
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
            member = posixpath.join(part, name, file)
            if is_image(os.path.basename(file)):
                members.append(member)
                labels.append(label)
            else:
                other.append(member)
    if other:
        where = os.path.join(root, part)
        report.notes.append(f"{len(other)} entries in {where} are no images and left out, such as {other[0]}")
    return Part(np.array(members, dtype=object), np.array(labels, np.int32))


def _files(folder: str) -> list[str]:
    try:
        return list(files_below(folder))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; expected a folder that can be read") from None
