"""Networks, built from plain settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.errors import UserError
from shike_jax.models.experts import HEAD_SETS, ExpertNetwork
from shike_jax.models.resnet import BACKBONES, Backbone

__all__ = [
    "BACKBONES",
    "HEAD_SETS",
    "Backbone",
    "ExpertNetwork",
    "build_model",
    "create_model",
    "init_variables",
    "list_models",
    "num_parameters",
]

# What `config.model` holds where nothing is said, by which `create_model` fills in.
DEFAULTS: dict[str, Any] = {
    "fusion": True,
    "shortcut": "B",
    "width": 0,
    "blocks": (),
    "head": "cosine",
    "head_scale": 30.0,
    "second_head": "fresh",
    "align_last_relu": False,
}


def list_models() -> list[str]:
    """The names that `create_model` knows.

    >>> list_models()[:2]
    ['resnet20', 'resnet32']
    """
    return list(BACKBONES)


def create_model(
    name: str,
    num_classes: int,
    *,
    experts: Sequence[int] = (1, 2, 1),
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    **fields: Any,
) -> ExpertNetwork:
    """A network of SHIKE's kind as a Flax module: images [B,H,W,3] to logits [M,B,C].

    Args:
      name: of `list_models()`.
      num_classes: C.
      experts: one expert each: the shared stage (from 1) whose features it fuses with its own (sec. 3.2). `(1,)` with
        `fusion=False` is a plain ResNet.
      dtype: of the computation; parameters, BN statistics and logits stay float32.
      axis_name: device axis over which BN statistics are summed; None: none, as under `jax.jit`.
      fields: of `config.model`: fusion, shortcut, width, blocks, head, head_scale, second_head, align_last_relu.

    Raises:
      UserError: an unknown name or field, a depth that the network does not have.

    >>> net = create_model("resnet20", num_classes=10, experts=(2, 1), width=8)
    >>> images = jnp.zeros((4, 32, 32, 3))
    >>> variables = net.init(jax.random.key(0), images)
    >>> net.apply(variables, images).shape
    (2, 4, 10)
    """
    if unknown := set(fields) - set(DEFAULTS):
        raise UserError(f"create_model: unknown field {sorted(unknown)[0]!r}; expected some of {', '.join(DEFAULTS)}")
    model = {**DEFAULTS, **fields, "backbone": name, "depths": tuple(experts)}
    return build_model(model, num_classes, dtype=dtype, axis_name=axis_name)


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
    variables = network.lazy_init(jax.random.key(seed), images)
    return jax.tree.map(np.asarray, dict(variables))


def num_parameters(params: Any) -> int:
    """Number of trainable scalars, both sets of classifiers included."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
