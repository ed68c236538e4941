"""The 2-D convolution in the forms that XLA's CPU backend runs well; on other backends all is left as it is.

XLA computes the weight gradient as a convolution of transposed operands. On the CPU it fuses those transposes with the
element-wise work before them (batch normalisation, ReLU) into strided loops that take longer than the convolution
itself. Here a loop goes through two halves of the operands, which are transposed inside it: nothing before the loop
fuses with them. The weight gradient of a 1x1 convolution is a matrix product.

Where oneDNN is chosen (kernels/onednn.py) it computes the convolution, the gradient of its input where the stride is 1,
and the weight gradient, as a convolution with one more size: the examples are its channels, the channels its last size.

With few channels a CPU's vector units are partly idle, so the 7x7 stem folds each 2x2 block of pixels into the channels
(space to depth). docs/notes/cpu_speed.md has what each of these gains.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from shike_jax.kernels import onednn

Array = jax.Array
NHWC = ("NHWC", "HWIO", "NHWC")
FEWEST_EXAMPLES = 16  # of a half: they become the innermost dimension, and fewer leave vector units idle (measured)
PART = 16  # examples of a weight gradient that oneDNN takes at once: as many as fill a vector, few enough for a cache


def convolve(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    """Convolution with PyTorch's symmetric padding size // 2: [B,H,W,C] to [B,ceil(H/stride),ceil(W/stride),F].

    Args:
      kernel: [size,size,C/groups,F] of the same float dtype, size odd.
      groups: channels come in this many groups that do not mix.
    """
    if groups > 1:
        return _plain(x, kernel, stride, groups)
    # A larger stride than half the window could ask for a negative padding in the gradients.
    fits = x.dtype == jnp.float32 and kernel.shape[0] > 1 and stride <= kernel.shape[0] // 2 + 1
    by_onednn = onednn.is_chosen() and fits
    return _convolve(x, kernel, stride, by_onednn)


def _plain(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=NHWC, feature_group_count=groups
    )


def _is_stem(x: Array, kernel: Array, stride: int) -> bool:
    return kernel.shape[0] == 7 and stride == 2 and x.shape[3] < 8 and not (x.shape[1] % 2 or x.shape[2] % 2)


def _by_blocks(x: Array, kernel: Array) -> Array:
    """The 7x7 convolution of stride 2 as one of 4x4 and stride 1 over blocks: [B,H/2,W/2,4C] to [B,H/2,W/2,F].

    Offsets -3..3 of a pixel from its window's centre lie in the blocks -2..1; an eighth offset, -4, gets weight 0.
    """
    (b, h, w, c), features = x.shape, kernel.shape[3]
    blocks = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, c, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * c, features)
    return lax.conv_general_dilated(blocks, kernel, (1, 1), ((2, 1), (2, 1)), dimension_numbers=NHWC)


def _by_product(x: Array, kernel: Array, stride: int) -> Array:
    """The 1x1 convolution: each position's channels times the kernel."""
    return jnp.einsum("bhwc,cf->bhwf", x[:, ::stride, ::stride], kernel[0, 0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, stride: int, by_onednn: bool) -> Array:
    if by_onednn:
        pad = kernel.shape[0] // 2
        return onednn.convolve(x, kernel, ((pad, pad), (pad, pad)), stride)
    plain = functools.partial(_plain, stride=stride)
    if kernel.shape[0] == 1:
        return lax.platform_dependent(x, kernel, cpu=functools.partial(_by_product, stride=stride), default=plain)
    if _is_stem(x, kernel, stride):
        return lax.platform_dependent(x, kernel, cpu=_by_blocks, default=plain)
    return plain(x, kernel)


def _forward(x: Array, kernel: Array, stride: int, by_onednn: bool) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, by_onednn), (x, kernel)


def _backward(stride: int, by_onednn: bool, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    return _gradients(*saved, grad, stride, by_onednn)


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once for all layers of one shape
def _gradients(x: Array, kernel: Array, grad: Array, stride: int, by_onednn: bool) -> tuple[Array, Array]:
    """Gradients of the convolution of x [B,H,W,C] with respect to input and kernel, from grad [B,h,w,F]."""

    def default(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_plain, stride=stride), x, kernel)[1](grad)

    def cpu(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        if not by_onednn and _is_stem(x, kernel, stride):
            return jax.vjp(_by_blocks, x, kernel)[1](grad)
        size = kernel.shape[0]
        if by_onednn and stride == 1:
            pad = size // 2
            turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
            to_input = onednn.convolve(grad, turned, ((pad, pad), (pad, pad)))
        else:
            form = _by_product if size == 1 else _plain
            to_input = jax.vjp(lambda x: form(x, kernel, stride), x)[1](grad)[0]
        # What oneDNN gains comes from parts that fill its vectors; other batches are left to XLA.
        form_of_weights = _weight_gradient_by_onednn if by_onednn and len(x) % PART == 0 else _weight_gradient
        return to_input, form_of_weights(x, grad, size, stride)

    return lax.platform_dependent(x, kernel, grad, cpu=cpu, default=default)


def _weight_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """Correlates x [B,H,W,C] with grad [B,h,w,F] over batch and positions: [size,size,C,F]."""
    if size == 1:
        return jnp.einsum("bhwc,bhwf->cf", x[:, ::stride, ::stride], grad)[None, None]
    batch, height, width, features = grad.shape
    examples, rows = _half(batch, height)
    low = size // 2
    padding = [(low, (g - 1) * stride + size - n - low) for n, g in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
    above_and_below = padding[0]
    if rows < height:  # halves share the rows between them: padded before, not within each
        x = jnp.pad(x, ((0, 0), (max(0, above_and_below[0]), max(0, above_and_below[1])), (0, 0), (0, 0)))
        above_and_below = (0, 0)
    rows_of_x = (rows - 1) * stride + size if rows < height else x.shape[1]
    down = height // rows

    def add_half(number: int | Array, total: Array) -> Array:
        example, row = lax.div(number, down) * examples, lax.rem(number, down) * rows  # plain: nothing is negative
        images = lax.dynamic_slice(x, (example, row * stride, 0, 0), (examples, rows_of_x, *x.shape[2:]))
        filters = lax.dynamic_slice(grad, (example, row, 0, 0), (examples, rows, width, features))
        half = lax.conv_general_dilated(
            images.transpose(3, 1, 2, 0),
            filters.transpose(1, 2, 0, 3),
            (1, 1),
            (above_and_below, padding[1]),
            rhs_dilation=(stride, stride),
            dimension_numbers=NHWC,
        )
        return total + half  # in float32 even where bfloat16 is computed in

    total = jnp.zeros((x.shape[3], size, size, features), jnp.promote_types(x.dtype, jnp.float32))
    total = lax.fori_loop(0, batch // examples * down, add_half, total)
    return total.transpose(1, 2, 0, 3).astype(x.dtype)


def _weight_gradient_by_onednn(x: Array, grad: Array, size: int, stride: int) -> Array:
    """As `_weight_gradient`, for a multiple of `PART` examples.

    It is the sum over positions and examples of x [H,W,C,B] times grad [h,w,B,F], for each of the kernel's rows and
    columns: a convolution of one image of the sizes H and W*C and of B channels. Its kernel is the gradient, C elements
    apart along the second size, and its result is `size` times C wide. A part of the examples at a time stays in the
    cache, from its transpose to the last of the rows and columns.
    """
    (_, height, width, channels), features = x.shape, grad.shape[3]
    low = size // 2
    padding = [(low, (g - 1) * stride + size - n - low) for n, g in zip((height, width), grad.shape[1:3], strict=True)]
    padding[1] = (padding[1][0] * channels, padding[1][1] * channels)

    def add_part(number: int | Array, total: Array) -> Array:
        images, grads = (lax.dynamic_slice_in_dim(array, number * PART, PART) for array in (x, grad))
        image = images.transpose(1, 2, 3, 0).reshape(1, height, width * channels, PART)
        order = (1, 2, 0, 3)  # rows and columns, the examples as channels, the features
        return total + onednn.convolve(image, grads, tuple(padding), 1, (stride, stride * channels), order)[0]

    total = lax.fori_loop(0, len(x) // PART, add_part, jnp.zeros((size, size * channels, features), x.dtype))
    return total.reshape(size, size, channels, features)


def _half(examples: int, rows: int) -> tuple[int, int]:
    """Examples and rows of half a gradient [B,h,w,F]; all of both where neither can be halved."""
    if examples % 2 == 0 and examples // 2 >= FEWEST_EXAMPLES:
        return examples // 2, rows
    if rows % 2 == 0:
        return examples, rows // 2
    return (examples // 2, rows) if examples % 2 == 0 else (examples, rows)


_convolve.defvjp(_forward, _backward)
