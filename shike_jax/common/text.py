"""Names that others chose (of classes, files, runs), made safe for a terminal, for Markdown and for a spreadsheet."""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

_REORDERING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder what surrounds them
_MARKDOWN = re.compile(r"[\\`*\[|]|(?<!\w)_|_(?!\w)")
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?", re.IGNORECASE)


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that someone may have edited or damaged; ValueError also for what is nested too deeply for Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of plain data: numbers that are not finite become null, as JSON has no word for them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def some(items: Sequence[str], most: int = 3) -> str:
    """The first items, for a sentence, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def lines_of(text: str) -> list[str]:
    """The lines of a text file, whose names may hold what `str.splitlines` takes for a line's end (U+2028, NEL, FF)."""
    return re.split(r"\r\n|\r|\n", text)


def printable(text: str, keep: str = "") -> str:
    """Replaces what controls a terminal by escapes that can be read, except for the characters of `keep`.

    These are control characters, bidirectional overrides, line separators, and bytes of a file name that are no UTF-8,
    which Python keeps as lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def say(text: str = "", file: TextIO | None = None) -> None:
    """Prints lines (to `file`, else stdout) as `printable`; characters that `file` cannot encode are escaped too."""
    file = file or sys.stdout
    text = printable(text, keep="\n\t")
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def _harmless(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and character not in _REORDERING


def markdown(text: str) -> str:
    """Escapes text for a line or a table cell of Markdown: no tag, link, emphasis or column comes of it."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\g<0>", text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose cells are Markdown."""
    first, *others = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return [first, "|---" * len(header) + "|", *others]


def number(value: float | None, digits: int = 2) -> str:
    """A score for people; a dash for what is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def code(text: str) -> str:
    """Text as a code span of Markdown, also inside a table cell."""
    text = printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def slug(text: str) -> str:
    """A part of a file's name: lower-case letters, digits and underscores, whatever the text is."""
    return re.sub(r"\W+", "_", str(text).lower()).strip("_")[:80]


def spreadsheet(text: str) -> str:
    """Text for a cell of a CSV file: what a spreadsheet would take for a formula begins with an apostrophe instead."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text) else text


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Lines of a table whose columns are two spaces apart; flush left in the columns `left`, else flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
