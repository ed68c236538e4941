"""One self-contained HTML page: tables, and figures inlined as PNG data."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from shike_jax.common.text import printable
from shike_jax.report.tables import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #999; }
nav { font-size: .9rem; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .2rem .6rem; text-align: right; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child { text-align: left; min-width: 10rem; overflow-wrap: anywhere; }
thead th { border-top: 2px solid #333; border-bottom: 1px solid #333; }
tbody tr:last-child > * { border-bottom: 2px solid #333; }
tbody th { font-weight: 400; }
tr.ours > * { font-weight: 600; background: #eef4f9; }
p.note, figcaption { font-size: .88rem; color: #444; max-width: 48rem; }
figure { margin: 1.5rem 0; max-width: 54rem; } img { max-width: 100%; height: auto; }
@media (max-width: 52rem) { /* too narrow for columns: each row is a block, its numbers below its name */
  thead { display: none; }
  table, tbody, caption { display: block; }
  tr.ours { background: #eef4f9; }
  tbody tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); padding: .3rem 0;
    border-bottom: 1px solid #ccc; }
  tbody tr:last-child > * { border-bottom: 0; }
  tbody th { grid-column: 1 / -1; }
  td { text-align: left; }
  td.none { display: none; }
  td::before { content: attr(data-name); display: block; font-size: .75rem; font-weight: 400; color: #555;
    white-space: normal; }
}
@media print { figure, table { break-inside: avoid; } body { max-width: none; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .15rem .35rem; } }
"""
_NOTHING = ' class="none"'  # an empty cell keeps its place in a column, and needs none below its row's name


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure: its PNG file, heading and caption."""

    path: Path
    title: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """One data set: tables, figures, and lines on what is missing."""

    title: str
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    missing: Sequence[str] = ()


def page(title: str, introduction: Sequence[str], sections: Sequence[Section]) -> str:
    """Returns the whole page; it refers to nothing outside itself."""
    names = [f'<a href="#s{i}">{_text(section.title)}</a>' for i, section in enumerate(sections)]
    body = "\n".join(_section(i, section) for i, section in enumerate(sections))
    paragraphs = "\n".join(f"<p>{_text(text)}</p>" for text in introduction)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{paragraphs}
<nav>{" · ".join(names)}</nav>
{body}
</body>
</html>
"""


def _text(value: str) -> str:
    """Escaped for text and for attributes in double quotes."""
    return html.escape(printable(value))


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}">', f"<h2>{_text(section.title)}</h2>"]
    parts += map(_table, section.tables)
    parts += map(_picture, section.pictures)
    if section.missing:
        items = "".join(f"<li>{_text(text)}</li>" for text in section.missing)
        parts.append(f'<p class="note">Not shown:</p><ul class="note">{items}</ul>')
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    rows = []
    for i, row in enumerate(table.rows):
        cells = f'<th scope="row">{_text(row[0])}</th>' + "".join(
            f'<td data-name="{_text(name)}"{_NOTHING if cell in ("", "-") else ""}>{_text(cell)}</td>'
            for name, cell in zip(table.header[1:], row[1:], strict=True)
        )
        ours = ' class="ours"' if i in table.ours else ""
        rows.append(f"<tr{ours}>{cells}</tr>")
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{_text(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f'<figure><img alt="{_text(picture.title)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption><b>{_text(picture.title)}.</b> {_text(picture.caption)}</figcaption></figure>"
    )
