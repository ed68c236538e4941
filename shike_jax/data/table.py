"""One CSV or JSON Lines file with a line for each image: `path`, `label` and, if the parts are given, `part`.

Blanks around values are dropped, unless the first line begins with a quotation mark (every value is quoted) or a brace.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.text import lines_of, parse_json
from shike_jax.data.files import reader
from shike_jax.data.held_out import COLUMNS, each_class, parted
from shike_jax.data.lists import LinePolicy, ListFile, drop_missing, path_fault, read_text, tidy
from shike_jax.data.splits import Part, Split, longtailed
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError

PARTS = ("train", "val", "test")
PART_COLUMNS = ("part", "split", "set", "subset")  # names that people give to the column of the parts
_PART_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def load(data: ConfigDict) -> Source:
    """Loads the table `config.data.table`; images lie under `config.data.root`, else in the table's folder.

    Labels are the names of the classes, sorted; by value where all of them are whole numbers. The parts are in a column
    `part`, or else `split`, `set` or `subset`; without any of these test images are drawn (`config.data.test_share`).

    Raises:
      UserError: no such file, no column `path` or `label`, two columns of parts, a bad line (`config.data.bad_line`),
        missing images, parts on some lines only, a class without a training image.
    """
    if not data.table:
        raise UserError("config.data.table is empty; expected a CSV or JSON Lines file with path, label[, part]")
    root, report = data.root or os.path.dirname(data.table) or ".", Report()
    policy = LinePolicy(data.bad_line, data.bad_image_limit, report)
    listed, names, part_of = _parse(data.table, policy)
    present = drop_missing(listed, root, policy)
    part_of = part_of[np.isin(listed.lines, present.lines)]
    name = data.name or os.path.basename(data.table).split(".")[0]
    everything, rule, drawn = Part(present.members, present.labels), f"table of {name}", bool(np.all(part_of == ""))
    if drawn:
        staying, held_out = parted(everything, data.test_share, data.subset_seed, "test")
        chosen = {"train": staying, "test": held_out}
        rule += f", {each_class(data.test_share)} for testing by name"
    else:
        chosen = {part: np.flatnonzero(part_of == part) for part in PARTS}
    parts = {p: Part(everything.members[i], everything.labels[i]) for p, i in chosen.items() if len(i)}
    if "train" not in parts:
        raise UserError(f"{data.table}: no line of part train")
    kept, rule = longtailed(parts["train"].labels, len(names), data, rule, notes=report.notes)
    parts["train"] = Part(parts["train"].members[kept], parts["train"].labels[kept])
    split = Split(name, rule, data.subset_seed, names, parts, data.divisions)
    read = reader(root, {part: one.members for part, one in parts.items()})
    return Source(split, read=read, report=report, root=root, drawn=drawn)


def _parse(path: str, policy: LinePolicy) -> tuple[ListFile, tuple[str, ...], np.ndarray]:
    """The good lines, the names of the classes, and the part that each line names (`` without one) [N]."""
    first_line: dict[str, int] = {}
    labels: list[str] = []
    parts: list[str] = []
    total = 0
    for number, row in _rows(path):
        total += 1
        member, label = ("" if row.get(key) is None else str(row[key]) for key in COLUMNS[:2])
        member, part = tidy(member), _part(path, number, row)
        reason = _fault(member, label, part, first_line)
        if reason:
            policy.bad(path, number, reason)
            continue
        first_line[member] = number
        labels.append(label)
        parts.append(part)
    if not labels:
        raise UserError(f"{path}: no usable line; expected path, label[, part] on each")
    policy.check_limit(path, total - len(labels), total)
    if "" in parts and any(parts):
        bare = [number for number, part in zip(first_line.values(), parts, strict=True) if not part]
        raise UserError(f"{path}:{bare[0]}: no part, but other lines have one ({len(bare)} such lines)")
    names = sorted(set(labels), key=_by_value if all(map(_is_whole, labels)) else None)
    index = {name: c for c, name in enumerate(names)}
    members, lines = np.array(list(first_line), dtype=object), np.array(list(first_line.values()), np.int64)
    listed = ListFile(path, members, np.array([index[label] for label in labels], np.int32), lines)
    return listed, tuple(names), np.array(parts, dtype=object)


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of each line that is not empty; names of columns in small letters."""
    text = read_text(path)
    if text.lstrip().startswith("{"):
        for number, line in enumerate(lines_of(text), 1):
            if line.strip():
                yield number, _json_object(path, number, line)
        return
    table = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    exact = text.lstrip().startswith('"')
    try:
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        absent = [name for name in COLUMNS[:2] if name not in (table.fieldnames or ())]
        if absent:
            expected = "path,label or path,label,part in the first line, or a JSON object on each"
            raise UserError(f"{path}: no column {absent[0]!r}; expected {expected}")
        for row in table:
            yield table.line_num, row if exact else {key: (row[key] or "").strip() for key in table.fieldnames}
    except csv.Error as error:
        raise UserError(f"{path}:{table.line_num}: not CSV ({error})") from None


def _part(path: str, number: int, row: dict[str, Any]) -> str:
    """The part that a line names in its column `part`, or else in one that people call otherwise; `` without one."""
    there = [key for key in PART_COLUMNS if key in row]
    if len(there) > 1 and there[0] != "part":
        raise UserError(f"{path}:{number}: columns {' and '.join(there)}; expected one that names the parts, `part`")
    part = str(row[there[0]] or "").strip().lower() if there else ""
    return _PART_NAMES.get(part, part)


def _json_object(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected a JSON object with path, label[, part]")
    return {key.lower(): value for key, value in row.items()}


def _fault(member: str, label: str, part: str, seen: dict[str, int]) -> str:
    if not member:
        return "no path"
    fault = path_fault(member, seen)
    if not fault and not label:
        return f"{member!r} has no label"
    if not fault and part not in ("", *PARTS):
        expected = f"{', '.join(PARTS)} in a column {', '.join(PART_COLUMNS)} (rename one that holds something else)"
        return f"part {part[:40]!r} of {member!r}; expected {expected}"
    return fault


def _is_whole(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) < 10


def _by_value(label: str) -> tuple[int, str]:
    return int(label), label
