"""Pixels taken by position as products with one-hot matrices: what a TPU does in place of gathers and scatters.

A TPU fetches single pixels slowly and multiplies matrices fast. A one-hot row picks one value of a column, exactly: the
values 0 to 255 and 0 to 1 are exact in bfloat16 and each sum has one term that is not zero. Positions come last in the
intermediate arrays, because a TPU works on their last axis 128 at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Picking a pixel costs work proportional to the image's side or more: above this side a TPU gathers pixels too.
LARGEST_SIDE = 64


def on_tpu(*operands: Any, tpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`tpu(*operands)` where the program is compiled for a TPU, else `default(*operands)`; both must give the same."""
    return lax.platform_dependent(*operands, tpu=tpu, default=default)


def pick(image: Array, rows: Sequence[Array], columns: Sequence[Array]) -> list[list[Array]]:
    """The pixels image[y, x] for each y of `rows` and each x of `columns`: lists of lists of uint8 [..., C].

    `rows` and `columns` are int32 arrays of one shape [...]; a pixel outside the image uint8 [H, W, C] is 0.
    """
    height, width, channels = image.shape
    shape, flat = rows[0].shape, image.reshape(height, width * channels)
    chosen = [one_hot(x, width) for x in columns]
    found = []
    for y in rows:
        # [W C, H] times [H, P]: the whole row of each position, then one of its pixels.
        row = _product(flat, one_hot(y, height), ((0,), (0,))).reshape(width, channels, -1)
        picked = [jnp.sum(row.astype(jnp.float32) * x[:, None].astype(jnp.float32), 0) for x in chosen]
        found.append([value.T.reshape(*shape, channels).astype(jnp.uint8) for value in picked])
    return found


def window(image: Array, rows: Array, columns: Array) -> Array:
    """image[rows][:, columns] of an image uint8 [H, W, C] at int32 [h] and [w]; zeros outside: uint8 [h, w, C]."""
    height, width, channels = image.shape
    tall = _product(one_hot(rows, height), image.reshape(height, width * channels), ((0,), (0,)))
    tall = tall.reshape(len(rows), width, channels)
    return _product(tall, one_hot(columns, width), ((1,), (0,))).swapaxes(1, 2).astype(jnp.uint8)


def look_up(image: Array, table: Array) -> Array:
    """table[c, image[..., c]]: image uint8 [H, W, C], table of 0 .. 255 [C, 256]; a table is an image of 16 x 16."""
    values = image.astype(jnp.int32)
    looked = [
        pick(table[c].astype(jnp.uint8).reshape(16, 16, 1), [values[..., c] // 16], [values[..., c] % 16])[0][0]
        for c in range(image.shape[-1])
    ]
    return jnp.concatenate(looked, -1)


def histogram(image: Array) -> Array:
    """How often each value occurs in each channel of an image uint8 [H, W, C]: int32 [C, 256]."""
    values = image.astype(jnp.int32).reshape(-1, image.shape[-1])
    counts = [
        _product(one_hot(values[:, c] // 16, 16), one_hot(values[:, c] % 16, 16), ((1,), (1,)), jnp.float32)
        for c in range(image.shape[-1])
    ]
    return jnp.stack(counts).reshape(-1, 256).astype(jnp.int32)


def one_hot(index: Array, size: int) -> Array:
    """bfloat16 [size, P]: 1 where position p of the flattened `index` is that row; zeros for an index outside."""
    return (jnp.arange(size, dtype=jnp.int32)[:, None] == index.reshape(1, -1)).astype(jnp.bfloat16)


def _product(left: Array, right: Array, axes: tuple[tuple[int], tuple[int]], dtype: Any = jnp.bfloat16) -> Array:
    """Contracts `axes` of both in bfloat16 with float32 sums, as `dtype`."""
    left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=jnp.float32).astype(dtype)
