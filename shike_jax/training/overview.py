"""The network at a glance: how many parameters each of its parts has, and in which stages they train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shike_jax.common.text import aligned

PyTree = Any


def parameter_table(params: PyTree, trained: Mapping[str, PyTree]) -> list[str]:
    """Aligned lines, one for each part of the network (the first two names of the parameters' paths), and a sum.

    `params` are nested dicts of arrays or shapes; `trained` has booleans like params for each stage: what it trains.
    """
    flat = flatten_dict(params, sep="/")
    marks = {stage: flatten_dict(mask, sep="/") for stage, mask in trained.items()}
    parts: dict[str, list[str]] = {}
    for path in flat:
        parts.setdefault("/".join(path.split("/")[:2]), []).append(path)
    rows = [["parameters of", "arrays", "parameters", "trains in"]]
    for part, paths in parts.items():
        stages = [stage for stage, mask in marks.items() if any(mask[path] for path in paths)]
        size = sum(int(np.prod(flat[path].shape)) for path in paths)
        rows.append([part, f"{len(paths):,}", f"{size:,}", ", ".join(stages) or "no stage"])
    total = sum(int(np.prod(leaf.shape)) for leaf in flat.values())
    rows.append(["all", f"{len(flat):,}", f"{total:,}", ""])
    return aligned(rows, left=(0, 3))
