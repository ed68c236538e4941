"""Geometric operations on one uint8 image [H, W, C]: affine maps with a fill colour [C], as Pillow resamples them.

A matrix (a, b, c, d, e, f) takes the output point (x, y) to the input point (a x + b y + c, d x + e y + f), both
measured from the image's corner: pixel (0, 0) has its centre at (0.5, 0.5). Where the input point lies outside the
image, the pixel takes the fill colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.augment import selection
from shike_jax.augment.ops import product

Array = jax.Array


def rotation_matrix(degrees: Array, height: int, width: int) -> Array:
    """Counter-clockwise about the centre: float32 [6]."""
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    x, y = width / 2, height / 2
    c = x - product(x, cos) + product(y, sin)
    f = y - product(x, sin) - product(y, cos)
    return jnp.asarray([cos, -sin, c, sin, cos, f], jnp.float32)


def fixed_translation(x: float, y: float) -> np.ndarray:
    """Translation to whole pixels in 16.16 fixed point, int32 [6]: pixel i shows input pixel floor(i + 0.5 + shift)."""
    return np.asarray([1, 0, math.floor(x + 0.5), 0, 1, math.floor(y + 0.5)], np.int32) << 16


def fixed_rotation(degrees: float, height: int, width: int) -> np.ndarray:
    """Rotation in 16.16 fixed point, int32 [6], in Pillow's order of roundings; the map starts at a pixel's centre."""
    cos, sin = (round(f(-math.radians(degrees % 360.0)), 15) for f in (math.cos, math.sin))
    x, y = width / 2, height / 2
    c = cos * -x + sin * -y + x
    f = -sin * -x + cos * -y + y
    matrix = [cos, sin, c + cos * 0.5 + sin * 0.5, -sin, cos, f - sin * 0.5 + cos * 0.5]
    return np.floor(np.asarray(matrix) * 65536.0 + 0.5).astype(np.int32)


def affine_nearest(image: Array, fixed: Array, fill: Array) -> Array:
    """Nearest-neighbour resampling, exact, by a 16.16 matrix of `fixed_translation` or `fixed_rotation`."""
    height, width, _ = image.shape
    y, x = jnp.arange(height, dtype=jnp.int32)[:, None], jnp.arange(width, dtype=jnp.int32)[None, :]
    source_x = (fixed[0] * x + fixed[1] * y + fixed[2]) >> 16
    source_y = (fixed[3] * x + fixed[4] * y + fixed[5]) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return jnp.where(inside[..., None], _pick(image, [source_y], [source_x])[0][0], fill)


def affine_interpolated(image: Array, matrix: Array, cubic: Array, fill: Array) -> Array:
    """Bicubic (a = -1, as in Pillow's transforms) or bilinear resampling, edge pixels repeated, truncated to uint8."""
    height, width, _ = image.shape
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None, :] + 0.5
    source_x = product(matrix[0], x) + product(matrix[1], y) + matrix[2]
    source_y = product(matrix[3], x) + product(matrix[4], y) + matrix[5]
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    left, top = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
    along_x, along_y = (source_x - 0.5 - left)[..., None], (source_y - 0.5 - top)[..., None]
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)

    taps = _pick(image, [top + offset for offset in (-1, 0, 1, 2)], [left + offset for offset in (-1, 0, 1, 2)])

    def row(number: int) -> Array:
        before, start, end, after = (tap.astype(jnp.float32) for tap in taps[number])
        return _between(before, start, end, after, along_x, cubic)

    value = _between(row(0), row(1), row(2), row(3), along_y, cubic)
    return jnp.where(inside[..., None], jnp.clip(value, 0, 255).astype(jnp.uint8), fill)


def _between(before: Array, start: Array, end: Array, after: Array, fraction: Array, cubic: Array) -> Array:
    """The value `fraction` of the way from `start` to `end`, written in differences so that a flat area stays exact."""
    linear = jnp.where(cubic, end - before, end - start)
    square = jnp.where(cubic, 2 * (before - start) + end - after, 0)
    cube = jnp.where(cubic, start - before + after - end, 0)
    return start + product(fraction, linear + product(fraction, square + product(fraction, cube)))


def _pick(image: Array, rows: Sequence[Array], columns: Sequence[Array]) -> list[list[Array]]:
    """image[y, x], clamped to the edges, for each y of `rows` and x of `columns` (int32 [H, W]): uint8 [H, W, C]."""
    height, width, channels = image.shape
    rows = [jnp.clip(y, 0, height - 1) for y in rows]
    columns = [jnp.clip(x, 0, width - 1) for x in columns]

    def fetch(image: Array, rows: Sequence[Array], columns: Sequence[Array]) -> list[list[Array]]:
        flat = image.reshape(-1, channels)
        return [[flat.at[y * width + x].get(mode="promise_in_bounds") for x in columns] for y in rows]

    if max(height, width) > selection.LARGEST_SIDE:
        return fetch(image, rows, columns)
    return selection.on_tpu(image, rows, columns, tpu=selection.pick, default=fetch)
