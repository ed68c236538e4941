"""The only home of pmap: the axis, collectives, and where host and device arrays meet.

Every process drives its own devices. State is replicated and travels through pmap with `in_axes=None, out_axes=None`,
so it never grows a device axis; batches carry a leading axis of local devices. Host code sees NumPy arrays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from shike_jax.errors import UserError

AXIS = "devices"
PyTree = Any


def pmap_step(function: Callable, *, replicated_in: tuple[bool, ...], replicated_out: Any, donate: bool) -> Callable:
    """Compiles a per-device function over all devices.

    Args:
      function: per-device; may use collectives over `AXIS`.
      replicated_in: for each argument, True when every device gets the whole of it, False when it is split along its
        leading axis of local devices.
      replicated_out: the same for the results (a pytree prefix of booleans).
      donate: the first argument's buffers are given up to the result.
    """
    in_axes = tuple(None if whole else 0 for whole in replicated_in)
    out_axes = jax.tree.map(lambda whole: None if whole else 0, replicated_out)
    return jax.pmap(function, AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=(0,) if donate else ())


def psum(tree: PyTree) -> PyTree:
    """Sums a pytree over all devices; inside a pmapped function."""
    return lax.psum(tree, AXIS)


def device_index() -> jax.Array:
    """This device's place among all devices; inside a pmapped function."""
    return lax.axis_index(AXIS)


def replicate(tree: PyTree) -> PyTree:
    """Puts host arrays on every device; the result passes into `pmap_step` functions without further copies."""
    return pmap_step(lambda dummy, x: x, replicated_in=(False, True), replicated_out=True, donate=False)(
        np.zeros(jax.local_device_count(), np.float32), tree
    )


def to_host(tree: PyTree) -> PyTree:
    """Copies a replicated pytree to NumPy arrays (each process from its own first device)."""
    return jax.tree.map(_local_value, tree)


def _local_value(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)


def split_batch(batch: PyTree, per_process: bool = False) -> PyTree:
    """Reshapes [B, ...] arrays to [local devices, B / devices, ...], this process's share of the global batch.

    Args:
      batch: host arrays of the global batch (every process holds the same), leading axis divisible by the devices; or
        of this process's share with `per_process`.
      per_process: the arrays already hold this process's share only.
    """
    local, index = jax.local_device_count(), 0 if per_process else jax.process_index()
    devices = local if per_process else jax.device_count()

    def take(array: np.ndarray) -> np.ndarray:
        each = len(array) // devices
        return array[index * local * each : (index + 1) * local * each].reshape(local, each, *array.shape[1:])

    return jax.tree.map(take, batch)


def start_distributed(coordinator: str | None, processes: int | None, index: int | None) -> None:
    """Joins a multi-process job when there is one; call before anything touches a device.

    Explicit arguments (or JAX's own JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID) win. Without them, a
    SLURM step of several tasks, a Kubernetes indexed job or a Cloud TPU pod is recognised by JAX itself.

    Raises:
      UserError: the job's processes did not come together.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = processes if processes is not None else _int_variable("JAX_NUM_PROCESSES")
    index = index if index is not None else _int_variable("JAX_PROCESS_ID")
    managed = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    managed = managed or len([h for h in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]) > 1
    if not managed and not coordinator:
        return
    # Gloo carries collectives between CPU processes; other platforms ignore the setting.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        # All three are None on managed clusters, where JAX finds them itself.
        jax.distributed.initialize(coordinator, processes, index)
    except (RuntimeError, ValueError) as error:
        where = coordinator or "(from the environment)"
        raise UserError(f"process {index} of {processes} could not join coordinator {where}: {error}") from error


def _int_variable(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"environment variable {name}={text!r}: expected a whole number")
    return int(text)


def assert_equal_everywhere(value: str, what: str) -> None:
    """Checks that every process holds the same string (code version, configuration, split hash, ...).

    Raises:
      UserError: on every process, when any differs from process 0.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(value.encode()).digest()[:8], np.uint32)
    everyone = np.asarray(multihost_utils.process_allgather(digest))
    differ = [i for i, other in enumerate(everyone) if (other != everyone[0]).any()]
    if differ:
        raise UserError(f"processes disagree on the {what}: process(es) {differ} differ from process 0")


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def is_main() -> bool:
    """True on the one process that writes logs and results."""
    return jax.process_index() == 0
