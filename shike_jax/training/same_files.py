"""Whether a run that continues finds the image files that it began with: the split knows their names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shike_jax.common import atomic
from shike_jax.common.buckets import downloaded
from shike_jax.data.files import stamps
from shike_jax.data.types import Source

NAME = "files.npz"  # in the work directory: `stamps` of each part's files when the run began


def record_files(workdir: Path, source: Source) -> None:
    """Keeps the sizes and times of the image files of a run that begins; nothing where images are no files."""
    if source.root:
        with atomic.replacing(workdir / NAME) as partial:
            found: dict[str, Any] = {name: stamps(source.root, p.members) for name, p in source.split.parts.items()}
            np.savez_compressed(partial, **found)


def changed_files(workdir: Path, source: Source) -> str:
    """One line about files of another size or time than when the run began; empty when there are none or no record.

    The split is that of the checkpoint.
    """
    if not source.root or not (workdir / NAME).exists():
        return ""
    sizes, times, first, total = 0, 0, "", 0
    with downloaded(workdir / NAME) as local, np.load(local) as known:
        for name, part in source.split.parts.items():
            now = stamps(source.root, part.members)
            other_size, other = now[:, 0] != known[name][:, 0], (now != known[name]).any(1)
            sizes, times, total = sizes + other_size.sum(), times + (other & ~other_size).sum(), total + len(now)
            if other.any() and not first:
                first = str(part.members[np.flatnonzero(other)[0]])
    if not first:
        return ""
    return (
        f"{sizes + times:,} of {total:,} image files are not as they were when the run began ({sizes:,} of another "
        f"size, {times:,} of the same size and another time; the first: {first}); the split is the same"
    )
