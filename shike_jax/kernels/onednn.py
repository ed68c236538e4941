"""Convolutions by oneDNN, the library that PyTorch's are computed by on a CPU.

It lies in jaxlib for x86, and XLA has an instruction that calls it: a custom call, with the dimensions in a message of
XLA's own. The pass of XLA's compiler that would put this instruction in place of a convolution is left out of jaxlib,
so it is written here by hand. The instruction is no promise of XLA's; where it is missing or computes something else,
`usable` is False. A program that has it cannot be kept in a cache or exported: XLA cannot write it down.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import platform
from collections.abc import Iterator

import jax
import jaxlib
import numpy as np
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], ...]
_CALL = "__onednn$convolution"
_KNOWN = ("0.10", "0.11")  # versions of jaxlib that this was tried with; another one might not even refuse
_chosen = contextvars.ContextVar("convolutions by oneDNN", default=False)


@contextlib.contextmanager
def chosen() -> Iterator[None]:
    """Convolutions of float32 that are traced in here are computed by oneDNN; ask `usable` first."""
    token = _chosen.set(True)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def unkept() -> Iterator[None]:
    """Programs that are compiled in here do not go into JAX's cache of compiled programs, where those here must not."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def is_chosen() -> bool:
    """Whether convolutions that are traced now are to be computed by oneDNN."""
    return _chosen.get()


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: Array,
    kernel: Array,
    padding: Padding,
    stride: int = 1,
    dilation: tuple[int, ...] = (),
    order: tuple[int, ...] = (),
) -> Array:
    """Convolution of x [B,*sizes,C] with kernel [*window,C,F], both float32, for one to three sizes: [B,*sizes,F].

    `padding` is before and after each size, `stride` that of all, `dilation` between the kernel's elements of each (1
    without it). A kernel whose axes lie in another `order` needs no transpose before: `order` says which of its axes
    are [*window,C,F]. Its derivatives are XLA's.
    """
    places = list(range(1, 1 + len(padding)))
    data = {"batch_dim": 0, "feature_dim": len(padding) + 1, "spatial_dims": places}
    *of_window, channels, features = order or range(kernel.ndim)
    filters = {"spatial_dims": of_window, "input_feature_dim": channels, "output_feature_dim": features}
    window = {
        "pad_left": [before for before, _ in padding],
        "pad_right": [after for _, after in padding],
        "strides": [stride] * len(padding),
        "window_dilations": list(dilation or [1] * len(padding)),
    }
    described = {
        "dims": x.ndim,
        "feature_groups": 1,
        "input": {"data": data},
        "kernel": {"filter": filters},
        "output": {"data": data},
        "window": window,
    }
    call = jax.ffi.ffi_call(
        _CALL,
        jax.eval_shape(lambda x, kernel: _by_xla(x, kernel, padding, stride, dilation, order), x, kernel),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": described}),
        vmap_method="sequential",
    )
    return call(x, kernel)


def _by_xla(
    x: Array, kernel: Array, padding: Padding, stride: int, dilation: tuple[int, ...], order: tuple[int, ...] = ()
) -> Array:
    kernel, sizes = kernel.transpose(order or range(kernel.ndim)), "DHW"[-len(padding) :]
    numbers, strides = (f"N{sizes}C", f"{sizes}IO", f"N{sizes}C"), (stride,) * len(padding)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation or None, dimension_numbers=numbers
    )


@convolve.defjvp
def _tangent(
    padding: Padding,
    stride: int,
    dilation: tuple[int, ...],
    order: tuple[int, ...],
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
) -> tuple[Array, Array]:
    (x, kernel), (along_x, along_kernel), how = primals, tangents, (padding, stride, dilation, order)
    return convolve(x, kernel, *how), _by_xla(along_x, kernel, *how) + _by_xla(x, along_kernel, *how)


@functools.cache
def usable() -> bool:
    """Whether this JAX computes on an x86 processor alone, knows the instruction, and it gives what XLA gives."""
    known = ".".join(jaxlib.__version__.split(".")[:2]) in _KNOWN and platform.machine() in ("x86_64", "AMD64")
    if not known or jax.default_backend() != "cpu":
        return False
    rng = np.random.RandomState(0)
    x, kernel = rng.randn(2, 9, 7, 3).astype("f4"), rng.randn(3, 5, 3, 4).astype("f4")
    padding = ((1, 2), (0, 3))

    def all_three(x: Array, kernel: Array) -> tuple[Array, Array, Array]:
        found = convolve(x, kernel, padding, 2, (1, 2))
        in_order = convolve(x, kernel.transpose(3, 0, 2, 1), padding, 2, (1, 2), (1, 3, 2, 0))
        return found, in_order, _by_xla(x, kernel, padding, 2, (1, 2))

    try:
        with unkept():
            found, in_order, expected = jax.jit(all_three).lower(x, kernel).compile()(x, kernel)
    except (jax.errors.JaxRuntimeError, ValueError, TypeError):
        return False
    return np.allclose(found, expected, 1e-4, 1e-4) and np.allclose(in_order, expected, 1e-4, 1e-4)
