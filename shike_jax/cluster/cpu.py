"""What makes a CPU train faster: convolutions by Eigen, and memory that stays in the process (docs/speed.md)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from importlib import metadata, util

import jax

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as glibc's malloc.h has them
_MOST_KEPT = 2**31 - 1  # bytes, the most that mallopt takes
_MADV_HUGEPAGE = 14
# What XLA hands to YNNPACK: not convolutions, which take longer there than with Eigen (docs/notes/cpu_speed.md).
_TO_YNNPACK = "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def prepare(devices: int = 0) -> None:
    """Sets how JAX computes on this machine's CPU; call before anything touches a device.

    JAX makes `devices` of the CPU; 0: one, which computes with all cores. The user's own choice wins:
    XLA_FLAGS=--xla_force_host_platform_device_count=N or JAX_NUM_CPU_DEVICES=N; so does a job of several processes,
    which has as many devices as its processes. Where JAX is awake already, or computes on something else, nothing
    changes.
    """
    _keep_memory()
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not devices or chosen or jax.config.values["jax_num_cpu_devices"] > 0 or jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # JAX is awake
        jax.config.update("jax_num_cpu_devices", devices)


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """What XLA's compiler is told for a platform; none where the user's XLA_FLAGS name it, or XLA does not know it."""
    name = "xla_cpu_experimental_ynn_fusion_type"
    options = {name: _TO_YNNPACK}
    if platform != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option may go
        return {}
    return options


def _keep_memory() -> None:
    """Lets the process keep the memory that XLA frees after a step, where JAX will compute on the CPU and C is glibc.

    XLA takes the temporary arrays of a step as one piece. glibc hands so large a piece back to the kernel, which clears
    its pages again for the next step (its cost: docs/notes/cpu_speed.md). Pieces of 2 GiB and more are still the
    kernel's, so that one which is larger than the machine's memory is refused, not given bit by bit until there is none
    left. What is kept lies in large pages where Linux has them on request. A user's GLIBC_TUNABLES of malloc win.
    """
    accelerated = metadata.entry_points(group="jax_plugins") or util.find_spec("libtpu")
    platforms = jax.config.values["jax_platforms"] or ("any" if accelerated else "cpu")
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not platforms.startswith("cpu") or sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # another library of C has no such function
        libc = ctypes.CDLL(None)
        set_option = libc.mallopt
        if set_option(_MMAP_THRESHOLD, _MOST_KEPT):  # glibc before 2.35 refuses: 32 MiB are the most there
            set_option(_TRIM_THRESHOLD, _MOST_KEPT)
            set_option(_ARENA_MAX, 1)  # the arena of a thread cannot hold large pieces, so all threads share one
            _in_large_pages(libc)


def _in_large_pages(libc: ctypes.CDLL) -> None:
    """Asks for large pages where malloc's arena will grow: addresses alone, as nothing is written there yet."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    piece = libc.malloc(_MOST_KEPT - 2**20)
    if piece is None:  # more than the process may have
        return
    page = os.sysconf("SC_PAGE_SIZE")
    first = -(-piece // page) * page
    libc.madvise(first, piece + _MOST_KEPT - 2**20 - first, _MADV_HUGEPAGE)
    libc.free(piece)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
