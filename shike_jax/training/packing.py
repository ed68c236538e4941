"""What an optimiser moves as one vector, while several steps run in one call.

An accelerator updates a network of many small arrays in as many small kernels. As vectors, parameters and momentum are
updated in one. Only optimisers that treat every number alone can be packed: a norm for each array would be lost.
Outside the call, and so in checkpoints, everything keeps its form.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shike_jax.training import trainable
from shike_jax.training.state import TrainState

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Packing:
    """How a stage's moved parameters lie in a vector, one after the other in the order of `jax.tree.leaves`.

    Attributes:
      moved: booleans like params: what the optimiser moves.
      structure: of the moved parameters, None in place of the others.
      shapes: of the moved parameters.
    """

    moved: PyTree
    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: PyTree, moved: PyTree) -> Packing:
        """Builds the packing from parameters (or their shapes) and booleans of the same structure."""
        leaves, structure = jax.tree.flatten(trainable.select(params, moved))
        return cls(moved, structure, tuple(leaf.shape for leaf in leaves))

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The same optimiser with a state of vectors; gradients and parameters come and go as they are."""
        return optax.flatten(optimizer)

    def pack_state(self, state: TrainState) -> TrainState:
        """Parameters and every tree like them in the optimiser's state become vectors."""
        opt_state = jax.tree.map(
            lambda part: self._vector(part) if self._is_like_moved(part) else part,
            state.opt_state,
            is_leaf=self._is_like_moved,
        )
        return self.pack_params(dataclasses.replace(state, opt_state=opt_state))

    def unpack_state(self, state: TrainState) -> TrainState:
        """The inverse of `pack_state`."""
        opt_state = jax.tree.map(lambda leaf: self._tree(leaf) if self._is_vector(leaf) else leaf, state.opt_state)
        return dataclasses.replace(self.unpack_params(state), opt_state=opt_state)

    def pack_params(self, state: TrainState) -> TrainState:
        """Parameters become (vector of the moved ones, the others)."""
        moved, others = (trainable.select(state.params, self.moved, keep) for keep in (True, False))
        return dataclasses.replace(state, params=(self._vector(moved), others))

    def unpack_params(self, state: TrainState) -> TrainState:
        """The inverse of `pack_params`."""
        vector, others = state.params
        return dataclasses.replace(state, params=trainable.merge(self._tree(vector), others))

    def _is_like_moved(self, part: PyTree) -> bool:
        return jax.tree.structure(part) == self.structure

    def _is_vector(self, leaf: Array) -> bool:
        return leaf.shape == (sum(map(math.prod, self.shapes)),)

    def _vector(self, tree: PyTree) -> Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])

    def _tree(self, vector: Array) -> PyTree:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = jnp.split(vector, ends[:-1])
        return self.structure.unflatten([part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)])
