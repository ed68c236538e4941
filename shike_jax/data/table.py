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
from shike_jax.data.held_out import COLUMNS, PART_OF, PARTS, drawn_for_testing
from shike_jax.data.lists import ListFile, drop_missing, read_text, report_of, usable_lines
from shike_jax.data.splits import Part, longtailed_split, to_bytes
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError

PART_COLUMNS = ("part", "split", "set", "subset")  # names that people give to the column of the parts


def load(data: ConfigDict) -> Source:
    """Loads the table `config.data.table`; images lie under `config.data.root`, else in the table's folder.

    Labels are the names of the classes, sorted; by value where all of them are whole numbers. The parts are in a column
    `part`, or else `split`, `set` or `subset`; without any of these test images are drawn (`config.data.test_share`).
    """
    if not data.table:
        raise UserError("config.data.table is empty; expected a CSV or JSON Lines file with path, label[, part]")
    root, report = data.root or os.path.dirname(data.table) or ".", report_of(data)
    listed, names, part_of = _parse(data.table, report)
    if odd := [name for name in names if any("\udc80" <= letter <= "\udcff" for letter in name)]:
        report.notes.append(
            f"{data.table}: {len(odd)} labels are not in UTF-8, such as {odd[0]!a}; is the table in another encoding?"
        )
    present = drop_missing(listed, root, report)
    part_of = part_of[np.isin(listed.lines, present.lines)]
    name = data.name or os.path.basename(data.table).split(".")[0]
    everything, rule, drawn = Part(present.members, present.labels), f"table of {name}", bool(np.all(part_of == ""))
    if drawn:
        parts, said = drawn_for_testing(everything, data)
        rule += said
    else:
        parts = {part: everything[part_of == part] for part in PARTS if part in part_of}
    if "train" not in parts:
        raise UserError(f"{data.table}: no line of part train")
    split, _ = longtailed_split(name, rule, names, parts, data, notes=report.notes)
    return Source(split, read=reader(root, split), report=report, root=root, drawn=drawn)


def _parse(path: str, report: Report) -> tuple[ListFile, tuple[str, ...], np.ndarray]:
    """The good lines, the names of the classes, and the part that each line names (`` without one) [N]."""
    read = ((number, *_values(path, number, row)) for number, row in _rows(path))
    members, lines, values = usable_lines(path, read, _fault, report, "path, label[, part]")
    labels, parts = zip(*values, strict=True)
    if "" in parts and any(parts):
        bare = lines[[not part for part in parts]]
        raise UserError(f"{path}:{bare[0]}: no part, but other lines have one ({len(bare)} such lines)")
    by_value = all(label.isascii() and label.isdecimal() and len(label) < 10 for label in labels)
    names = sorted(set(labels), key=(lambda label: (int(label), label)) if by_value else None)
    index = {name: c for c, name in enumerate(names)}
    listed = ListFile(path, members, np.array([index[label] for label in labels], np.int32), lines)
    return listed, tuple(names), np.array(parts, dtype=object)


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of each line that is not empty; names of columns in small letters."""
    text = read_text(path)
    if text.lstrip().startswith("{"):
        for number, line in enumerate(lines_of(text), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected a JSON object with path, label[, part]")
            yield number, {key.lower(): value for key, value in row.items()}
        return
    # Strictly: an unclosed quotation mark would take all that follows for one value. What is too much goes under None.
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
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


def _values(path: str, number: int, row: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    """Path, label and part of a line; the part, `` without one, is in its column `part`, or in one called otherwise."""
    member, label = ("" if row.get(key) is None else str(row[key]) for key in COLUMNS[:2])
    there = [key for key in PART_COLUMNS if key in row]
    if len(there) > 1 and there[0] != "part":
        raise UserError(f"{path}:{number}: columns {' and '.join(there)}; expected one that names the parts, `part`")
    part = str(row[there[0]] or "").strip().lower() if there else ""
    return member, (label, PART_OF.get(part, part))


def _fault(member: str, value: tuple[str, str]) -> str:
    label, part = value
    for text in (member, label):
        try:
            to_bytes(text)
        except UnicodeEncodeError:  # JSON can write half a character
            return f"{text!a} is no text that a file could be called by"
    if not label:
        return f"{member!r} has no label"
    if part not in ("", *PARTS):
        expected = f"{', '.join(PARTS)} in a column {', '.join(PART_COLUMNS)} (rename one that holds something else)"
        return f"part {part[:40]!r} of {member!r}; expected {expected}"
    return ""
