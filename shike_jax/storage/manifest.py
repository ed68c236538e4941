"""A list of a folder's files with their digests, and what differs from it later.

Checkpoints are compared with their manifest before anything parses them: damage is named by file, and no parser meets
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from etils import epath

from shike_jax.common.text import parse_json, to_json

NAME = "manifest.json"


def write(folder: epath.Path) -> None:
    """Writes NAME into a finished folder (path or bucket URL): {relative path: SHA-256 in hex} of every file."""
    files = {str(p.relative_to(folder)): _digest(p) for p in _files(folder)}
    partial = folder / f".{NAME}"
    partial.write_text(to_json(files, indent=1))
    partial.replace(folder / NAME)


def differences(folder: epath.Path) -> list[str]:
    """Says of each listed file that is missing or has changed; nothing for a folder without a manifest.

    (A folder that was finished in the moment before a kill has none yet.)
    """
    if not (folder / NAME).exists():
        return []
    try:
        listed = dict(parse_json((folder / NAME).read_text()))
    except ValueError as error:
        return [f"{NAME} cannot be read ({error})"]
    changes = []
    for name, expected in listed.items():
        if not (folder / name).exists():
            changes.append(f"{name} is missing")
        elif _digest(folder / name) != expected:
            changes.append(f"{name} has changed")
    return changes


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):  # buckets know no `**`
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
