"""Files that are written wholly or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shike_jax.common.text import to_json


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name next to `path` to write to; the file takes its place when the body succeeds.

    The name keeps the suffix. When the body fails, `path` is as it was and nothing else is left.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file; numbers that are not finite become null."""
    write_text(path, to_json(value, indent=1) + "\n")
