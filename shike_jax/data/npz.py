"""Arrays of any shape and dtype as a data set: frozen features, spectrograms, tokens, one .npz file for each part."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.data.splits import Part, longtailed_split
from shike_jax.data.types import Source
from shike_jax.errors import UserError, naming

NAMES = ("features", "images")  # what the examples of a file may be called
PARTS = ("train", "test", "val")


def load(data: ConfigDict) -> Source:
    """Loads `config.data.npz.train`, `test` and perhaps `val`.

    Each file holds `features` (or `images`), numbers [N,...], and `labels`, whole numbers [N] from 0 on; the one of the
    training examples may hold `class_names`, texts [C]. Shape and dtype of an example are the same in all files.
    """
    paths = {part: data.npz[part] for part in PARTS if data.npz[part]}
    for part in PARTS[:2]:
        if part not in paths and part in ("train", data.test_part):
            raise UserError(
                f"config.data.npz.{part} is empty: expected a .npz file with features [N,...] and labels [N]"
            )
    files = {part: _read(path, f"config.data.npz.{part}={path}") for part, path in paths.items()}
    values = {part: file[0] for part, file in files.items()}
    parts = {part: Part(np.arange(len(file[1])), file[1]) for part, file in files.items()}
    kinds = {part: (array.shape[1:], array.dtype) for part, array in values.items()}
    for part, (shape, dtype) in kinds.items():
        if (shape, dtype) != kinds["train"]:
            expected = f"{kinds['train'][1]} {kinds['train'][0]} as in part train"
            raise UserError(f"config.data.npz.{part}={paths[part]}: examples {dtype} {shape}; expected {expected}")
    names = files["train"][2]
    for part, (_, labels, own) in files.items() if names else ():
        if own and own != names:  # as where a part lacks a class: its labels number its own classes
            said = f"config.data.npz.{part}={paths[part]}"
            parts[part] = Part(parts[part].members, _numbered_as(names, own, said)[labels])
    if not names:
        part = max(parts, key=lambda part: parts[part].labels.max())
        largest, count = int(parts[part].labels.max()), len(parts["train"])
        if largest >= count:  # before a name is made for each of what may be billions
            expected = f"labels below {count}, the number of training examples: every class needs one"
            raise UserError(f"config.data.npz.{part}={paths[part]}: a label {largest}; expected {expected}")
        names = tuple(map(str, range(1 + largest)))
    shape, dtype = kinds["train"]
    digest = hashlib.sha256(np.ascontiguousarray(values["train"]).data).hexdigest()[:12]
    rule = f"arrays {dtype} {list(shape)}, training ones {digest}"
    split, kept = longtailed_split(data.name or "arrays", rule, names, parts, data)
    return Source(split, values | {"train": values["train"][kept]})


def _numbered_as(names: tuple[str, ...], own: tuple[str, ...], said: str) -> np.ndarray:
    """The numbers that the classes `own` of a file have among `names`, int32 [C of the file]."""
    place = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in own if name not in place]:
        raise UserError(f"{said}: class {unknown[0]!r} of class_names is none of part train, such as {names[0]!r}")
    return np.array([place[name] for name in own], np.int32)


def _read(path: str, said: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Examples, labels int32 [N] and class names (empty where there are none) of one file."""
    with naming(said, "a readable .npz file"), np.load(path, allow_pickle=False) as file:
        found: dict[str, Any] = {name: file[name] for name in (*NAMES, "labels", "class_names") if name in file}
        there = ", ".join(file.files) or "nothing"
    values = next((found[name] for name in NAMES if name in found), None)
    if values is not None:  # in this machine's order of bytes: JAX takes no other
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values is None or "labels" not in found:
        raise UserError(f"{said}: it holds {there}; expected features (or images) and labels")
    labels = found["labels"]
    if values.dtype.kind not in "fiub" or not values.ndim or not len(values):
        raise UserError(f"{said}: features {values.dtype} {values.shape}; expected numbers [N,...]")
    if labels.shape != values.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(f"{said}: labels {labels.dtype} {labels.shape}; expected whole numbers ({len(values)},)")
    names = tuple(map(str, found.get("class_names", ())))
    below = len(names) or 2**31
    if labels.min() < 0 or labels.max() >= below:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"{said}: a label {wrong}; expected whole numbers from 0 to {below - 1}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise UserError(f"{said}: features of example {row} are not finite; expected finite numbers")
    if values.dtype in (np.float64, np.int64, np.uint64):  # as JAX computes
        values = values.astype(values.dtype.kind + "4")
    return values, labels.astype(np.int32), names
