"""Which parameters train: patterns over their paths, and the two halves of a parameter tree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
from flax import traverse_util

from shike_jax.errors import UserError

PyTree = Any


def trainable_mask(params: PyTree, patterns: Sequence[str], unused: tuple[str, ...] = ()) -> PyTree:
    """Marks the parameters whose path ("heads/classifier/expert0/kernel") a pattern matches in full.

    Parameters whose paths begin with one of `unused` take no part, whatever the patterns say. Returns booleans like
    `params` (nested dicts); `UserError` for a pattern that matches nothing, or nothing that takes part.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in patterns:
        found = [path for path in flat if re.fullmatch(pattern, path)]
        if not found:
            raise UserError(f"train pattern {pattern!r} matches no parameter; paths look like {next(iter(flat))!r}")
        if all(path.startswith(unused) for path in found):
            kept_out = " and ".join(sorted({next(u for u in unused if path.startswith(u)) for path in found}))
            raise UserError(f"train pattern {pattern!r} matches only {kept_out}*, which the stage does not use")
    marked = {
        path: any(re.fullmatch(pattern, path) for pattern in patterns) and not path.startswith(unused) for path in flat
    }
    if not any(marked.values()):
        raise UserError(f"train patterns {tuple(patterns)} leave nothing to train")
    return traverse_util.unflatten_dict(marked, sep="/")


def select(params: PyTree, mask: PyTree, keep: bool = True) -> PyTree:
    """Returns the parameters whose mask equals `keep`, with None in place of the others."""
    return jax.tree.map(lambda leaf, marked: leaf if marked == keep else None, params, mask)


def merge(trained: PyTree, frozen: PyTree) -> PyTree:
    """Puts the two halves that `select` made together again."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)
