"""Figures with names in any script: another installed font where the usual one lacks a character, else numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from shike_jax.common.text import printable


def names_or_numbers(names: Sequence[str]) -> list[str]:
    """Each name, or its position in the list where no installed font can draw it."""
    shown = []
    for i, name in enumerate(map(printable, names)):
        lacking = frozenset(name) - _usual()[1]
        shown.append(str(i) if lacking - set(_substitutes(lacking)) else name)
    return shown


def fit(figure: Any) -> None:
    """Prepares all texts of a matplotlib figure: no character without a font, no name taken for a formula ($).

    What no font can draw becomes an escape such as \\u87fb.
    """
    from matplotlib.text import Text

    for found in figure.findobj(Text):
        text = found.get_text()
        if "$" in text and "\\mathdefault" not in text:  # which matplotlib writes itself, on logarithmic axes
            found.set_parse_math(False)
        if text.isascii():
            continue
        lacking = frozenset(text) - _usual()[1] - {"\n"}
        substitutes = _substitutes(lacking)
        for character in lacking - set(substitutes):
            text = text.replace(character, character.encode("unicode_escape").decode())
        found.set_text(text)
        if substitutes:
            found.set_fontfamily([_usual()[0], *sorted(set(substitutes.values()))])


@functools.cache
def _usual() -> tuple[str, frozenset[str]]:
    """Family and characters of matplotlib's own font."""
    from matplotlib import font_manager

    path = font_manager.findfont("DejaVu Sans")
    return "DejaVu Sans", _characters(path)


@functools.cache
def _substitutes(lacking: frozenset[str]) -> dict[str, str]:
    """{character: family of an installed font that has it}; as few families as come first."""
    from matplotlib import font_manager

    found: dict[str, str] = {}
    for entry in font_manager.fontManager.ttflist if lacking else ():
        if len(found) == len(lacking):
            break
        # The last-resort font draws the same box for all characters of a script.
        if entry.style == "normal" and entry.weight == 400 and not entry.name.startswith("Last Resort"):
            found |= {c: entry.name for c in _characters(entry.fname) if c in lacking and c not in found}
    return found


@functools.cache
def _characters(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font file that is damaged, or of a kind that FreeType does not know
        return frozenset()
