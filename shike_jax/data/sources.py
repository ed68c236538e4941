"""Data sources by name: `load(config.data)` gives the split and its images."""

from __future__ import annotations

from ml_collections import ConfigDict

from shike_jax.common.errors import UserError
from shike_jax.data import arrays, digits, folder, lists, table, tfds_source
from shike_jax.data.held_out import evaluated_part, with_validation
from shike_jax.data.types import Report, Source

__all__ = ["Report", "Source", "load"]

_LOADERS = {
    "arrays": arrays.load,
    "digits": digits.load,
    "folder": folder.load,
    "lists": lists.load,
    "table": table.load,
    "tfds": tfds_source.load,
}


def load(data: ConfigDict) -> Source:
    """Loads the source that `config.data` names.

    Raises:
      UserError: anything a user can mend: missing folders, broken lists, an impossible imbalance factor.
    """
    if data.source not in _LOADERS:
        raise UserError(f"config.data.source={data.source!r}: expected one of {', '.join(_LOADERS)}")
    source = _LOADERS[data.source](data)
    if data.validation:
        source = with_validation(source, data)
    part = evaluated_part(data)
    if part not in source.split.parts:
        parts = ", ".join(source.split.parts)
        raise UserError(
            f"config.data.test_part={data.test_part!r}: {source.split.name} has {parts}; expected one of its parts, or "
            "config.data.validation=0.1 to hold out training images"
        )
    if not len(source.split.parts[part]):
        why = "every class has a single training image" if data.validation else "it holds no image that can be read"
        raise UserError(f"{source.split.name}: part {part} is empty ({why}); expected images to evaluate on")
    if source.split.num_classes < 2:
        raise UserError(f"{source.split.name}: a single class, {source.split.class_names[0]}; expected at least two")
    return source
