"""Networks, built from plain settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster.axis import Axis
from shike_jax.errors import UserError, nearest
from shike_jax.methods.tables import NETWORKS
from shike_jax.models.calling import name_of, sizes_of, tried
from shike_jax.models.experts import HEAD_SETS, ExpertNetwork
from shike_jax.models.resnet import BACKBONES, Backbone
from shike_jax.models.second_heads import SECOND_HEADS
from shike_jax.models.vectors import VectorNetwork

__all__ = [
    "BACKBONES",
    "HEAD_SETS",
    "NETWORKS",
    "Backbone",
    "ExpertNetwork",
    "build_model",
    "create_model",
    "init_variables",
    "list_models",
    "num_parameters",
    "sizes_of",
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
# What the fields with few values may be.
CHOICES = {"shortcut": ("A", "B"), "head": ("cosine", "linear"), "second_head": ("fresh", *SECOND_HEADS)}


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
    axis_name: Axis = None,
    **fields: Any,
) -> ExpertNetwork:
    """A network of SHIKE's kind as a Flax module: images [B,H,W,3] to logits [M,B,C].

    Args:
      name: one of `list_models()`.
      num_classes: C.
      experts: one expert each: the shared stage (from 1) whose features it fuses with its own (sec. 3.2). `(1,)` with
        `fusion=False` is a plain ResNet.
      dtype: of the computation; parameters, BN statistics and logits stay float32.
      axis_name: device axis over which BN statistics are summed; None: none, as under `jax.jit`.
      fields: of `config.model`: fusion, shortcut, width, blocks, head, head_scale, second_head, align_last_relu.

    Raises:
      UserError: an unknown name or field, a value that a field cannot have, a stage that the network does not have.

    >>> net = create_model("resnet20", num_classes=10, experts=(2, 1), width=8)
    >>> images = jnp.zeros((4, 32, 32, 3))
    >>> variables = net.init(jax.random.key(0), images)
    >>> net.apply(variables, images).shape
    (2, 4, 10)
    """
    if unknown := sorted(set(fields) - set(DEFAULTS)):
        near = nearest(unknown[0], DEFAULTS)
        raise UserError(f"create_model: unknown field {unknown[0]!r}; expected some of {', '.join(DEFAULTS)}{near}")
    model = {**DEFAULTS, **fields}
    for argument, value in {"num_classes": num_classes, "experts": experts, **model}.items():
        fits, expected = _ACCEPTED[argument]
        if not fits(value):
            raise UserError(f"create_model: {argument}={value!r}, expected {expected}")
    return _network({**model, "backbone": name, "depths": tuple(experts)}, num_classes, dtype, axis_name, _ARGUMENTS)


_ARGUMENTS = {"backbone": "create_model: name", "depths": "create_model: experts"}
_ARGUMENTS |= {name: f"create_model: {name}" for name in ("blocks", "width")}
_FIELDS = {name: f"config.model.{name}" for name in _ARGUMENTS}


def _is_whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def _are_whole(values: Any) -> bool:
    return isinstance(values, Sequence) and all(map(_is_whole, values))


_YES_OR_NO = (lambda value: isinstance(value, bool), "True or False")
# An argument of `create_model`: whether a value fits, and what is expected.
_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_classes": (_is_whole, "a whole number of at least 1"),
    "experts": (lambda e: _are_whole(e) and len(e) > 0, "shared stages, one for each expert, such as (1, 2, 1)"),
    "width": (lambda width: _is_whole(width, 0), "channels; 0: the network's own"),
    "blocks": (_are_whole, "the number of blocks of each stage; (): the network's own"),
    "head_scale": (lambda s: isinstance(s, int | float) and 0 < s < float("inf"), "a number above 0"),
    **dict.fromkeys(("fusion", "align_last_relu"), _YES_OR_NO),
    **{field: (choices.__contains__, f"one of {', '.join(choices)}") for field, choices in CHOICES.items()},
}


def build_model(model: Mapping[str, Any], num_classes: int, *, dtype: Any = jnp.float32, axis_name: Axis = None) -> Any:
    """The network that `config.model` describes: an `ExpertNetwork`, or what a registered network's function makes.

    `model` has those fields (a ConfigDict or a plain dict, as checkpoints keep it); the rest is as for `create_model`.
    `UserError` for an unknown backbone, a depth that is not one of its shared stages, a registered function that fails.
    """
    name = model["backbone"]
    if name in NETWORKS and name not in BACKBONES:
        entry, given = NETWORKS[name], ConfigDict(dict(model))
        parameters = {**entry.defaults(), **given.get(name, {})}
        arguments = {"dtype": dtype, "axis_name": axis_name, **parameters}
        network = entry.call(given, num_classes, **arguments)
        if not isinstance(network, nn.Module):
            raise UserError(f"network {name!r} is a {type(network).__name__}: expected a Flax module (flax.linen)")
        return network.clone(name=name)
    return _network(model, num_classes, dtype, axis_name, _FIELDS)


def _network(
    model: Mapping[str, Any], num_classes: int, dtype: Any, axis_name: Axis, called: Mapping[str, str]
) -> ExpertNetwork:
    """As `build_model`; `called` is what the user knows some fields by."""
    name, depths = model["backbone"], tuple(model["depths"])
    if name not in BACKBONES:
        known = BACKBONES if called is _ARGUMENTS else tuple(NETWORKS)
        raise UserError(f"{called['backbone']}={name!r}: expected one of {', '.join(known)}{nearest(str(name), known)}")
    spec = BACKBONES[name]
    changes: dict[str, Any] = {"shortcut": model["shortcut"]}
    if model["width"]:
        changes["width"] = model["width"]
    if len(model["blocks"]):
        if len(model["blocks"]) != len(spec.blocks):
            raise UserError(f"{called['blocks']}={tuple(model['blocks'])}: expected {len(spec.blocks)} numbers")
        changes["blocks"] = tuple(model["blocks"])
    spec = dataclasses.replace(spec, **changes)
    if spec.width * spec.group_width % 64:  # the groups of the first stage would not be equally wide
        multiple = 64 // math.gcd(64, spec.group_width)
        raise UserError(f"{called['width']}={spec.width}: expected a multiple of {multiple} for {name}")
    stages = len(spec.blocks) - 1
    for depth in depths:
        if not 1 <= depth <= stages:
            raise UserError(f"{called['depths']}={depths}: expected shared stages from 1 to {stages} for {name}")
    second = model.get("second_head", "fresh")  # weights saved by older code do not name it
    head = model["head"], model["head_scale"], second
    return ExpertNetwork(spec, depths, model["fusion"], num_classes, *head, model["align_last_relu"], dtype, axis_name)


def init_variables(network: Any, seed: int, images: int | jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Fresh variables {`params`, `batch_stats`} as host arrays, a function of the seed alone.

    `images` is what the network sees, [1,...]; an integer is the side of square RGB images. `UserError` for a
    registered network that fails, or has variables of other kinds.
    """
    if isinstance(images, int):
        images = jax.ShapeDtypeStruct((1, images, images, 3), network.dtype)
    # Lazily: only the draws run, one small program per shape. Compiling all draws as one program takes far longer.
    called = f"network {name_of(network)!r}"
    variables = tried(called, network.lazy_init, jax.random.key(seed), images)
    if other := sorted(set(variables) - {"params", "batch_stats"}):
        raise UserError(f"{called} has variables {other[0]!r}: expected only params and batch_stats")
    return {"batch_stats": {}, **jax.tree.map(np.asarray, dict(variables))}


def num_parameters(params: Any) -> int:
    """Number of trainable scalars, both sets of classifiers included."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


@NETWORKS.register("vectors")
def _vectors(model: ConfigDict, num_classes: int, *, dtype: Any, axis_name: Axis) -> VectorNetwork:
    """Classifiers over vectors: `depths` has an entry for each expert, `width` is their hidden units."""
    second = model.get("second_head", "fresh")
    return VectorNetwork(
        len(model.depths), num_classes, model.width, model["head"], model.head_scale, second, jnp.dtype(dtype)
    )


for _name in BACKBONES:
    NETWORKS.register(_name)(build_model)
