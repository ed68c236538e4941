"""ImageNet-LT, iNaturalist 2018 and Places-LT through tensorflow-datasets, with random access and no decoding.

The labels of all examples are read once and kept in a small file next to the data; images are fetched one by one, by
position.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel
from shike_jax.common import atomic
from shike_jax.data.lists import load_lists, report_of, split_of_lists
from shike_jax.data.splits import Part, longtailed_split
from shike_jax.data.tensorflow_data import (
    Shard,
    check_apart,
    damage,
    find_builder,
    import_tensorflow,
    import_tfds,
    named_damage,
    shards,
    splits_of,
)
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError

PARTS = {  # part here -> split of tfds; the test images of iNaturalist have no labels
    "imagenet_lt": {"train": "train", "val": "validation", "test": "test"},
    "i_naturalist2018": {"train": "train", "val": "validation"},
    "places365_small": {"train": "train", "val": "validation"},
}
NAMES = tuple(PARTS)
AT_ONCE = 1000  # records of a file whose bytes are in memory
THREADS = 8


def load(data: ConfigDict) -> Source:
    """Loads the data set `config.data.name`; Places-LT picks the files of `config.data.{train,val,test}_list`."""
    name = data.name.partition(":")[0]
    builder = find_builder(data.name, data.data_dir, "array_record", data.try_gcs)  # the format with random access
    splits, said = splits_of(data, PARTS[name])
    records = {part: _records(builder, split) for part, split in splits.items()}
    if name == "places365_small":
        return _load_places(data, builder, records, splits)  # whose lists say what trains
    check_apart(builder, splits)
    return _load_natural(data, builder, records, splits, f"{name}{said}")


def _records(builder: Any, split: str) -> Any:
    """All examples of a tfds split by position, their images still encoded; `UserError` where a file lacks some."""
    from array_record.python.array_record_module import ArrayRecordReader  # comes with tensorflow-datasets

    for shard in shards(builder, split):
        with named_damage(shard.path, builder.prepared_by):
            count = ArrayRecordReader(shard.path).num_records()
        if count != shard.records:
            raise UserError(damage(shard.path, f"{count} records of {shard.records}", builder.prepared_by))
    return builder.as_data_source(split, decoders={"image": import_tfds().decode.SkipDecoding()})


def _load_natural(
    data: ConfigDict, builder: Any, records: dict[str, Any], splits: Mapping[str, str], rule: str
) -> Source:
    class_names = tuple(builder.info.features["label"].names)
    labels = {part: _column(builder, split, "label").astype(np.int32) for part, split in splits.items()}
    everything = {part: Part(np.arange(len(one)), one) for part, one in labels.items()}
    report = Report()
    name = data.name.partition(":")[0]
    split, _ = longtailed_split(name, rule, class_names, everything, data, notes=report.notes)

    def read(part: str, indices: Sequence[int]) -> list[bytes]:
        return [records[part][int(split.parts[part].members[i])]["image"] for i in indices]

    return Source(split, read=read, report=report)


def _load_places(data: ConfigDict, builder: Any, records: dict[str, Any], splits: Mapping[str, str]) -> Source:
    report = report_of(data)
    split = split_of_lists(load_lists(data, report), data, data.name.partition(":")[0], report)
    positions: dict[str, tuple[str, int]] = {}
    for part, tfds_split in splits.items():
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
    """One feature of all examples of a split, [N] integers or str.

    The main process reads it once, all files at a time and nothing of it decoded, and keeps it next to the data; where
    that cannot be written, in the user's folder of caches.
    """
    size = builder.info.splits[split].num_examples
    identity = f"{builder.info.full_name} {split} {size} {feature}"
    name = f"{feature}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = (builder.data_path / f".{name}", Path(cache, "shike_jax", name))
    column = None
    if parallel.is_main():
        column = _kept(places, size)
        if column is None:
            _keep(places, column := _read_column(builder, split, feature))
    parallel.barrier("labels")
    found = _kept(places, size) if column is None else column
    return _read_column(builder, split, feature) if found is None else found


def _kept(places: Sequence[Any], size: int) -> np.ndarray | None:
    for path in places:
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there yet, or damaged
            column = np.load(io.BytesIO(path.read_bytes()))
            if len(column) == size:
                return column
    return None


def _keep(places: Sequence[Any], column: np.ndarray) -> None:
    """Writes a column to the first place that takes it; without any, the next start reads it again."""
    for path in places:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(path) as partial:
                np.save(partial, column)
            return


def _read_column(builder: Any, split: str, feature: str) -> np.ndarray:
    from array_record.python.array_record_module import ArrayRecordReader

    tf = import_tensorflow()
    text = not hasattr(builder.info.features[feature], "names")
    wanted = {feature: tf.io.FixedLenFeature([], tf.string if text else tf.int64)}

    def read(shard: Shard) -> np.ndarray:
        reader, parts = ArrayRecordReader(shard.path), []
        for start in range(shard.skip, shard.end, AT_ONCE):
            records = reader.read(start, min(start + AT_ONCE, shard.end))
            parts.append(tf.io.parse_example(tf.constant(records), wanted)[feature].numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    with named_damage(builder.data_path, builder.prepared_by), ThreadPoolExecutor(THREADS) as pool:
        column = np.concatenate(list(pool.map(read, shards(builder, split))))
    return np.char.decode(column.astype(bytes), "utf-8") if text else column.astype(np.int64)
