"""Which part of the augmentation runs where: inside the compiled step on the device, or on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax.augment import POLICIES, make_eval_transform, make_train_augment
from shike_jax.augment.host import make_host_policy
from shike_jax.data import tfds_large
from shike_jax.data.images import CROP_DRAWS, uniforms_of
from shike_jax.data.resizing import resizer
from shike_jax.data.types import Source
from shike_jax.errors import UserError


def is_decoded_on_host(data: ConfigDict) -> bool:
    """True where images come from files through the host pipeline; False where the whole part lies on the device."""
    by_tfds = data.source == "tfds" and data.name.partition(":")[0] in tfds_large.NAMES  # NAME:VERSION
    return by_tfds or data.source in ("folder", "lists", "table")


def view_resizer(config: ConfigDict) -> str:
    """What resizes random crops on the host, with its version; empty where the host takes none."""
    return resizer() if is_decoded_on_host(config.data) and config.augment.crop == "random_resized" else ""


def policy_on_host(config: ConfigDict, platform: str = "") -> bool:
    """Whether the policy runs in the host's pipeline, by `config.augment.place`.

    `platform` is what the step is compiled for; empty: what JAX computes on.
    """
    place, decoded = config.augment.place, is_decoded_on_host(config.data)
    if place == "host" and not decoded:
        raise UserError(
            f"config.augment.place='host': expected 'device' or 'auto' for data.source={config.data.source!r}, whose "
            "images lie on the device"
        )
    if config.augment.policy == "none":
        return False
    if not POLICIES[config.augment.policy].options["layered"]:
        if place == "host":
            raise UserError(f"config.augment.place='host': expected 'auto', as {config.augment.policy!r} is JAX's")
        return False
    return place == "host" or (place == "auto" and decoded and (platform or jax.default_backend()) == "tpu")


def host_augment(config: ConfigDict) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """What the host does to a training view after its crop: (uint8 [S,S,3], seed uint32 [2]) -> uint8 [S,S,3], or None.

    The policy draws from the image's own stream where the crop has ended.
    """
    if not policy_on_host(config):
        return None
    apply, draws = make_host_policy(config.augment.policy, _policy_arguments(config), config.data.mean)
    return lambda pixels, seed: apply(pixels, uniforms_of(seed, CROP_DRAWS + draws)[CROP_DRAWS:])


def _policy_arguments(config: ConfigDict) -> dict[str, Any]:
    own = config.augment.get(config.augment.policy, {})
    return own.to_dict() if own else {}


def images_seen(source: Source, config: ConfigDict) -> jax.ShapeDtypeStruct:
    """Shape and dtype [1,...] of what the network gets of one example."""
    shape, kind, dtype = (config.data.image_size, config.data.image_size, 3), np.dtype(np.uint8), config.dtype
    if source.images is not None:
        shape, kind = source.images["train"].shape[1:], source.images["train"].dtype
    transform = make_eval_transform(mean=config.data.mean, std=config.data.std, dtype=jnp.dtype(dtype))
    return jax.eval_shape(transform, jax.ShapeDtypeStruct((1, *shape), kind))


def device_augment(config: ConfigDict, dtype: Any, platform: str = "") -> Callable[..., Any]:
    """The training augmentation that runs inside the compiled step, normalisation to `dtype` included.

    Random resized crops and their flips are the host's, and so may the policy be (`policy_on_host`, `platform`).
    """
    data, augment = config.data, config.augment
    on_host = policy_on_host(config, platform)
    return make_train_augment(
        crop="pad" if augment.crop == "pad" else "none",
        pad=augment.pad,
        flip=augment.flip and augment.crop != "random_resized",
        policy="none" if on_host else augment.policy,
        policy_args={} if on_host else _policy_arguments(config),
        cutout=augment.cutout,
        mean=data.mean,
        std=data.std,
        dtype=dtype,
        platform=platform or jax.default_backend(),
    )
