"""Numbers that are not finite end a stage, with one line that says where they were found and what may be the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shike_jax.cluster import parallel
from shike_jax.errors import UserError

PyTree = Any
RATE = "try a lower learning rate"
NO_RATE = "no weight had been updated before, so look at the images, data.mean, data.std and the losses"
_KINDS = {"params": "parameters", "batch_stats": "running statistics"}


def refusal(
    what: str, where: str, step: int, last_good: str | None, advice: str, values: Mapping[str, float] | None = None
) -> UserError:
    """The error that ends a stage.

    Args:
      what: is not finite.
      where: stage and epoch.
      step: of the stage, by which it was found.
      last_good: path of the newest checkpoint; None without one.
      advice: `RATE`; `NO_RATE` for what was computed before any weight was updated.
      values: to show by name.
    """
    shown = f" ({', '.join(f'{name} {value:.4g}' for name, value in values.items())})" if values else ""
    good = f"last good checkpoint: {last_good or 'none'}"
    return UserError(f"{what} not finite in {where}, by step {step}{shown}; {good}; {advice}")


def check_variables(variables: PyTree, where: str, step: int, last_good: Callable[[], str | None]) -> None:
    """Refuses parameters and running statistics that are not finite; all processes hold the same and call this.

    Args:
      variables: {`params`, `batch_stats`}, on the host or replicated.
      where, step, last_good: as in `refusal`, but `last_good` is asked only when it is needed.

    Raises:
      UserError: names the first array of each kind that is not finite.
    """
    found = []
    for kind, title in _KINDS.items():
        flat = flatten_dict(variables.get(kind, {}), sep="/")
        bad = [path for path, leaf in flat.items() if not np.isfinite(parallel.to_host(leaf)).all()]
        if bad:
            found.append(f"{title} ({bad[0]}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''})")
    if found:
        # Statistics alone come from the forward pass of a step: the first one saw weights that nothing had updated.
        by_itself = NO_RATE if step == 1 else f"look at the images, data.mean and data.std, or {RATE}"
        advice = RATE if _KINDS["params"] in found[0] else by_itself
        raise refusal(f"{' and '.join(found)} are", where, step, last_good(), advice)


def check_logits(not_finite: int, images: int, where: str, step: int, last_good: Callable[[], str | None]) -> None:
    """Refuses an evaluation in which the logits of some images are not finite, although the weights are.

    Raises:
      UserError: says of how many images.
    """
    if not_finite:
        raise refusal(f"the logits of {not_finite} of {images} images are", where, step, last_good(), RATE)
