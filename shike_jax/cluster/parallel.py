"""The only home of device parallelism: the axis, collectives, and where host and device arrays meet.

A per-device function is compiled over all devices in one of two ways that compute the same: `pmap`, or `jit` over
`shard_map` on a mesh of one axis. Every process drives its own devices. State is replicated and never grows a device
axis; batches carry a leading axis of local devices. Host code sees NumPy arrays. The collectives also work where no
axis is bound: under plain `jax.jit` a step runs on one device, whose sums are the sums of all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shike_jax.cluster import coordination, cpu
from shike_jax.cluster.axis import Axis, Neighbours, axis_size, sum_over
from shike_jax.cluster.joining import start_distributed as start_distributed  # found here since version 0.1
from shike_jax.errors import UserError

AXIS = "devices"
BARRIER_SECONDS = 6 * 3600
BACKENDS = ("pmap", "shard_map")
PyTree = Any
_backend = BACKENDS[0]


def use_backend(name: str) -> str:
    """Chooses how `compile_step` compiles from now on: one of `BACKENDS`; returns what was used before."""
    global _backend
    before, _backend = _backend, name
    return before


def backend_in_use() -> str:
    """The one of `BACKENDS` that `compile_step` compiles by: pmap hands no options to the compiler, so where there are
    any, for one device, it is shard_map, whose program is the same there."""
    return "shard_map" if compiler_options() else _backend


def compiler_options() -> Mapping[str, str]:
    """What `compile_step` tells XLA's compiler: something on a CPU's one device, nothing elsewhere."""
    return cpu.compiler_options(jax.default_backend()) if jax.device_count() == 1 else {}


def bn_axis(synchronised: bool, group: int) -> Axis:
    """What BN statistics are summed over: all devices, groups of `group` neighbours (0: all), or each its own."""
    if not synchronised:
        return None
    return Neighbours(AXIS, group) if group else AXIS


def compile_step(function: Callable, *, replicated_in: tuple[bool, ...], donate: bool) -> Any:
    """Compiles a per-device function over all devices; `lower(*arguments)` of what is returned gives its program.

    Args:
      function: may use collectives over `AXIS`; its results must be equal on all devices.
      replicated_in: for each argument, True when every device gets the whole of it, False when it is split along its
        leading axis of local devices.
      donate: the first argument's buffers are given up to the result.
    """
    if backend_in_use() == "pmap":
        in_axes = tuple(None if whole else 0 for whole in replicated_in)
        return jax.pmap(function, AXIS, in_axes=in_axes, out_axes=None, donate_argnums=(0,) if donate else ())
    compiled, shardings = _over_mesh(function, replicated_in, donate, jax.devices(), compiler_options())

    def placed(*arguments: PyTree) -> list[PyTree]:
        pairs = zip(arguments, shardings, strict=True)
        return [jax.tree.map(functools.partial(_on_mesh, sharding=sharding), x) for x, sharding in pairs]

    def call(*arguments: PyTree) -> PyTree:
        return compiled(*placed(*arguments))

    lowerable: Any = call
    lowerable.lower = lambda *arguments: compiled.lower(*placed(*arguments))
    return lowerable


def lower_step(
    function: Callable,
    arguments: Sequence[PyTree],
    *,
    replicated_in: tuple[bool, ...],
    donate: bool,
    devices: Sequence[Any],
    platform: str,
) -> jax.stages.Lowered:
    """The program of a step for devices that need not be here: as `compile_step` would compile it over these.

    `arguments` are shapes, as `compile_step` takes arrays; those that are split have a leading axis of all devices.
    """
    compiled, shardings = _over_mesh(function, replicated_in, donate, devices)
    placed = (
        jax.tree.map(lambda x, sharding=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), argument)
        for argument, sharding in zip(arguments, shardings, strict=True)
    )
    return compiled.trace(*placed).lower(lowering_platforms=(platform,))


def _over_mesh(
    function: Callable,
    replicated_in: tuple[bool, ...],
    donate: bool,
    devices: Sequence[Any],
    options: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Any, tuple[NamedSharding, ...]]:
    mesh = Mesh(np.array(devices), (AXIS,))
    specs = tuple(PartitionSpec() if whole else PartitionSpec(AXIS) for whole in replicated_in)

    def on_one_device(*arguments: PyTree) -> PyTree:
        whole = zip(arguments, replicated_in, strict=True)
        return function(*(x if keep else jax.tree.map(lambda leaf: leaf[0], x) for x, keep in whole))

    mapped = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    compiled = jax.jit(mapped, donate_argnums=(0,) if donate else (), compiler_options=dict(options) or None)
    return compiled, tuple(NamedSharding(mesh, spec) for spec in specs)


def _over_all_devices(*spec: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec(*spec))


def _on_mesh(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A host array, or one that is on the mesh already, as a global array; each process holds its own devices' part."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    value = _local_value(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.make_array_from_process_local_data(sharding, value)


def psum(tree: PyTree) -> PyTree:
    """Sums a pytree over all devices; inside a compiled step."""
    return sum_over(AXIS, tree)


def device_index() -> jax.Array:
    """This device's place among all devices; inside a compiled step."""
    return jnp.int32(0) if axis_size(AXIS) == 1 else lax.axis_index(AXIS)


def all_gather(tree: PyTree) -> PyTree:
    """Arrays [b, ...] of each device as [B, ...] of all, in the order of the global batch; inside a compiled step."""
    return tree if axis_size(AXIS) == 1 else lax.all_gather(tree, AXIS, tiled=True)


def rows_of_all(array: Any, positions: Any) -> Any:
    """Rows of the global batch by their positions [n] in it, from arrays [b,...] of each device; in a compiled step.

    The shares go round from device to device, so that none holds more than two of them.
    """
    devices, each = axis_size(AXIS), len(array)
    if devices == 1:
        return array[positions]
    owner, place = positions // each, positions % each
    ring = [(device, (device - 1) % devices) for device in range(devices)]

    def turn(number: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
        share, found = carried
        here = owner == (lax.axis_index(AXIS) + number) % devices  # whose share has come
        chosen = jnp.where(here.reshape(-1, *[1] * (array.ndim - 1)), share[place], found)
        return lax.ppermute(share, AXIS, ring), chosen

    start = jnp.zeros((len(positions), *array.shape[1:]), array.dtype)
    return lax.fori_loop(0, devices, turn, (array, start))[1]


def replicate(tree: PyTree) -> PyTree:
    """Copies host arrays to every device; the result passes into `compile_step` functions without further copies."""
    if _backend == "shard_map":
        everywhere = _over_all_devices()
        return jax.tree.map(lambda leaf: _on_mesh(np.array(leaf), everywhere), tree)
    # As `pmap` returns its results. No memory is shared with the arrays given: a step may overwrite its copies.
    sharding = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())
    return jax.device_put(jax.tree.map(np.asarray, tree), sharding, may_alias=False)


def send(tree: PyTree) -> PyTree:
    """Starts to send arrays [local devices, ...], one part to each device, for a `compile_step` function to come.

    Where `pmap` runs several processes it sends them itself: it takes this process's parts as host arrays.
    """
    if jax.process_count() > 1 and _backend == "pmap":
        return tree
    split = _over_all_devices(AXIS)
    return jax.tree.map(lambda leaf: _on_mesh(leaf, split), tree)


def first_part(leaf: Any) -> np.ndarray:
    """The first device's part of an array [local devices, ...], which may have been sent."""
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)[0]


def to_host(tree: PyTree) -> PyTree:
    """Copies a replicated pytree to NumPy arrays (each process from its own first device)."""
    return jax.tree.map(_local_value, tree)


def to_global(tree: PyTree) -> PyTree:
    """A replicated pytree as global arrays, which state that they are replicated over the devices of all processes.

    Those of `pmap` speak of this process's devices only; nothing is copied. Host arrays stay as they are.
    """
    if jax.process_count() == 1:
        return tree
    everywhere = _over_all_devices()

    def spoken_for(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable:
            return leaf
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, parts)

    return jax.tree.map(spoken_for, tree)


def _local_value(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)


def split_batch(batch: PyTree, per_process: bool = False) -> PyTree:
    """Reshapes host arrays [B, ...] to [local devices, B / devices, ...], this process's share of the global batch.

    B is divisible by the devices. With `per_process` the arrays hold this process's share already.
    """
    local, index = jax.local_device_count(), 0 if per_process else jax.process_index()
    devices = local if per_process else jax.device_count()

    def take(array: np.ndarray) -> np.ndarray:
        each = len(array) // devices
        return array[index * local * each : (index + 1) * local * each].reshape(local, each, *array.shape[1:])

    return jax.tree.map(take, batch)


def describe() -> str:
    """One line: processes, coordinator and devices of the job."""
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.process_count() == 1:
        return f"1 process, {devices}"
    where = coordination.coordinator_address()
    return f"{jax.process_count()} processes, coordinator {where}, {devices} ({jax.local_device_count()} here)"


def assert_equal_everywhere(value: str, what: str) -> None:
    """Raises UserError on every process unless all hold the same text (code version, configuration, ...)."""
    everyone = gather(hashlib.sha256(value.encode()).hexdigest())
    differ = [i for i, other in enumerate(everyone) if other != everyone[0]]
    if differ:
        raise UserError(f"processes disagree on the {what}: process(es) {differ} differ from process 0")


def find_devices() -> list[jax.Device]:
    """All devices; the first use of JAX. UserError where JAX_PLATFORMS asks for a platform that is not there."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter when a platform is asked for and absent
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device (JAX_PLATFORMS={asked!r}): unset JAX_PLATFORMS to use what there is, or install JAX "
            f"for that platform ({' '.join(str(error).split()) or 'no plugin for it'})"
        ) from error


def barrier(name: str) -> None:
    """Waits until every process has come here, however long one takes (a lost one is noticed by `peers`)."""
    if jax.process_count() > 1:
        # Not a collective: those have a time limit of their own on the CPU.
        coordination.wait_at_barrier(f"shike_jax/{name}", BARRIER_SECONDS)


def from_main(value: Any) -> Any:
    """The main process's value (plain data), on every process; what the others pass is ignored."""
    return gather(value if is_main() else None)[0]


def gather(value: Any) -> list[Any]:
    """Every process's value (plain data), in the order of the processes, on every process."""
    if jax.process_count() == 1:
        return [value]
    texts = coordination.exchanged("shike_jax/values", json.dumps(value), BARRIER_SECONDS)
    return [json.loads(text) for text in texts]


def is_main() -> bool:
    """True on the one process that writes logs and results."""
    return jax.process_index() == 0
