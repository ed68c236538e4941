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
    """Writes NAME into a finished local folder: {relative path: SHA-256 in hex} of every file."""
    files = {str(p.relative_to(folder)): _digest(p) for p in _files(folder)}
    partial = folder / f".{NAME}"
    partial.write_text(to_json(files, indent=1))
    partial.replace(folder / NAME)


def differences(folder: epath.Path) -> list[str]:
    """Says of each listed file that is missing or has changed; nothing for a folder without a manifest.

    (A folder that was finished in the moment before a kill has none yet.)

    Raises:
      OSError: a file is there and cannot be read, which says nothing of what is in it.
    """
    try:
        listed = dict(parse_json((folder / NAME).read_text()))
    except ValueError as error:
        return [f"{NAME} cannot be read ({error})"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    changes = []
    for name, expected in listed.items():
        try:
            if _digest(folder / name) != expected:
                changes.append(f"{name} has changed")
        except (FileNotFoundError, NotADirectoryError):
            changes.append(f"{name} is missing")
    return changes


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
