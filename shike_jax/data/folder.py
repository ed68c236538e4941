"""Any folder `{train,test}/CLASS/*.jpg` (`val` too, if there) or `CLASS/*.jpg`, whose test images are drawn here."""

from __future__ import annotations

import os
import posixpath

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.class_names import comparable
from shike_jax.common.paths import EXTENSIONS, files_below, is_image, subfolders
from shike_jax.data.files import reader
from shike_jax.data.held_out import PART_OF, PARTS, drawn_for_testing, each_class
from shike_jax.data.splits import Part, longtailed_split
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError, naming


def load(data: ConfigDict) -> Source:
    """Loads the image folder `config.data.root`; classes are the subfolders of `train`, or of the folder itself.

    They are sorted by name. Without `train` a share of each class is held out for testing (`config.data.test_share`).
    Parts may have one of the other names that people give them, such as `valid`.
    """
    root = data.root
    if not root:
        raise UserError("config.data.root is empty; expected a folder with train/CLASS/ and test/CLASS/")
    if not os.path.exists(root):
        expected = "expected a folder with {train,test}/CLASS/*.jpg or CLASS/*.jpg"
        raise UserError(f"config.data.root={root}: No such file or directory (from {os.getcwd()}); {expected}")
    report, folders, rule = Report(), part_folders(root), "folder"
    drawn = not folders
    if drawn:
        class_names = _class_names(root, "")
        everything = _list_part(root, "", class_names, report, "")
        parts, said = drawn_for_testing(everything, data)
        rule += said
        if data.test_share:
            report.notes.append(f"{root} has no train/: {each_class(data.test_share)} held out for testing")
    else:
        trained = folders.get("train", "train")
        class_names = _class_names(root, trained)
        parts = {part: _list_part(root, name, class_names, report, trained) for part, name in folders.items()}
        if others := sorted(set(subfolders(root)) - set(folders.values())):
            report.notes.append(f"folders of {root} that are no parts are left out: {', '.join(others)}")
    counts = np.bincount(parts["train"].labels, minlength=len(class_names))
    if not counts.all():
        empty = [class_names[c] for c in np.flatnonzero(counts == 0)]
        raise UserError(
            f"{os.path.join(root, folders.get('train', ''), empty[0])} holds no image, also not in its "
            f"subfolders ({len(empty)} empty classes); expected files ending in {', '.join(EXTENSIONS)}"
        )
    name = data.name or os.path.basename(os.path.abspath(root))
    split, _ = longtailed_split(name, rule, class_names, parts, data, notes=report.notes)
    return Source(split, read=reader(root, split), report=report, root=root, drawn=drawn)


def part_folders(root: str) -> dict[str, str]:
    """The folder of each part, in the order train, val, test; empty where class folders lie directly in `root`.

    They do when a folder is there that bears no part's name, and none that bears one holds folders. Two folders for one
    part are a UserError.
    """
    try:
        names = subfolders(root)
        nested = [name for name in names if name.lower() in PART_OF and subfolders(os.path.join(root, name))]
    except OSError:  # said when the folder is listed
        return {"train": "train"}
    if not nested and any(name.lower() not in PART_OF for name in names):
        return {}
    found: dict[str, str] = {}
    for name in nested or names:
        part = PART_OF[name.lower()]
        if part in found:
            raise UserError(f"{root} holds {found[part]} and {name}: expected one folder for the part {part}")
        found[part] = name
    return {part: found[part] for part in PARTS if part in found} or {"train": "train"}


def _class_names(root: str, part: str) -> tuple[str, ...]:
    folder = os.path.join(root, part)
    with naming(folder, "{train,test}/CLASS/*.jpg or CLASS/*.jpg under config.data.root"):
        names = subfolders(folder)
    if not names:
        raise UserError(f"{folder} holds no class folder; expected {folder}/CLASS/*.jpg")
    return tuple(names)


def _list_part(root: str, part: str, class_names: tuple[str, ...], report: Report, train: str) -> Part:
    """The images of the classes in the folder `part`; `train` is the folder whose classes count."""
    extra = sorted(set(_class_names(root, part)) - set(class_names))
    if extra:
        alike = comparable(extra[0]) in map(comparable, class_names)
        form = "; it is there in another Unicode form: rename one of the two" if alike else ""
        raise UserError(
            f"{root}/{part}/{extra[0]} has no counterpart in {root}/{train} ({len(extra)} such classes){form}"
        )
    divided: list[str] = []
    members: list[str] = []
    labels: list[int] = []
    other: list[str] = []
    for label, name in enumerate(class_names):
        folder = os.path.join(root, part, name)
        with naming(folder, "a folder that can be read"):
            files = list(files_below(folder)) if os.path.lexists(folder) else []
        below = sorted({file.partition("/")[0] for file in files if "/" in file})
        if part == train and len(below) > 1:
            divided.append(f"{name} ({', '.join(below[:2])}{', ...' if len(below) > 2 else ''})")
        for file in files:
            member = posixpath.join(part, name, file)
            if is_image(os.path.basename(file)):
                members.append(member)
                labels.append(label)
            else:
                other.append(member)
    if divided:
        holding = f"{len(divided)} hold folders, such as {divided[0]}"
        report.notes.append(f"each class folder is one class with all below it; {holding}")
    if other:
        where = os.path.join(root, part)
        report.notes.append(f"{len(other)} entries in {where} are no images and left out, such as {other[0]}")
    return Part(np.array(members, dtype=object), np.array(labels, np.int32))
