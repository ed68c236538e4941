"""Registries that a configuration chooses from and whose entries live above it: networks, sources and policies.

They are imported from `shike_jax.models`, `shike_jax.data` and `shike_jax.augment`, where their own entries register
themselves. Parameters that an entry declares are fields of the configuration, below the entry's name:
`config.model.NAME.PARAMETER`, `config.data.NAME.PARAMETER`, `config.augment.NAME.PARAMETER`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shike_jax.methods.registry import Option, Registry

NETWORKS: Registry[Callable[..., Any]] = Registry(
    "network",
    "(model, num_classes, *, dtype, axis_name, **parameters) to a Flax module of images [B,...] to logits float32 "
    "[M,B,C]; `model` holds the fields of `config.model`",
    given=2,
    keywords=("dtype", "axis_name"),
)
SOURCES: Registry[Callable[..., Any]] = Registry(
    "data source",
    "(data, **parameters) to a `shike_jax.data.Source`; `data` holds the fields of `config.data`",
    given=1,
)
POLICIES: Registry[Callable[..., Any]] = Registry(
    "augmentation policy",
    "(key, image, **parameters) to an image of the same shape and dtype: one training image before it is normalised",
    given=2,
    layered=Option(False, "for the package's own, which are made of tables of operations"),
)
