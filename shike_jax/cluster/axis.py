"""The device axis, as a function that may or may not run on several devices sees it."""

from __future__ import annotations

from jax import lax


def axis_size(name: str | None) -> int:
    """Number of devices that run the function being traced, along the axis of that name.

    Returns:
      1 where no such axis is bound, as under plain `jax.jit`: sums over the devices are then the device's own.
    """
    if name is None:
        return 1
    try:
        return int(lax.axis_size(name))
    except NameError:  # JAX's answer for an axis that is not bound
        return 1
