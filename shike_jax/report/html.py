"""One self-contained HTML page in light and dark: tables that sort, figures and images inlined as data."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shike_jax.common.text import printable
from shike_jax.report.tables import Table

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --quiet: #444; --ours: #eef4f9;
  --rule: #333; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e6ea; --back: #15181c; --quiet: #a9b1ba; --ours: #1d2a36; --rule: #9aa3ad; }
  img.chart { filter: invert(.92) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #999; }
nav { font-size: .9rem; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .2rem .6rem; text-align: right; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child { text-align: left; min-width: 10rem; overflow-wrap: anywhere; }
thead th { border-top: 2px solid var(--rule); border-bottom: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 2px solid var(--rule); }
tbody th { font-weight: 400; }
tr.ours > * { font-weight: 600; background: var(--ours); }
p.note, figcaption { font-size: .88rem; color: var(--quiet); max-width: 48rem; }
a { color: inherit; } th[aria-sort], .sorts th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " \\25b4"; } th[aria-sort=descending]::after { content: " \\25be"; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
.images figure { margin: 0; font-size: .8rem; overflow-wrap: anywhere; }
.images img { width: 100%; image-rendering: pixelated; border: 3px solid #2a7a4b; box-sizing: border-box; }
.images .wrong img { border-color: #b3372f; }
details { margin: 1.5rem 0; } summary { font-weight: 600; cursor: pointer; }
figure { margin: 1.5rem 0; max-width: 54rem; } img { max-width: 100%; height: auto; }
@media (max-width: 52rem) { /* too narrow for columns: each row is a block, its numbers below its name */
  thead { display: none; }
  table, tbody, caption { display: block; }
  tr.ours { background: var(--ours); }
  tbody tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); padding: .3rem 0;
    border-bottom: 1px solid #ccc; }
  tbody tr:last-child > * { border-bottom: 0; }
  tbody th { grid-column: 1 / -1; }
  td { text-align: left; }
  td.none { display: none; }
  td::before { content: attr(data-name); display: block; font-size: .75rem; font-weight: 400; color: var(--quiet);
    white-space: normal; }
}
@media print { figure, table { break-inside: avoid; } body { max-width: none; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .15rem .35rem; } }
"""
# Sorts by the column that is clicked on: numbers as numbers, texts as texts, what is missing last.
_SORT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => { const t = row.cells[i].textContent.replaceAll(",", ""), n = parseFloat(t);
    return isNaN(n) ? t : n; };
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (a, b) => { const x = value(a, i), y = value(b, i);
      if (x === "-" || y === "-") return (x === "-") - (y === "-");
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -order : order; };
    body.append(...[...body.rows].sort(compare));
  }));
}
"""
_NOTHING = ' class="none"'  # an empty cell keeps its place in a column, and needs none below its row's name


class Picture(NamedTuple):
    """A figure: its SVG file, heading and caption."""

    path: Path
    title: str
    caption: str


class Example(NamedTuple):
    """A test image: a PNG file's content, whether it was recognised, and what is said below it."""

    png: bytes
    right: bool
    caption: str


@dataclasses.dataclass
class Section:
    """One data set: tables, figures, {label of a run: its images}, and lines on what is missing."""

    title: str
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    examples: dict[str, list[Example]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)


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
<script>{_SORT}</script>
</body>
</html>
"""


def _text(value: str) -> str:
    """Escaped for text and for attributes in double quotes."""
    return html.escape(printable(value))


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}">', f"<h2>{_text(section.title)}</h2>"]
    parts += map(_table, section.tables[:1])
    parts += map(_picture, section.pictures)
    parts += [_images(label, shown) for label, shown in section.examples.items()]
    parts += map(_table, section.tables[1:])
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
    kind = ' class="sorts"' if table.sortable else ""
    sheet = (
        f'<div class="scroll"><table{kind}><caption>{_text(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )
    return f"<details><summary>{_text(table.title)}</summary>{sheet}</details>" if table.sortable else sheet


def _images(label: str, shown: Sequence[Example]) -> str:
    figures = []
    for example in shown:
        data, kind = base64.b64encode(example.png).decode(), "" if example.right else ' class="wrong"'
        caption = _text(example.caption)
        figures.append(
            f'<figure{kind}><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    about = "Green: recognised, from the most to the least certain. Red: the most certain mistakes."
    title = _text(f"{label}: test images with the probability of the answer")
    return f'<h3>{title}</h3><p class="note">{about}</p><div class="images">{"".join(figures)}</div>'


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f'<figure><img class="chart" alt="{_text(picture.title)}" src="data:image/svg+xml;base64,{data}">\n'
        f"<figcaption><b>{_text(picture.title)}.</b> {_text(picture.caption)}</figcaption></figure>"
    )
