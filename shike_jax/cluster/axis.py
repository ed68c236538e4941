"""The device axis, as a function that may or may not run on several devices sees it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The axis `name`, along which `size` devices next to each other form a group, with sums of its own."""

    name: str
    size: int


Axis = str | Neighbours | None


def axis_size(name: Axis) -> int:
    """Number of devices that run the function being traced, along the axis of that name.

    It is 1 where no such axis is bound, as under plain `jax.jit`: sums over the devices are then the device's own.
    """
    if name is None:
        return 1
    if isinstance(name, Neighbours):
        return min(axis_size(name.name), name.size)
    try:
        return int(lax.axis_size(name))
    except NameError:  # JAX's answer for an axis that is not bound
        return 1


def sum_over(name: Axis, tree: PyTree) -> PyTree:
    """Sums a pytree over the devices along the axis of that name; as it is where there is no such axis."""
    if name is None or axis_size(name) == 1:
        return tree
    if isinstance(name, Neighbours):
        groups = np.arange(axis_size(name.name)).reshape(-1, name.size).tolist()
        return lax.psum(tree, name.name, axis_index_groups=groups)
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) < 2 or jax.process_count() == 1:
        return lax.psum(tree, name)
    # Chosen by the platform that is compiled for, which need not be the one that computes here.
    summed = lax.platform_dependent(leaves, cpu=functools.partial(_by_dtype, name), default=lambda x: lax.psum(x, name))
    return jax.tree.unflatten(structure, summed)


def _by_dtype(name: str, leaves: list[Any]) -> list[Any]:
    """The same sums of arrays, each dtype as one vector.

    Several CPU processes sum every array by itself, one after the other (other backends combine them): a network's
    gradients as one vector wait once instead of hundreds of times. Within a process separate arrays cost no such wait,
    and a vector's parts, each at its own place, would make XLA compile an update of its own for every parameter.
    """
    summed: list[Any] = [None] * len(leaves)
    kinds = [jnp.result_type(leaf) for leaf in leaves]
    for kind in dict.fromkeys(kinds):  # in one order on all processes
        places = [place for place, other in enumerate(kinds) if other == kind]
        sizes = np.cumsum([jnp.size(leaves[place]) for place in places])[:-1]
        vector = lax.psum(jnp.concatenate([jnp.ravel(leaves[place]) for place in places]), name)
        for place, part in zip(places, jnp.split(vector, sizes), strict=True):
            summed[place] = part.reshape(jnp.shape(leaves[place]))
    return summed
