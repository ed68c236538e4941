"""The whole augmentation of a batch: pad-crop, flip, policy, Cutout and normalisation.

Every random number comes from the example's own key: the result for an image depends neither on the rest of the batch
nor on the device that computes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.augment import policies, selection
from shike_jax.errors import UserError
from shike_jax.methods.registry import Entry
from shike_jax.methods.tables import POLICIES

Array = jax.Array

CROPS = ("pad", "none")

# Vectorised branches at once on an accelerator: bounds the memory of large images (83 of 224 x 224, 4096 of 32 x 32).
_PIXELS_AT_ONCE = 1 << 22


class _Plan(NamedTuple):
    """What is drawn for one example."""

    corner: Array  # int32 [2]: row and column of the crop in the padded image
    flip: Array  # bool
    choice: Any  # of the policy; None without one
    hole: Array  # int32 [2]: row and column of the centre of Cutout


def make_train_augment(
    *,
    crop: str,
    pad: int,
    flip: bool,
    policy: str,
    policy_args: Mapping[str, Any],
    cutout: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any,
    platform: str = "",
) -> Callable[..., Array]:
    """Builds the training augmentation: pad-crop, flip, policy, Cutout, normalise, in this order.

    An unknown crop or policy is a UserError.

    Args:
      crop: "pad" (`pad` zeros on each side, then the original size from a uniform position) or "none".
      flip: whether to mirror left and right with probability 1/2.
      policy: "none", or a registered one with its parameters, such as "autoaugment_cifar" or "randaugment".
      cutout: side of the square set to black (before normalisation) about a uniform centre, cut at the edges; 0 is off.
      mean, std: per channel, on the scale 0 .. 1.
      dtype: of the result.
      platform: that the augmentation is compiled for, in JAX's terms; empty: any, and both of its forms are traced.

    Returns:
      fn(images, keys, *, mask=None): images uint8 [B, H, W, C] and one PRNG key per example [B] (typed or raw) ->
      `dtype` [B, H, W, C]. With a `mask` [B], the examples where it is 0 (padding) come back as zeros.
      C is 3, or as many as `mean` has where the policy is "none" or one of your own. Arrays of other kinds [B, ...] are
      taken too, without crop, flip and Cutout: see `make_eval_transform`.
    """
    for what, name, known in (("crop", crop, CROPS), ("policy", policy, ("none", *POLICIES))):
        if name not in known:
            raise UserError(f"augmentation {what} {name!r}: expected one of {', '.join(known)}")
    normalise = make_eval_transform(mean=mean, std=std, dtype=dtype)
    border = pad if crop == "pad" else 0

    def augment(images: Array, keys: Array, *, mask: Array | None = None) -> Array:
        if images.ndim != 4 and (border or flip or cutout):
            fields = "config.augment.crop='none', flip=False and cutout=0"
            raise UserError(f"arrays of shape {images.shape[1:]}: expected {fields}, which only images have")
        height, width = images.shape[1:3] if images.ndim == 4 else (1, 1)
        rules = _policy(policy, policy_args, images, mean)

        def plan(key: Array) -> _Plan:
            at, mirror, chosen, hole = jax.random.split(key, 4)
            return _Plan(
                corner=jax.random.randint(at, (2,), 0, 2 * border + 1),
                flip=jax.random.bernoulli(mirror) if flip else jnp.asarray(False),
                choice=rules.draw(chosen) if rules else None,
                hole=jax.random.randint(hole, (2,), 0, jnp.asarray([height, width])),
            )

        def pixels(branch: Callable[..., Array], image: Array, drawn: _Plan) -> Array:
            if image.ndim == 3:
                image = _crop_and_flip(image, drawn.corner - border, drawn.flip)
            return rules.apply(image, drawn.choice, branch) if rules and drawn.choice is not None else image

        plans = jax.vmap(plan)(keys)
        if rules or border or flip:
            images = _for_each(pixels, images, plans, platform)
        if cutout:
            images = jnp.where(_holes(plans.hole, cutout, height, width), 0, images)
        out = normalise(images)
        return out if mask is None else jnp.where(mask.reshape(-1, *[1] * (out.ndim - 1)) > 0, out, 0)

    return augment


def make_eval_transform(*, mean: Sequence[float], std: Sequence[float], dtype: Any) -> Callable[[Array], Array]:
    """Builds fn(images uint8 [B, H, W, C]) -> (images / 255 - mean) / std in `dtype`, mean and std on 0 .. 1.

    Floating arrays [B, ...] come back in `dtype`, whole numbers that are no images as they are.
    """
    centre, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def normalise(images: Array) -> Array:
        if jnp.issubdtype(images.dtype, jnp.floating):
            return images.astype(dtype)
        if images.dtype != jnp.uint8 or images.ndim != 4:
            return images
        if images.shape[-1] != len(centre) or images.shape[-1] != len(scale):
            found = f"{len(centre)} and {len(scale)} numbers"
            raise UserError(f"config.data.mean, std: {found}; expected one for each of {images.shape[-1]} channels")
        return ((images.astype(jnp.float32) / 255 - centre) / scale).astype(dtype)

    return normalise


def _for_each(function: Callable[..., Array], images: Array, plans: _Plan, platform: str) -> Array:
    """function(branch, image, plan) for each example: one after the other on a CPU, where only the chosen operation is
    then computed (an order of magnitude less work); all at once, in chunks of bounded memory, elsewhere."""
    count = len(images)
    chunk = max(1, _PIXELS_AT_ONCE // max(1, math.prod(images.shape[1:3])))

    def serial(images: Array, plans: _Plan) -> Array:
        return jax.lax.map(lambda pair: function(jax.lax.switch, *pair), (images, plans))

    def parallel(images: Array, plans: _Plan) -> Array:
        if count <= chunk:
            return jax.vmap(lambda *pair: function(policies.compute_all, *pair))(images, plans)
        return jax.lax.map(lambda pair: function(policies.compute_all, *pair), (images, plans), batch_size=chunk)

    if platform:
        return (serial if platform == "cpu" else parallel)(images, plans)
    return jax.lax.platform_dependent(images, plans, cpu=serial, default=parallel)


def _crop_and_flip(image: Array, offset: Array, flip: Array) -> Array:
    """image uint8 [H, W, C] seen from `offset` (row, column), zeros outside, then mirrored left and right."""
    height, width, channels = image.shape
    rows = jnp.arange(height) + offset[0]
    columns = jnp.where(flip, width - 1 - jnp.arange(width), jnp.arange(width)) + offset[1]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]

    def fetch(image: Array, rows: Array, columns: Array) -> Array:
        index = jnp.clip(rows, 0, height - 1)[:, None] * width + jnp.clip(columns, 0, width - 1)[None, :]
        seen = image.reshape(-1, channels).at[index].get(mode="promise_in_bounds")
        return jnp.where(inside[..., None], seen, 0)

    if image.dtype != jnp.uint8:  # the other form is exact for bytes only
        return fetch(image, rows, columns)
    return selection.on_tpu(image, rows, columns, tpu=selection.window, default=fetch)


def _holes(centres: Array, length: int, height: int, width: int) -> Array:
    """True inside the square of side 2 * (length // 2) about each centre: int32 [B, 2] -> bool [B, H, W, 1]."""
    half = length // 2

    def span(centre: Array, size: int) -> Array:
        return (jnp.arange(size) >= centre[:, None] - half) & (jnp.arange(size) < centre[:, None] + half)

    return (span(centres[:, 0], height)[:, :, None] & span(centres[:, 1], width)[:, None, :])[..., None]


def _policy(policy: str, args: Mapping[str, Any], images: Array, mean: Sequence[float]) -> Any:
    """What draws and applies a policy to images [B, ...]; None for "none"."""
    if policy == "none":
        return None
    entry = POLICIES[policy]
    if not entry.options["layered"]:
        return SimpleNamespace(draw=lambda key: key, apply=functools.partial(_of_ones_own, entry, args))
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        found = f"{images.dtype} {images.shape[1:]}"
        raise UserError(f"policy {policy!r} needs images uint8 [height, width, 3], not {found} (3 channels)")
    return entry.function(*images.shape[1:3], mean, **args)


def _of_ones_own(entry: Entry[Any], args: Mapping[str, Any], image: Array, key: Array, branch: Any) -> Array:
    """One image by a registered policy, all of whose draws come from the key."""
    changed = entry.call(key, image, **{**entry.defaults(), **args})
    if getattr(changed, "shape", None) != image.shape or changed.dtype != image.dtype:
        what = f"{changed.dtype} {changed.shape}" if hasattr(changed, "shape") else type(changed).__name__
        expected = f"{image.dtype} {image.shape}, as it got"
        raise UserError(f"augmentation policy {entry.name!r} returned {what}: expected {expected}")
    return changed
