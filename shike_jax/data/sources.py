"""Data sources by name: `load(config.data)` gives the split and its images."""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.class_names import comparable
from shike_jax.data import arrays, cifar_archive, digits, folder, lists, npz, table, tfds_source
from shike_jax.data.files import reader
from shike_jax.data.held_out import evaluated_part, with_validation
from shike_jax.data.splits import Split
from shike_jax.data.types import Report, Source
from shike_jax.errors import UserError
from shike_jax.methods.tables import SOURCES

__all__ = ["Report", "Source", "load", "load_whole"]

for _module in (arrays, digits, folder, lists, npz, table):
    SOURCES.register(_module.__name__.rpartition(".")[2])(_module.load)
SOURCES.register("tfds")(tfds_source.load)
SOURCES.register("archive")(cifar_archive.load)


def load(data: ConfigDict) -> Source:
    """Loads the source that `config.data` names; UserError for missing folders, broken lists and the like."""
    source = _loaded(data)
    source.report.notes += _alike(source.split.class_names)
    if data.validation:
        source = with_validation(source, data)
    part = evaluated_part(data)
    if part not in source.split.parts:
        parts = ", ".join(source.split.parts)
        instead = "config.data.validation=0.1 to hold out training images"
        expected = "config.data.test_part='val'" if "val" in source.split.parts else f"one of its parts, or {instead}"
        raise UserError(
            f"config.data.test_part={data.test_part!r}: {source.split.name} has {parts}; expected {expected}"
        )
    if not len(source.split.parts[part]):
        why = "every class has a single training image" if data.validation else "it holds no image that can be read"
        raise UserError(f"{source.split.name}: part {part} is empty ({why}); expected images to evaluate on")
    source.report.notes += _untested(source.split)
    if source.split.num_classes < 2:
        raise UserError(f"{source.split.name}: a single class, {source.split.class_names[0]}; expected at least two")
    return source


def _loaded(data: ConfigDict) -> Source:
    if data.source not in SOURCES:
        raise UserError(f"config.data.source={data.source!r}: expected one of {', '.join(SOURCES)}")
    entry = SOURCES[data.source]
    own = data.get(data.source, {})
    source = entry.call(data, **{name: own.get(name, default) for name, default in entry.defaults().items()})
    if not isinstance(source, Source):
        found = type(source).__name__
        raise UserError(f"data source {data.source!r} returned a {found}: expected a shike_jax.data.Source")
    _check_arrays(f"data source {data.source!r}", source)
    return source


def _check_arrays(what: str, source: Source) -> None:
    """Refuses arrays that do not fit the labels or each other."""
    kinds = {}
    for name, part in source.split.parts.items() if source.images is not None else ():
        values = (source.images or {}).get(name)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or values.shape[:1] != (len(part),):
            found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise UserError(f"{what}, part {name}: {found}; expected NumPy numbers ({len(part)}, ...), one per label")
        kinds[name] = f"{values.dtype} {values.shape[1:]}"
        if kinds[name] != kinds[next(iter(kinds))]:
            raise UserError(f"{what}, part {name}: examples {kinds[name]}; expected {kinds[next(iter(kinds))]}")


def load_whole(data: ConfigDict) -> Source | None:
    """All images of a folder or a table as the part `test`; None where the data name parts themselves."""
    if data.source not in ("folder", "table"):
        return None
    undivided = data.copy_and_resolve_references()
    undivided.update({"test_share": 0.0, "profile": "natural"})
    source = _loaded(undivided)
    if not source.drawn:
        return None
    split = source.split
    source.report.notes.append(f"{split.name} names no parts: all its {len(split.parts['train']):,} images are scored")
    parts, counts = {"test": split.parts["train"]}, tuple(split.class_counts.tolist())
    split = dataclasses.replace(split, rule=f"{split.rule}, whole", parts=parts, trained=counts)
    return dataclasses.replace(source, split=split, read=reader(source.root, split), drawn=False)


def _untested(split: Split) -> list[str]:
    """A remark for each part in which classes have no image."""
    absent = {name: split.num_classes - len(np.unique(part.labels)) for name, part in split.parts.items()}
    said = "classes have no image in part {}: their accuracy cannot be measured"
    return [f"{count} {said.format(name)}" for name, count in absent.items() if count]


def _alike(names: tuple[str, ...]) -> list[str]:
    """A remark on classes whose names people would take for one: they differ in blanks or in their Unicode form."""
    first: dict[str, str] = {}
    found = [(first.setdefault(comparable(name).strip(), name), name) for name in names]
    alike = [f"{one!a} and {name!a}" for one, name in found if one != name]
    return [f"classes that differ only in blanks or in their Unicode form: {', '.join(alike)}"] if alike else []
