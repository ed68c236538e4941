"""Parameters and running variables of losses that are modules: where they lie in a state, and how they begin.

They lie next to the network's: parameters in `params/losses/NAME`, all others in `batch_stats/losses/NAME/COLLECTION`.
All modules of a run begin with it, so that a later stage finds what an earlier one has learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from shike_jax.errors import UserError
from shike_jax.methods.loss_calls import first_variables, zeros_like_a_batch
from shike_jax.methods.loss_registry import active_losses, number_of

PyTree = Any
ROOM = "losses"
_KINDS = ("params", "batch_stats")


def of_network(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The network's own variables {`params`, `batch_stats`}: what is served."""
    return {kind: {k: v for k, v in tree.items() if k != ROOM} for kind, tree in variables.items()}


def of_loss(name: str, params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    """The variables {collection: tree} of one loss."""
    own, carried = params.get(ROOM, {}).get(name), batch_stats.get(ROOM, {}).get(name, {})
    return carried if own is None else {"params": own, **carried}


def with_losses(
    variables: Mapping[str, PyTree],
    stages: Iterable[Mapping[str, Any]],
    sizes: tuple[int, int | None],
    class_counts: np.ndarray,
    seed: int,
) -> dict[str, PyTree]:
    """A network's first variables with those of the losses that are modules.

    `stages` are fields of `config.stages.NAME`, of which the first with a loss gives its parameters and the batch size;
    `sizes` are M and F, as for `zeros_like_a_batch`. `UserError` for a module that fails.
    """
    found: dict[str, dict[str, PyTree]] = {}
    for stage in stages:
        for entry, _, parameters in active_losses(stage["loss"]):
            if entry.options["module"] and entry.name not in found:
                inputs = zeros_like_a_batch(*sizes, class_counts, stage["batch_size"], entry.options["views"])
                key = jax.random.fold_in(jax.random.key(seed), number_of(entry.name))
                found[entry.name] = first_variables(entry, parameters, inputs, key)
    if found and ROOM in variables.get("params", {}):
        raise UserError(f"the network has parameters {ROOM!r}: expected another name, as those of losses lie there")
    together = {kind: dict(variables.get(kind, {})) for kind in _KINDS}
    for name, own in found.items():
        carried = {kind: tree for kind, tree in own.items() if kind != "params"}
        for kind, tree in zip(_KINDS, (own.get("params"), carried), strict=True):
            if tree:
                together[kind].setdefault(ROOM, {})[name] = tree
    return together
