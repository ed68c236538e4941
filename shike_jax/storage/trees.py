"""A run's state as nested dicts of named arrays: what checkpoints hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from shike_jax.common.text import some
from shike_jax.errors import UserError

PyTree = Any


def digest(tree: PyTree) -> str:
    """SHA-256 (hex) over the paths, dtypes, shapes and bytes of a nested dict of host arrays."""
    total = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(tree, sep="/").items()):
        leaf = np.ascontiguousarray(leaf)
        total.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        total.update(leaf.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def to_tree(state: PyTree) -> PyTree:
    """A state as nested dicts of arrays, without the empty places of frozen parameters."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state), sep="/")
    return traverse_util.unflatten_dict({k: v for k, v in flat.items() if v is not None}, sep="/")


def restore_into(template: PyTree, tree: PyTree, where: str) -> PyTree:
    """Puts saved arrays into the structure of `template`; UserError unless the checkpoint `where` has these arrays."""
    target = traverse_util.flatten_dict(serialization.to_state_dict(template), sep="/", keep_empty_nodes=True)
    saved = traverse_util.flatten_dict(tree, sep="/")
    shapes = {path: leaf.shape for path, leaf in target.items() if hasattr(leaf, "shape")}
    check_arrays(saved, shapes, f"{where}: these are not the arrays of this run")
    return serialization.from_state_dict(template, traverse_util.unflatten_dict({**target, **saved}, sep="/"))


def check_arrays(present: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises UserError that begins with `what` and names the first missing, unexpected and misshapen arrays."""
    shapes = {key: (tuple(present[key].shape), shape) for key, shape in expected.items() if key in present}
    problems = {
        "missing": [key for key in expected if key not in present],
        "not expected": [key for key in present if key not in expected],
        "wrong shape": [f"{key} {one} instead of {other}" for key, (one, other) in shapes.items() if one != other],
    }
    if any(problems.values()):
        most = 4 // sum(map(bool, problems.values()))
        text = "; ".join(f"{problem}: {some(names, most)}" for problem, names in problems.items() if names)
        raise UserError(f"{what}: {text}")
