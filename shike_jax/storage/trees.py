"""A run's state as nested dicts of named arrays: what checkpoints hold."""

from __future__ import annotations

import hashlib
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
    """Puts saved arrays into the structure of `template`, which must name exactly the same arrays.

    Raises:
      UserError: names missing from, or extra in, the checkpoint `where`, or an array of another shape.
    """
    target = traverse_util.flatten_dict(serialization.to_state_dict(template), sep="/", keep_empty_nodes=True)
    wanted = {k for k, v in target.items() if hasattr(v, "shape")}
    saved = traverse_util.flatten_dict(tree, sep="/")
    for kind, names in (("lacks", sorted(wanted - saved.keys())), ("has unexpected", sorted(saved.keys() - wanted))):
        if names:
            raise UserError(f"{where}: the checkpoint {kind} {some(names)}")
    for path in wanted:
        if target[path].shape != saved[path].shape:
            raise UserError(f"{where}: {path} has shape {saved[path].shape}, expected {target[path].shape}")
    return serialization.from_state_dict(template, traverse_util.unflatten_dict({**target, **saved}, sep="/"))
