"""The 2-D convolution in the forms that XLA's CPU backend runs well; on other backends all is left as it is.

XLA computes the weight gradient as a convolution of transposed operands. On the CPU it fuses those transposes with the
element-wise work before them (batch normalisation, ReLU) into strided loops that take longer than the convolution
itself: nearly half of a training step. Handing the convolution finished, transposed arrays makes a step of ResNet-32
SHIKE 1.4 times as fast there (docs/speed.md). It goes through the batch in parts that fit a core's cache.

With few channels a CPU's vector units are partly idle. The 7x7 stem therefore folds each 2x2 block of pixels into the
channels (space to depth); a 3x3 convolution of at most 16 channels computes two or four neighbouring columns at once,
as extra output channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
NHWC = ("NHWC", "HWIO", "NHWC")
# Of the gradient behind a convolution, for its weight gradient on a CPU. Two threads may share a second-level cache.
PART_BYTES = 300_000


def convolve(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    """Convolution with PyTorch's symmetric padding size // 2.

    Args:
      x: float [B,H,W,C].
      kernel: the same dtype, [size,size,C/groups,F], size odd.
      stride: in both directions.
      groups: channels come in this many groups that do not mix.

    Returns:
      [B,ceil(H/stride),ceil(W/stride),F].
    """
    return _plain(x, kernel, stride, groups) if groups > 1 else _convolve(x, kernel, stride)


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


def _columns(x: Array, kernel: Array, stride: int) -> int:
    """How many neighbouring columns a CPU computes at once: as many as fill 32 channels or so (measured)."""
    inputs, features = kernel.shape[2:]
    if kernel.shape[0] != 3 or stride != 1 or max(inputs, features) > 16:
        return 1
    columns = 4 if min(inputs, features) <= 8 else 2
    return columns if x.shape[2] % columns == 0 else 1


def _by_columns(x: Array, kernel: Array, columns: int) -> Array:
    """The 3x3 convolution of stride 1 with n neighbouring columns as channels: [B,H,W/n,nF], laid out as [B,H,W,F].

    Each column has the kernel at its own place in a window of n + 2 columns, which moves by n; zeros fill the rest.
    """
    placed = [jnp.pad(kernel, ((0, 0), (i, columns - 1 - i), (0, 0), (0, 0))) for i in range(columns)]
    out = lax.conv_general_dilated(
        x, jnp.concatenate(placed, 3), (1, columns), ((1, 1), (1, 1)), dimension_numbers=NHWC
    )
    return out.reshape(*x.shape[:3], kernel.shape[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    plain = functools.partial(_plain, stride=stride)
    if _is_stem(x, kernel, stride):
        return lax.platform_dependent(x, kernel, cpu=_by_blocks, default=plain)
    if (columns := _columns(x, kernel, stride)) > 1:
        return lax.platform_dependent(x, kernel, cpu=functools.partial(_by_columns, columns=columns), default=plain)
    return plain(x, kernel)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def default(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_plain, stride=stride), x, kernel)[1](grad)

    def cpu(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        if _is_stem(x, kernel, stride):
            return jax.vjp(_by_blocks, x, kernel)[1](grad)
        return _input_gradient(x, kernel, grad, stride), _weight_gradient(x, grad, kernel.shape[0], stride)

    return lax.platform_dependent(x, kernel, grad, cpu=cpu, default=default)


def _input_gradient(x: Array, kernel: Array, grad: Array, stride: int) -> Array:
    """Of the convolution of x [B,H,W,C], from grad [B,h,w,F]."""
    columns = _columns(x, kernel, stride)
    if columns > 1:  # differentiating this form is slow, applying it to the gradient is not
        return _by_columns(grad, kernel[::-1, ::-1].swapaxes(2, 3), columns)
    return jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](grad)[0]


def _weight_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """Correlates x [B,H,W,C] with grad [B,h,w,F] over batch and positions, part by part: [size,size,C,F]."""
    each = len(x) // _parts(grad)
    parts = (slice(first, first + each) for first in range(0, len(x), each))
    return functools.reduce(jnp.add, (_correlation(x, grad, size, stride, part) for part in parts))


def _parts(grad: Array) -> int:
    """In how many parts a batch's weight gradient is computed: each should stay in a second-level cache.

    Of every part the whole gradient is read once for each input channel and offset. Parts of less than eight examples
    gain nothing more (measured).
    """
    parts = 1
    while grad.nbytes > parts * PART_BYTES and grad.shape[0] % (2 * parts) == 0 and grad.shape[0] >= 16 * parts:
        parts *= 2
    return parts


def _correlation(x: Array, grad: Array, size: int, stride: int, part: slice) -> Array:
    images = _transposed(x, (3, 1, 2, 0), part)  # C takes the batch's place, B the channels'
    filters = _transposed(grad, (1, 2, 0, 3), part)
    low = size // 2
    high = [size - 1 + (g - 1) * stride + 1 - n - low for n, g in zip(x.shape[1:3], grad.shape[1:3], strict=True)]
    out = lax.conv_general_dilated(
        images, filters, (1, 1), [(low, h) for h in high], rhs_dilation=(stride, stride), dimension_numbers=NHWC
    )
    return out.transpose(1, 2, 0, 3)


def _transposed(x: Array, axes: tuple[int, ...], part: slice) -> Array:
    """Examples of x transposed, in memory of their own before they are used: XLA cannot foresee a condition, so it ends
    a fusion. (`optimization_barrier` is removed before XLA:CPU fuses.)
    """

    def copied(x: Array) -> Array:
        return x[part].transpose(axes)

    return lax.cond(jnp.isnan(x.reshape(-1)[0]), lambda x: copied(x + x), copied, x)


_convolve.defvjp(_forward, _backward)
