"""What makes a CPU train faster: one XLA device for each core, and memory that stays in the process.

XLA:CPU gives a convolution to several threads of one device poorly: on two cores one device trains ResNet-32 SHIKE a
quarter faster than on one core, two devices 1.6 times as fast (docs/speed.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable
from importlib import metadata, util

import jax

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # as glibc's malloc.h has them
EXAMPLES_EACH = 16  # of a batch: smaller shares spend their time waiting for each other


def use_cores(devices: int = 0, batch_sizes: Iterable[int] = ()) -> None:
    """Sets how many devices JAX makes of this machine's CPU; call before anything touches a device.

    The user's own choice wins: XLA_FLAGS=--xla_force_host_platform_device_count=N or JAX_NUM_CPU_DEVICES=N; so does a
    job of several processes, which has as many devices as its processes. Where JAX is awake already, or computes on
    something else, nothing changes.

    `devices` is that number; 0: one for each core that this process may use, but no more than divide each batch of the
    steps to come into equal shares of at least `EXAMPLES_EACH` examples.
    """
    _keep_memory()
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.values["jax_num_cpu_devices"] > 0 or jax.distributed.is_initialized():
        return
    devices = devices or devices_for(usable_cores(), batch_sizes)
    # XLA takes a thread for each core, or for each device where these are more. That is enough, as it runs collectives
    # one after the other, and more threads (NPROC) make a step slower (docs/speed.md).
    with contextlib.suppress(RuntimeError):  # JAX is awake
        jax.config.update("jax_num_cpu_devices", devices)


def _keep_memory() -> None:
    """Lets the process keep the memory that XLA frees after a step, where JAX will compute on the CPU and C is glibc.

    XLA takes the temporary arrays of a step as one piece. glibc hands so large a piece back to the kernel, which clears
    its pages again for the next step: up to a sixth of a step (docs/speed.md). A user's GLIBC_TUNABLES of malloc win.
    """
    accelerated = metadata.entry_points(group="jax_plugins") or util.find_spec("libtpu")
    platforms = jax.config.values["jax_platforms"] or ("any" if accelerated else "cpu")
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not platforms.startswith("cpu") or sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # another library of C has no such function
        set_option = ctypes.CDLL(None).mallopt
        set_option(_TRIM_THRESHOLD, -1)  # never
        set_option(_MMAP_MAX, 0)
        set_option(_ARENA_MAX, 1)  # the arena of a thread cannot hold large pieces, so all threads share one


def devices_for(cores: int, batch_sizes: Iterable[int]) -> int:
    """The largest number of devices up to `cores` that divides each batch into shares of `EXAMPLES_EACH` or more."""
    sizes = list(batch_sizes)
    fitting = (n for n in range(cores, 1, -1) if all(b % n == 0 and b // n >= EXAMPLES_EACH for b in sizes))
    return next(fitting, 1)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
