"""A list of a folder's files with their digests, and what differs from it later.

Checkpoints are compared with their manifest before anything parses them: damage is named by file, and no parser meets
it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from etils import epath

from shike_jax.common.atomic import write_json
from shike_jax.common.text import parse_json

NAME = "manifest.json"


def write(folder: epath.Path) -> None:
    """Writes NAME into a finished local folder: {relative path: SHA-256 in hex} of every file."""
    files = {str(p.relative_to(folder)): _digest(p) for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    write_json(Path(folder / NAME), files)


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
            if _digest(Path(folder / name)) != expected:
                changes.append(f"{name} has changed")
        except (FileNotFoundError, NotADirectoryError):
            changes.append(f"{name} is missing")
    return changes


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
