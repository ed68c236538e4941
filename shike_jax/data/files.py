"""Image files under a root folder: reading them, and finding out quickly which are missing."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shike_jax.data.splits import Split


def reader(root: str, split: Split) -> Callable[[str, Sequence[int]], list[bytes]]:
    """Returns `read(part, indices)`: the bytes of the part's i-th member under `root` for each index i."""

    def read(part: str, indices: Sequence[int]) -> list[bytes]:
        contents = []
        for i in indices:
            with open(os.path.join(root, split.parts[part].members[i]), "rb") as file:
                contents.append(file.read())
        return contents

    return read


def missing_files(root: str, members: np.ndarray) -> np.ndarray:
    """Returns the indices of relative paths that are not files under `root`, ascending.

    Each folder is listed once instead of asking for every file: a million questions to a network disk take an hour.
    """
    present: dict[str, set[str]] = {}
    missing = []
    for i, member in enumerate(members):
        folder, name = posixpath.split(member)
        if folder not in present:
            present[folder] = set()
            with contextlib.suppress(OSError), os.scandir(os.path.join(root, folder)) as entries:
                present[folder] = {entry.name for entry in entries if entry.is_file()}
        if name not in present[folder]:
            missing.append(i)
    return np.array(missing, np.int64)


def stamps(root: str, members: np.ndarray) -> np.ndarray:
    """Size in bytes and time of change in ns of each file: int64 [N,2]; -1 for one that is not there.

    Many are asked for at once: a network disk answers each question after a while, but not one after the other.
    """

    def ask(member: str) -> tuple[int, int]:
        try:
            found = os.stat(os.path.join(root, member))
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    with ThreadPoolExecutor(32, "stamps") as pool:
        return np.array(list(pool.map(ask, members)), np.int64).reshape(-1, 2)
