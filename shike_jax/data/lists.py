"""Published list files, one `path label` a line (plain or gzip), with an image folder with them."""

from __future__ import annotations

import codecs
import collections
import gzip
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.text import lines_of
from shike_jax.data.files import missing_files, reader
from shike_jax.data.splits import Part, Split, longtailed_split
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError, naming

Value = TypeVar("Value")
Pairs = collections.Counter[tuple[str, int]]  # how many lines have a folder name and a label
NAMING = 0.9  # share of the lines whose folders must agree with their labels for folders to name classes
LONGEST = 1000  # characters of a listed path; file systems end at 255 bytes a name and 4,096 a path


@dataclass(frozen=True, eq=False)
class ListFile:
    """A parsed list: relative paths [N] (object), labels int32 [N], and the line number of each, int64 [N]."""

    path: str
    members: np.ndarray
    labels: np.ndarray
    lines: np.ndarray


def parse_list(path: str, report: Report | None = None) -> ListFile:
    """Parses a list file; 437,513 lines take about a second.

    UserError where there is no such file, and, unless the report skips such lines, for a line without a label, a label
    that is no integer of at least 0, an absolute path or one that leaves the folder (`..`), a path listed twice.
    """
    split = ((number, line.strip().rsplit(None, 1)) for number, line in enumerate(lines_of(read_text(path)), 1))
    rows = ((number, fields[0], "".join(fields[1:])) for number, fields in split if fields)
    members, lines, labels = usable_lines(path, rows, _label_fault, report or Report(), "`relative/path label`")
    return ListFile(path, members, np.array(labels, np.int32), lines)


def usable_lines(
    path: str,
    rows: Iterable[tuple[int, str, Value]],
    fault: Callable[[str, Value], str],
    report: Report,
    expected: str,
) -> tuple[np.ndarray, np.ndarray, list[Value]]:
    """Paths [N] in their shortest form (object), line numbers int64 [N] and values of the lines that are not bad.

    Rows are the number of a line, its path and what else it holds, of which `fault` says what is wrong with it.
    """
    first_line: dict[str, int] = {}
    values: list[Value] = []
    bad = 0
    for number, member, value in rows:
        if "./" in member or "//" in member:  # one image has one name
            member = posixpath.normpath(member)
        if reason := _path_fault(member, first_line) or fault(member, value):
            report.bad_line(path, number, reason)
            bad += 1
            continue
        first_line[member] = number
        values.append(value)
    if not values:
        raise UserError(f"{path}: no usable line; expected {expected} on each")
    report.check_bad_lines(path, bad, bad + len(values))
    return np.array(list(first_line), dtype=object), np.array(list(first_line.values()), np.int64), values


def read_text(path: str) -> str:
    """The text of a list file, plain or gzip, without a byte order mark; UserError for UTF-16.

    Bytes that are no UTF-8 become lone surrogates, as in names of files.
    """
    with naming(f"list file {path}", "text, plain or gzip"), open(path, "rb") as file:
        content = file.read()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"list file {path}: not text in UTF-8 but in UTF-16; expected UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _label_fault(member: str, label: str) -> str:
    if not label:
        return f"{member!r} has no label; expected `relative/path label`"
    if not (label.isascii() and label.isdecimal() and len(label) < 10):
        return f"label {label[:40]!r} of {member!r}; expected an integer of at least 0"
    return ""


def _path_fault(member: str, seen: Mapping[str, int]) -> str:
    """What is wrong with a listed path, given the lines of those seen before; empty when it will do."""
    if not member:
        return "no path"
    if "\0" in member or len(member) > LONGEST:
        shown = member if len(member) <= LONGEST else f"{member[:40]}..."
        return f"{shown!r} is no path: {len(member)} characters, expected at most {LONGEST} and no NUL"
    if member[0] in "/\\" or member[1:2] == ":":
        return f"{member!r} is an absolute path; expected one relative to config.data.root"
    if ".." in member and ".." in member.replace("\\", "/").split("/"):
        return f"{member!r} leaves config.data.root; `..` is not allowed"
    if member in seen:
        return f"{member!r} is listed already in line {seen[member]}"
    return ""


def check_labels(train: ListFile, others: list[ListFile]) -> int:
    """The number of classes C of the training list; UserError for a gap, or a label of another list outside 0..C-1."""
    present = np.unique(train.labels)
    num_classes = int(present[-1]) + 1
    if len(present) != num_classes:
        gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise UserError(
            f"{train.path}: {num_classes - len(present)} labels below the largest have no image, the first is {gap}; "
            f"expected every label from 0 on (label {num_classes - 1} is in line {train.lines[train.labels.argmax()]})"
        )
    for one in others:
        if one.labels.max() >= num_classes:
            worst = int(one.labels.argmax())
            raise UserError(
                f"{one.path}:{one.lines[worst]}: label {one.labels[worst]} of {one.members[worst]!r}; "
                f"the training list {train.path} has 0..{num_classes - 1}"
            )
    return num_classes


def _relation(pairs: Pairs) -> tuple[dict[str, int], int]:
    """The label of each folder name, one to one, by the most frequent pairs; and how many lines agree with it."""
    label_of: dict[str, int] = {}
    taken: set[int] = set()
    for (name, label), _ in pairs.most_common():
        if name not in label_of and label not in taken:
            label_of[name] = label
            taken.add(label)
    return label_of, sum(count for (name, label), count in pairs.items() if label_of.get(name) == label)


def _check_same_relation(lists: list[ListFile], counted: list[Pairs]) -> None:
    """Raises UserError when folders name classes in two lists but have other labels in the one than in the other."""
    train, *_ = relations = [_relation(pairs) for pairs in counted]
    for one, pairs, (label_of, agreeing) in zip(lists[1:], counted[1:], relations[1:], strict=True):
        if train[1] < NAMING * counted[0].total() or agreeing < NAMING * pairs.total():
            continue  # one of the two does not name classes by folders
        wrong = [name for name, label in label_of.items() if train[0].get(name, label) != label]
        if wrong:
            name = wrong[0]
            raise UserError(
                f"{one.path}: folder {name!r} has label {label_of[name]}, but {train[0][name]} in {lists[0].path} "
                f"({len(wrong)} such folders); expected lists that number the classes alike"
            )


def class_folders(lists: list[ListFile], num_classes: int, report: Report) -> tuple[str, ...]:
    """Class names from the images' folders, or `0`, `1`, ... where the folders do not name classes.

    Folders name classes when each folder name has one label and each label one name, on all but a tenth of the lines.
    The report gets a remark when they do not although there are as many of them as classes. UserError where they do,
    and a line disagrees with the label of its folder, or two lists with each other.
    """
    folders = [[posixpath.basename(posixpath.dirname(member)) for member in one.members] for one in lists]
    counted = [Pairs(zip(names, one.labels.tolist(), strict=True)) for one, names in zip(lists, folders, strict=True)]
    _check_same_relation(lists, counted)
    pairs = sum(counted, Pairs())
    label_of, agreeing = _relation(pairs)
    name_of, total = {label: name for name, label in label_of.items()}, pairs.total()
    if len(name_of) < num_classes or agreeing < NAMING * total:
        if len({name for name, _ in pairs}) == num_classes:
            report.notes.append(
                f"{num_classes} folders and {num_classes} labels, but only {agreeing} of {total} lines have the label "
                f"of their folder's other images: classes are called 0..{num_classes - 1}; are the labels right?"
            )
        return tuple(map(str, range(num_classes)))
    if agreeing < total:
        for one, names in zip(lists, folders, strict=True):
            if label_of.keys().isdisjoint(names):
                continue  # a flat list, beside lists with so many more lines that their folders name the classes
            for i, (name, label) in enumerate(zip(names, one.labels.tolist(), strict=True)):
                if label_of.get(name) != label:
                    raise UserError(
                        f"{one.path}:{one.lines[i]}: {one.members[i]!r} has label {label}, but the other images of "
                        f"folder {name!r} have label {label_of.get(name)}: list and folder disagree"
                    )
    return tuple(name_of[c] for c in range(num_classes))


def load(data: ConfigDict) -> Source:
    """Loads the lists `config.data.{train,val,test}_list`; images lie under `config.data.root`.

    An empty root gives the split alone, for counting.
    """
    report = report_of(data)
    parsed = load_lists(data, report)
    if data.root:
        parsed = {part: drop_missing(one, data.root, report) for part, one in parsed.items()}
    else:
        report.notes.append("config.data.root is empty: counts only, no image can be read")
    name = data.name or os.path.basename(data.train_list).split(".")[0]
    split = split_of_lists(parsed, data, name, report)
    return Source(split, read=reader(data.root, split) if data.root else None, report=report, root=data.root)


def report_of(data: ConfigDict) -> Report:
    """An empty report that treats bad lines as `config.data` says."""
    return Report(skip_bad_lines=data.bad_line == "skip", limit=data.bad_image_limit)


def load_lists(data: ConfigDict, report: Report) -> dict[str, ListFile]:
    """Parses the lists that `config.data` names (or NAME.gz): `train` and whichever of `val` and `test` there are."""
    if not data.train_list:
        where = "or root=FOLDER (lists=FOLDER) as an argument of a configuration that knows their names"
        raise UserError(f"config.data.train_list is empty; expected a list file `path label`, {where}")
    paths = {"train": data.train_list, "val": data.val_list, "test": data.test_list}
    zipped = {part: f"{path}.gz" for part, path in paths.items() if path and not os.path.exists(path)}
    paths |= {part: path for part, path in zipped.items() if os.path.exists(path)}
    return {part: parse_list(path, report) for part, path in paths.items() if path}


def split_of_lists(parsed: dict[str, ListFile], data: ConfigDict, name: str, report: Report) -> Split:
    """Checks the lists against each other and returns their split, long-tailed if `config.data.profile` asks so."""
    train, others = parsed["train"], [one for part, one in parsed.items() if part != "train"]
    num_classes = check_labels(train, others)
    names = class_folders(list(parsed.values()), num_classes, report)
    training = set(train.members)
    for one in others:
        both = [member for member in one.members if member in training]
        if both:
            raise UserError(f"{one.path}: {len(both)} images are in {train.path} too, the first is {both[0]!r}")
    parts = {part: Part(one.members, one.labels) for part, one in parsed.items()}
    return longtailed_split(name, f"lists of {name}", names, parts, data, natural="", notes=report.notes)[0]


def drop_missing(one: ListFile, root: str, report: Report) -> ListFile:
    """The list without the files that are not under `root`, each of them a bad line."""
    missing = missing_files(root, one.members)
    if not len(missing):
        return one
    if len(missing) == len(one.members):
        raise UserError(f"{one.path}: none of its {len(missing)} images is under {root}, such as {one.members[0]!r}")
    for i in missing:
        reason = f"{one.members[i]!r} is not under {root} ({len(missing)} are missing)"
        report.bad_line(one.path, int(one.lines[i]), reason)
    report.check_bad_lines(one.path, len(missing), len(one.members))
    kept = np.setdiff1d(np.arange(len(one.members)), missing)
    return ListFile(one.path, one.members[kept], one.labels[kept], one.lines[kept])
