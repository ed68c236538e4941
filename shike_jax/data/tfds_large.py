"""ImageNet-LT, iNaturalist 2018 and Places-LT through tensorflow-datasets, with random access and no decoding.

The labels of all examples are read once and kept in a small cache file; images are fetched one by one by position.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common import atomic
from shike_jax.data.lists import load_lists, split_of_lists
from shike_jax.data.splits import Part, Split, longtailed
from shike_jax.data.tensorflow_data import damage, find_builder, import_tfds, named_damage, shards
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError

PARTS = {  # part here -> split of tfds; the test images of iNaturalist have no labels
    "imagenet_lt": {"train": "train", "val": "validation", "test": "test"},
    "i_naturalist2018": {"train": "train", "val": "validation"},
    "places365_small": {"train": "train", "val": "validation"},
}
NAMES = tuple(PARTS)


def load(data: ConfigDict) -> Source:
    """Loads the data set `config.data.name`; Places-LT picks the files of `config.data.{train,val,test}_list`.

    Raises:
      UserError: the data set is not there, is stored without random access, or lacks files of a list.
    """
    builder = find_builder(data.name, data.data_dir, "array_record")  # the format with random access
    records = {part: _records(builder, split) for part, split in PARTS[data.name].items()}
    if data.name == "places365_small":
        return _load_places(data, builder, records)
    return _load_natural(data, builder, records)


def _records(builder: Any, split: str) -> Any:
    """All examples of a tfds split by position, their images still encoded.

    Raises:
      UserError: a file holds fewer examples than it should.
    """
    from array_record.python.array_record_module import ArrayRecordReader  # comes with tensorflow-datasets

    for path, expected in shards(builder, split):
        with named_damage(path, builder.prepared_by):
            count = ArrayRecordReader(path).num_records()
        if count != expected:
            raise UserError(damage(path, f"{count} records of {expected}", builder.prepared_by))
    return builder.as_data_source(split, decoders={"image": import_tfds().decode.SkipDecoding()})


def _load_natural(data: ConfigDict, builder: Any, records: dict[str, Any]) -> Source:
    class_names = tuple(builder.info.features["label"].names)
    labels = {part: _column(builder, split, "label").astype(np.int32) for part, split in PARTS[data.name].items()}
    kept = {part: np.arange(len(one)) for part, one in labels.items()}
    report = Report()
    kept["train"], rule = longtailed(labels["train"], len(class_names), data, data.name, notes=report.notes)
    parts = {part: Part(index, labels[part][index]) for part, index in kept.items()}
    split = Split(data.name, rule, data.subset_seed, class_names, parts, data.divisions)

    def read(part: str, indices: Sequence[int]) -> list[bytes]:
        return [records[part][int(kept[part][i])]["image"] for i in indices]

    return Source(split, read=read, report=report)


def _load_places(data: ConfigDict, builder: Any, records: dict[str, Any]) -> Source:
    report = Report()
    split = split_of_lists(load_lists(data, report), data, data.name, report)
    positions: dict[str, tuple[str, int]] = {}
    for part, tfds_split in PARTS[data.name].items():
        names = _column(builder, tfds_split, "filename").tolist()
        positions |= {_places_key(name): (part, i) for i, name in enumerate(names)}
    found: dict[str, list[tuple[str, int]]] = {}
    for name, one in split.parts.items():
        absent = [member for member in one.members if _places_key(member) not in positions]
        if absent:
            raise UserError(f"{data.name} lacks {len(absent)} files of part {name}, such as {absent[0]!r}")
        found[name] = [positions[_places_key(member)] for member in one.members]

    def read(part: str, indices: Sequence[int]) -> list[bytes]:
        return [records[where][position]["image"] for where, position in (found[part][i] for i in indices)]

    return Source(split, read=read, report=report)


def _places_key(path: str) -> str:
    """One name for a file: `train/arena-hockey/1.jpg` in the lists is `data_256/a/arena/hockey/1.jpg` in tfds."""
    folder, name = posixpath.split(path)
    if name.startswith("Places365_val_"):
        return name
    parts = folder.split("/")
    classes = parts[2:] if parts[0] == "data_256" else parts[1:]
    return f"{'-'.join(classes)}/{name}"


def _column(builder: Any, split: str, feature: str) -> np.ndarray:
    """Returns one feature of all examples, [N] integers or str; read once, then from a cache in the user's folder."""
    size = builder.info.splits[split].num_examples
    identity = f"{builder.data_path} {builder.info.full_name} {split} {size} {feature}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(cache, "shike_jax", hashlib.sha256(identity.encode()).hexdigest()[:16] + ".npy")
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there yet, or damaged
        return np.load(path)
    logging.getLogger(__name__).info("reading every %s of %s once (kept in %s)", feature, builder.info.full_name, path)
    with named_damage(builder.data_path, builder.prepared_by):
        values = [record[feature] for record in _records(builder, split)]
    column = np.array([v.decode() for v in values]) if isinstance(values[0], bytes) else np.array(values, np.int64)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time at the next start, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as partial:
            np.save(partial, column)
    return column
