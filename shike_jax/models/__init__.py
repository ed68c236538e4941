"""Networks, built from plain settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.common.errors import UserError
from shike_jax.models.experts import HEAD_SETS, ExpertNetwork
from shike_jax.models.resnet import BACKBONES, Backbone

__all__ = ["BACKBONES", "HEAD_SETS", "Backbone", "ExpertNetwork", "build_model", "init_variables", "num_parameters"]


def build_model(
    model: Mapping[str, Any], num_classes: int, *, dtype: Any = jnp.float32, axis_name: str | None = None
) -> ExpertNetwork:
    """Builds the network that `config.model` describes.

    Args:
      model: the fields of `config.model` (a ConfigDict or a plain dict, as checkpoints keep it).
      num_classes: C.
      dtype: compute dtype.
      axis_name: pmapped axis for global BN statistics.

    Raises:
      UserError: unknown backbone, or a depth that is not one of its shared stages.
    """
    name, depths = model["backbone"], tuple(model["depths"])
    if name not in BACKBONES:
        raise UserError(f"config.model.backbone={name!r}: expected one of {', '.join(BACKBONES)}")
    spec = BACKBONES[name]
    changes: dict[str, Any] = {"shortcut": model["shortcut"]}
    if model["width"]:
        changes["width"] = model["width"]
    if len(model["blocks"]):
        if len(model["blocks"]) != len(spec.blocks):
            raise UserError(f"config.model.blocks={tuple(model['blocks'])}: expected {len(spec.blocks)} numbers")
        changes["blocks"] = tuple(model["blocks"])
    spec = dataclasses.replace(spec, **changes)
    stages = len(spec.blocks) - 1
    for depth in depths:
        if not 1 <= depth <= stages:
            raise UserError(f"config.model.depths={depths}: expected shared stages from 1 to {stages} for {name}")
    return ExpertNetwork(
        spec,
        depths,
        model["fusion"],
        num_classes,
        model["head"],
        model["head_scale"],
        model.get("second_head", "fresh"),  # weights saved by older code do not name it
        model["align_last_relu"],
        dtype,
        axis_name,
    )


def init_variables(network: ExpertNetwork, seed: int, image_size: int) -> dict[str, Any]:
    """Fresh variables {`params`, `batch_stats`} as host arrays, a function of the seed alone."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), network.dtype)
    # Lazily: only the draws run, one small program per shape. Compiling all draws as one program takes far longer.
    variables = network.lazy_init(jax.random.key(seed), images, method=ExpertNetwork.init_all)
    return jax.tree.map(np.asarray, dict(variables))


def num_parameters(params: Any) -> int:
    """Number of trainable scalars, both sets of classifiers included."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
