"""Files that are written wholly or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shike_jax.common import buckets
from shike_jax.common.text import to_json
from shike_jax.errors import naming


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[Path]:
    """Yields a local name of the same suffix to write to; the file takes the place of `path` when the body succeeds.

    When the body fails, `path` is as it was and nothing else is left.
    """
    if buckets.in_bucket(path):
        with buckets.staged(path) as partial:
            yield partial
        return
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def output(path: Any, said: str) -> Iterator[Path]:
    """`replacing` for a file that a user named, whose folder is made; `said` begins the error of one that cannot be."""
    with naming(said):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            yield partial


@contextlib.contextmanager
def new_folder(target: Any) -> Iterator[Path]:
    """Yields a local folder to fill, which takes the place of `target`, absent or empty, when the body succeeds."""
    if buckets.in_bucket(target):
        with buckets.staged(target) as finished:
            yield finished
        return
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        yield (finished := Path(scratch) / "finished")
        finished.rename(target)  # replaces an empty folder


def write_text(path: Any, text: str) -> None:
    """Writes a text file in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Any, value: Any) -> None:
    """Writes a JSON file; numbers that are not finite become null."""
    write_text(path, to_json(value, indent=1) + "\n")
