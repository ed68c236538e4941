"""Devices that are not there: what a compiler needs to know of them, for programs compiled ahead of time.

TPUs are described by libtpu, which holds the TPU compiler and needs no TPU for it. A GPU is described by the text of
XLA's own device description, which JAX's CUDA plugin takes in place of a GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
from typing import Any

import jax

from shike_jax.errors import UserError, reason

GIB = 1 << 30
# Google's and NVIDIA's published figures: bytes of memory of a chip, FLOP a second in bfloat16, bytes a second.
TPUS = {
    "v4": (32 * GIB, 275e12, 1_228e9),
    "v5e": (16 * GIB, 197e12, 819e9),
    "v5p": (95 * GIB, 459e12, 2_765e9),
    "v6e": (32 * GIB, 918e12, 1_640e9),
}
# name: (marketing name, bytes of memory, FLOP a second in bfloat16, bytes a second)
GPUS = {
    "h100": ("NVIDIA H100 80GB HBM3", 80 * 10**9, 989e12, 3_350 * 10**9),
    "h200": ("NVIDIA H200", 141 * 10**9, 989e12, 4_800 * 10**9),
}
EXPECTED = "tpu:v5e:4x4 (or v4, v5p, v6e with its chips, such as tpu:v5p:2x2x2), gpu:h100 or gpu:h200"

# What XLA asks of a GPU's description. Both GPUs are of compute capability 9.0 with 132 multiprocessors: the figures
# are NVIDIA's published ones for that generation.
_HOPPER = """
gpu_device_info {{
  name: "{name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  device_address_bits: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    text: str  # as the user wrote it
    platform: str  # tpu or cuda
    devices: list[Any]  # as JAX describes them; they can be compiled for, not computed on
    memory: int  # bytes of one device
    compiler: str = ""  # package that compiles for them, and its version; empty: JAX's own
    peaks: tuple[float, float] | None = None  # FLOP and bytes of memory a second of one device; None: not known

    def least_seconds(self, flops: float | None, moved: float | None) -> float | None:
        """Seconds that a program of so much work and traffic takes at the published peaks, whichever is longer."""
        if self.peaks is None or flops is None or moved is None:
            return None
        return max(flops / self.peaks[0], moved / self.peaks[1])


def describe(text: str) -> Topology:
    """The devices of `tpu:GENERATION:SHAPE` or `gpu:NAME`; `UserError` if unknown, or without a compiler for them.

    To be called before this process first uses JAX: JAX itself computes on the CPU.
    """
    platform, _, rest = text.partition(":")
    jax.config.update("jax_platforms", "cpu")
    if platform == "tpu":
        return _describe_tpu(text, *rest.partition(":")[::2])
    if platform == "gpu" and rest in GPUS:
        return _describe_gpu(text, rest)
    raise UserError(f"--topology={text}: expected {EXPECTED}")


def _describe_tpu(text: str, generation: str, shape: str) -> Topology:
    if generation not in TPUS or not shape:
        raise UserError(f"--topology={text}: expected {EXPECTED}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={text}: the TPU compiler (libtpu) is not installed; it needs no TPU: "
            f'pip install "jax[tpu]=={jax.__version__}"'
        )
    # libtpu asks Google's metadata server for the machine it is on, unless it is told not to.
    os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"})
    devices = _described(text, f"{generation}:{shape}", "tpu")
    share = math.prod(map(int, shape.split("x"))) / len(devices)  # a v4 or v5p chip is one device, or two
    memory, flops, bandwidth = (value * share for value in TPUS[generation])
    return Topology(text, "tpu", devices, int(memory), _package("libtpu"), (flops, bandwidth))


def _describe_gpu(text: str, name: str) -> Topology:
    plugin = next((n for n in (13, 12) if importlib.util.find_spec(f"jax_cuda{n}_plugin")), None)
    if plugin is None:
        raise UserError(
            f"--topology={text}: JAX's CUDA plugin is not installed; it needs no GPU to compile: "
            f'pip install "jax[cuda13]=={jax.__version__}"'
        )
    # Without a GPU nothing can be timed, so kernels are chosen by rule.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    title, memory, flops, bandwidth = GPUS[name]
    target = _HOPPER.format(name=title, memory=memory, bandwidth=bandwidth)
    devices = _described(text, name, "cuda", target_config=target, topology="1x1x1")
    return Topology(text, "cuda", devices, memory, _package(f"jax-cuda{plugin}-plugin"), (flops, bandwidth))


def _described(text: str, name: str, platform: str, **how: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform, **how).devices)
    except Exception as error:  # libtpu's and the plugin's own kinds
        raise UserError(f"--topology={text}: {reason(error, 300)}; expected {EXPECTED}") from error


def _package(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"
