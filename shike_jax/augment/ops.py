"""Photometric operations on one uint8 image [H, W, 3], equal to Pillow's (ImageOps, ImageEnhance) in every pixel.

Each is a pure function of arrays, to be batched with `jax.vmap` or `jax.lax.map`. Pillow works partly in float32 and
partly in double; here everything that can be is integer arithmetic, which needs no such care.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.augment import selection

Array = jax.Array


def product(a: Array | float, b: Array | float) -> Array:
    """a * b (at most 1e6 in size), rounded before anything is added to it, so that every compiler gives the same pixel.

    Compilers may contract a product and a sum into one fused multiply-add, whose single rounding differs in the last
    place: here that is another grey level, or another pixel. The clip never changes a value: it only keeps the
    compiler from fusing product and sum.
    """
    return jnp.clip(a * b, -1e6, 1e6)


def invert(image: Array) -> Array:
    """255 - v. image uint8 [H, W, 3] -> the same shape and type."""
    return 255 - image


def posterize(image: Array, bits: Array) -> Array:
    """Keeps the `bits` (0 to 8) highest bits of each channel. 0 gives black, where recent Pillow refuses it."""
    return image & (0xFF << (8 - jnp.asarray(bits, jnp.int32))).astype(jnp.uint8)


def solarize(image: Array, threshold: Array) -> Array:
    """Inverts the values not below `threshold` (0 to 256, may be fractional)."""
    return jnp.where(image < threshold, image, 255 - image)


def solarize_add(image: Array, addend: Array) -> Array:
    """Adds `addend` (0 to 255) to the values below 128 and saturates at 255."""
    raised = jnp.minimum(image.astype(jnp.int32) + jnp.asarray(addend, jnp.int32), 255).astype(jnp.uint8)
    return jnp.where(image < 128, raised, image)


def brightness(image: Array, factor: Array) -> Array:
    """Blends with black: factor 0 is black, 1 the image."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: Array, factor: Array) -> Array:
    """Blends with the mean grey level of the image, rounded half up: factor 0 is flat, 1 the image."""
    grey = _grey(image)
    mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)
    return _blend(mean, image, factor)


def color(image: Array, factor: Array) -> Array:
    """Blends with the grey image: factor 0 is grey, 1 the image."""
    return _blend(_grey(image)[..., None], image, factor)


def sharpness(image: Array, factor: Array) -> Array:
    """Blends with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, the outermost pixels left alone."""
    height, width, _ = image.shape
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = jnp.pad((2 * total + 13) // 26, ((1, 1), (1, 1), (0, 0)))
    ys, xs = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (ys > 0) & (ys < height - 1) & (xs > 0) & (xs < width - 1)
    return _blend(jnp.where(inside[..., None], smooth, wide), image, factor)


def autocontrast(image: Array) -> Array:
    """Stretches each channel so that its darkest value becomes 0 and its brightest 255 (no cut-off)."""
    wide = image.astype(jnp.int32)
    low, high = jnp.min(wide, axis=(0, 1))[:, None], jnp.max(wide, axis=(0, 1))[:, None]
    span = jnp.maximum(high - low, 1)
    offset = jnp.clip(jnp.arange(256) - low, 0, span)
    # Where 255 * offset / span is an integer, Pillow's double arithmetic sometimes ends just below it and truncates.
    multiple = jnp.asarray(_DIVISORS)[span] * offset
    short = (jnp.asarray(_autocontrast_shortfall())[low, span] >> (multiple // span).astype(jnp.uint32)) & 1
    table = 255 * offset // span - jnp.where(multiple % span == 0, short.astype(jnp.int32), 0)
    return _look_up(image, jnp.where(high > low, table, jnp.arange(256)))


def equalize(image: Array) -> Array:
    """Maps each channel by its own cumulative histogram, with Pillow's integer step and saturation."""
    height, width, _ = image.shape
    histogram = selection.on_tpu(image, tpu=selection.histogram, default=_histogram)
    present = jnp.max(image, axis=(0, 1)).astype(jnp.int32)[:, None]
    brightest = jnp.sum(jnp.where(jnp.arange(256) == present, histogram, 0), axis=1, keepdims=True)
    step = (height * width - brightest) // 255
    below = jnp.cumsum(histogram, axis=1) - histogram
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return _look_up(image, jnp.where(step > 0, table, jnp.arange(256)))


def _grey(image: Array) -> Array:
    """Pillow's conversion to mode L: int32 [H, W] of 0.299 R + 0.587 G + 0.114 B in 16-bit fixed point."""
    red, green, blue = (image[..., channel].astype(jnp.int32) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(degenerate: Array, image: Array, factor: Array) -> Array:
    """degenerate + factor * (image - degenerate) in float32, saturated and truncated."""
    base = degenerate.astype(jnp.float32)
    change = product(jnp.asarray(factor, jnp.float32), image.astype(jnp.float32) - base)
    return jnp.clip(base + change, 0, 255).astype(jnp.uint8)


def _histogram(image: Array) -> Array:
    """How often each value occurs in each channel of image [H, W, C]: int32 [C, 256]."""
    channels = jnp.arange(image.shape[-1])
    return jnp.zeros((len(channels), 256), jnp.int32).at[channels, image.astype(jnp.int32)].add(1)


def _look_up(image: Array, table: Array) -> Array:
    """table [C, 256] of each channel applied to image [H, W, C]."""
    return selection.on_tpu(image, table, tpu=selection.look_up, default=_fetch_from_table)


def _fetch_from_table(image: Array, table: Array) -> Array:
    flat = table.astype(jnp.uint8).reshape(-1)
    # Writing the table by a scatter keeps it out of the look-up's loop: the compiler would fold its divisions in there
    # and compute them again for every pixel (on the CPU even across an optimization barrier; 4 times slower at 224 px).
    flat = jnp.zeros_like(flat).at[jnp.arange(flat.size)].set(flat, unique_indices=True, indices_are_sorted=True)
    return flat.at[image.astype(jnp.int32) + 256 * jnp.arange(image.shape[-1])].get(mode="promise_in_bounds")


# Of the spans 0 .. 255: 255 * offset / span is an integer at offset = j * span / gcd.
_DIVISORS = np.gcd(255, np.arange(256)).astype(np.int32)


@functools.cache
def _autocontrast_shortfall() -> np.ndarray:
    """uint32 [256 low, 256 span]: bit j tells that Pillow's table is one too small at offset j * span / gcd(255, span).

    Pillow computes `int(v * scale + offset)` with `scale = 255 / span` and `offset = -low * scale` in double.
    No entry falls short at j > 31.
    """
    words = np.zeros((256, 256), np.uint32)
    for span in range(1, 256):
        divisor = int(_DIVISORS[span])
        low = np.arange(256 - span)[:, None]
        j = np.arange(min(divisor, 31) + 1)
        scale = 255.0 / span
        values = ((low + j * (span // divisor)) * scale + -low * scale).astype(np.int64)
        words[: 256 - span, span] = np.sum((values < j * (255 // divisor)) << j, axis=1)
    return words
