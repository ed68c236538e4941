"""Paths as users write them, and one rule for which files below a folder are images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shike_jax.common.buckets import place
from shike_jax.errors import UserError

# What Pillow reads everywhere; `.avif` only where Pillow was built with it, and otherwise an image that is left out.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif")


def expanded(value: Any) -> Any:
    """A path (str or Path), or a list of them, with a leading `~` replaced by the home folder; the rest as it is."""
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~") else value
    return value.expanduser() if isinstance(value, Path) and str(value).startswith("~") else value


def given_text(value: Any, name: str) -> str:
    """The text of a path or a name that a caller from Python gave as `name`, `~` expanded; `UserError` for no text."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{name}={value!r}: expected a path")
    return str(expanded(os.fspath(value)))


def given_path(value: Any, name: str) -> Any:
    """The place that a caller from Python gave as `name`, `~` expanded; `UserError` as `given_text` and `place`."""
    return place(given_text(value, name))


def is_image(name: str) -> bool:
    """Whether a file name is that of an image. Names that begin with a dot are not: macOS leaves `._x.jpg` files."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def subfolders(folder: str) -> list[str]:
    """Names of the folders directly in `folder`, links included, hidden ones not, sorted; OSError as `files_below`."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def files_below(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths relative to `folder` (with `/`) of all files in it and below that are not hidden.

    A folder's own files come before those of its subfolders, both by name. Links to folders are followed, except those
    that lead back to a folder they lie in, or to one of `above`. OSError for one that is missing or must not be read.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        found = sorted((entry.is_dir(), entry.name) for entry in entries if not entry.name.startswith("."))
    for is_folder, name in found:
        path = os.path.join(folder, name)
        if not is_folder:
            yield name
        elif os.path.realpath(path) not in above:
            yield from (f"{name}/{below}" for below in files_below(path, above))


def count_images(folder: str) -> int:
    """Images in a folder and below; 0 for one that is missing or must not be read, which loading will report."""
    try:
        return sum(is_image(os.path.basename(path)) for path in files_below(folder))
    except OSError:
        return 0


def count_lines(path: str) -> int:
    """Lines of a text file; 0 for one that is missing or must not be read, which loading will report."""
    try:
        with open(path, "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0
