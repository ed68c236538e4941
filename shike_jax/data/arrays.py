"""Exported splits: one compressed .npz with images, labels and the split's identity, read without TensorFlow.

The file holds the images as differences of neighbours, not as pixels; `load` gives the pixels back.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common import atomic
from shike_jax.common.buckets import local
from shike_jax.common.text import parse_json
from shike_jax.data.splits import Part, Split, profile_rule
from shike_jax.data.types import Source
from shike_jax.errors import UserError, naming

# 1: the same arrays under PART_images, a name by which other programs took them for pixels. It can still be read.
FORMAT = 2
IMAGES = {1: "{}_images", 2: "{}_image_differences"}  # format: name of a part's array of `_differences`


def check_output(path: str) -> None:
    """Raises UserError when `path` exists: loading a split takes a while, so commands ask before."""
    if os.path.exists(path):
        raise UserError(f"output {path} exists already; remove it or choose another name")


def save(source: Source, path: str) -> None:
    """Writes a small-image source to `path`, all or nothing; `UserError` for other data, or a file that exists."""
    if source.images is None or not source.has_pictures:
        raise UserError(f"{source.split.name}: only small-image splits (CIFAR, digits) can be exported as arrays")
    check_output(path)
    split = source.split
    meta = {
        "format": FORMAT,
        "name": split.name,
        "rule": split.rule,
        "seed": split.seed,
        "class_names": split.class_names,
        "parts": list(split.parts),
        "hash": split.hash,
    }
    content: dict[str, Any] = {"meta": np.array(json.dumps(meta))}
    for name, part in split.parts.items():
        members = part.members if part.members.dtype.kind in "iu" else part.members.astype(str)
        content |= {f"{name}_members": members, f"{name}_labels": part.labels}
        content[IMAGES[FORMAT].format(name)] = _differences(source.images[name])
    with atomic.output(local(path).absolute(), f"output {path}") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **content)


def load(data: ConfigDict) -> Source:
    """Reads the file `config.data.root` that `save` wrote; split hash and images come back exactly."""
    path = data.root
    if not path:
        raise UserError("config.data.root is empty; expected the file written by `python -m shike_jax pack`")
    with naming(f"config.data.root={path}", "an exported split"), np.load(path, allow_pickle=False) as content:
        meta = parse_json(str(content["meta"]))
        if meta["format"] not in IMAGES:
            raise UserError(
                f"config.data.root={path}: format {meta['format']}, expected one of {', '.join(map(str, IMAGES))}; "
                "export it again"
            )
        parts = {p: Part(content[f"{p}_members"], content[f"{p}_labels"]) for p in meta["parts"]}
        arrays = {p: content[IMAGES[meta["format"]].format(p)] for p in meta["parts"]}
        images = {p: _undo_differences(array) for p, array in arrays.items()}
    split = Split(meta["name"], meta["rule"], meta["seed"], tuple(meta["class_names"]), parts, data.divisions)
    if split.hash != meta["hash"]:
        raise UserError(f"config.data.root={path}: damaged, its contents do not match their hash; export it again")
    side = images["train"].shape[1]
    if side != data.image_size:
        raise UserError(
            f"config.data.root={path}: its images have {side} pixels a side; expected config.data.image_size="
            f"{data.image_size}, or a configuration for {side} pixels"
        )
    source = Source(split, images)
    if data.profile != "natural" and profile_rule(data) not in split.rule:
        source.report.notes.append(
            f"{path} decides which images train ({split.rule}); profile, imbalance_factor and subset of config.data "
            f"({profile_rule(data)[2:]}) change nothing"
        )
    return source


def _differences(images: np.ndarray) -> np.ndarray:
    """Colours minus green, then differences along columns and rows, modulo 256: a third smaller once compressed."""
    planes = images.copy()
    planes[..., (0, 2)] -= images[..., 1:2]
    planes[:, :, 1:] -= planes[:, :, :-1].copy()
    planes[:, 1:] -= planes[:, :-1].copy()
    return planes


def _undo_differences(planes: np.ndarray) -> np.ndarray:
    images = planes.cumsum(axis=1, dtype=np.uint8).cumsum(axis=2, dtype=np.uint8)
    images[..., (0, 2)] += images[..., 1:2]
    return images
