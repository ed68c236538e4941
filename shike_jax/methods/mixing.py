"""Mixing each image with a partner: mixup, CutMix and CMO.

A registered mixing is a function of `MixingInputs` to the mixed images and the weight of their own labels. Each is a
field of a stage, with its strength as the value: `config.stages.NAME.mixup = 0.4`; 0 is off. Where a stage has several,
each step takes one of them, all with the same probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from shike_jax.errors import UserError
from shike_jax.methods.registry import Entry, Option, Registry

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MixingInputs:
    """What a mixing receives. B is a device's share of the global batch.

    Attributes:
      images: [B,...], augmented and normalised.
      labels: int32 [B].
      partners: [B,...], what each is mixed with: an image from anywhere in the global batch, or with `pairs=True` the
        one that a sampler of pairs has drawn with it.
      partner_labels: int32 [B].
      class_counts: int [C], training images of each class.
      key: PRNG key of the step, the same on all devices.
      keys: PRNG keys [B], by the image's place in the global batch.
      strength: the value of the mixing's field.
    """

    images: Array
    labels: Array
    partners: Array
    partner_labels: Array
    class_counts: Array
    key: Array
    keys: Array
    strength: float


MIXINGS: Registry[Callable[[MixingInputs], tuple[Array, Array]]] = Registry(
    "mixing",
    "(inputs: MixingInputs) to (images [B,...], the weight of their own labels [] or [B]; the partners' have the rest)",
    inputs=MixingInputs,
    given=1,
    parameters=False,
    about=Option("strength; 0: off", "describes the field `config.stages.STAGE.NAME`, whose value is the strength"),
    high=Option(1000.0, "the largest strength"),
    pairs=Option(False, "the partners are those that a sampler of pairs has drawn"),
    draws=Option(None, "of mixup and CutMix: the number by which they have always drawn; else the name decides"),
)


def mixed_by(entry: Entry[Callable[[MixingInputs], tuple[Array, Array]]], inputs: MixingInputs) -> tuple[Array, Array]:
    """The result of a mixing; UserError where it failed, or returned something else."""
    found, wanted = entry.call(inputs), inputs.images.shape
    if not isinstance(found, tuple) or len(found) != 2:
        raise UserError(f"mixing {entry.name!r} returned a {type(found).__name__}: expected images and a weight")
    images, share = found[0], jnp.asarray(found[1])
    if getattr(images, "shape", None) != wanted or share.shape not in ((), wanted[:1]):
        given = f"{getattr(images, 'shape', type(images).__name__)} and {share.shape}"
        expected = f"images {wanted} and the weight of their labels, () or {wanted[:1]}"
        raise UserError(f"mixing {entry.name!r} returned {given}: expected {expected}")
    return images.astype(inputs.images.dtype), share


def partners(key: Array, mask: Array) -> Array:
    """The position int [B] of each example's partner, by a random permutation of the real ones; padding gets padding.

    The key is the same on all devices; the mask [B] of the global batch is 1 for real examples and 0 for padding.
    """
    real = mask > 0
    shuffled = jnp.argsort(jnp.where(real, jax.random.uniform(key, real.shape), 2.0))  # real ones first
    rank = jnp.where(real, jnp.cumsum(real), jnp.sum(real) + jnp.cumsum(~real)) - 1
    return shuffled[rank]


@MIXINGS.register("mixup", about="alpha of the Beta distribution; 0: off", draws=2)
def mixup(inputs: MixingInputs) -> tuple[Array, Array]:
    """Mixup (Zhang et al. 2018): each image and its partner by one lam ~ Beta(alpha, alpha) for the whole batch.

    lam, the weight of the images, is float32 []; float64 for float64 images unless alpha is 1.
    """
    # The second half has always drawn the partners: other draws would change old runs.
    key, _ = jax.random.split(inputs.key)
    lam = _draw_lam(key, inputs.strength, inputs.images.dtype)
    weight = lam.astype(inputs.images.dtype)
    return weight * inputs.images + (1 - weight) * inputs.partners, lam


@MIXINGS.register(
    "cutmix",
    about="alpha, 0: off; with mixup too, each step takes one of the two with equal probability",
    draws=4,
)
def cutmix(inputs: MixingInputs) -> tuple[Array, Array]:
    """CutMix (Yun et al. 2019): one box of the partners pasted into the images, the same for the whole batch.

    The box has the share 1 - lam of the area before it is cut at the border, lam ~ Beta(alpha, alpha), and a uniformly
    drawn centre. The weight of the images is the share of the area that stays.
    """
    height, width = inputs.images.shape[1:3]
    lam_key, row_key, column_key = jax.random.split(inputs.key, 3)
    side = jnp.sqrt(1 - _draw_lam(lam_key, inputs.strength, jnp.float32))

    def inside(key: Array, size: int) -> Array:
        half = (side * size).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, size)
        place = jnp.arange(size)
        return (place >= centre - half) & (place < centre + half)

    box = inside(row_key, height)[:, None] & inside(column_key, width)
    lam = 1 - jnp.mean(box, dtype=jnp.float32)
    return jnp.where(box[..., None], inputs.partners, inputs.images), lam


@MIXINGS.register("cmo", about="alpha of CMO, 0: off; needs the sampler foregrounds", pairs=True)
def cmo(inputs: MixingInputs) -> tuple[Array, Array]:
    """Context-rich minority oversampling (CMO, Park et al. 2022, algorithm 1): boxes of balanced classes, as CutMix's.

    As in the authors' code, half of the steps mix. The authors leave the first and the last three epochs unmixed; here
    all epochs are alike.
    """
    which, key = jax.random.split(inputs.key)
    mixed, share = cutmix(dataclasses.replace(inputs, key=key))
    mixes = jax.random.bernoulli(which, 0.5)
    return jnp.where(mixes, mixed, inputs.images), jnp.where(mixes, share, 1.0)


def _draw_lam(key: Array, alpha: float, dtype: jnp.dtype) -> Array:
    if alpha < 0:
        raise UserError(f"mixing alpha {alpha}: expected 0 (off) or more")
    if alpha == 0:
        return jnp.float32(1)
    if alpha == 1:  # uniform: spares the rejection loop of the general case
        return jax.random.uniform(key, dtype=jnp.float32)
    # As precise as the images: rounding inside the rejection loop depends on what the compiler puts around it.
    return jax.random.beta(key, alpha, alpha, dtype=jnp.promote_types(dtype, jnp.float32))
