"""Which part of the augmentation runs where: inside the compiled step on the device, or on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from shike_jax.augment import make_train_augment
from shike_jax.data import tfds_large


def is_decoded_on_host(data: ConfigDict) -> bool:
    """True where images come from files through the host pipeline; False where the whole part lies on the device."""
    return data.source in ("folder", "lists") or (data.source == "tfds" and data.name in tfds_large.NAMES)


def device_augment(config: ConfigDict, dtype: Any) -> Callable[..., Any]:
    """The training augmentation that runs inside the compiled step, normalisation to `dtype` included.

    Random resized crops and their flips are the host's.
    """
    data, augment = config.data, config.augment
    return make_train_augment(
        crop="pad" if augment.crop == "pad" else "none",
        pad=augment.pad,
        flip=augment.flip and augment.crop != "random_resized",
        policy=augment.policy,
        policy_args=augment.randaugment.to_dict() if augment.policy == "randaugment" else {},
        cutout=augment.cutout,
        mean=data.mean,
        std=data.std,
        dtype=dtype,
    )
