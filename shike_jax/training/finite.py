"""Sums over the steps of an epoch, fetched as seldom as possible, and the end of a stage whose numbers are not finite.

One line says where they were found and what may be the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shike_jax.cluster import parallel
from shike_jax.errors import UserError

PyTree = Any
_COUNTS = ("count", "correct")
_RATE = "try a lower learning rate"
_NO_RATE = "no weight had been updated before, so look at the images, data.mean, data.std and the losses"
_KINDS = {"params": "parameters", "batch_stats": "running statistics"}


class EpochSums:
    """Adds the sums of many steps without waiting for the devices, and refuses results that are not finite."""

    def __init__(self, where: str, last_good: Callable[[], str | None]) -> None:
        """Args: where: stage and epoch, for messages. last_good: names the newest checkpoint."""
        self._where, self._last_good = where, last_good
        self._pending: list[tuple[int, PyTree]] = []
        self._broken: tuple[int, dict[str, float]] | None = None  # the first call whose loss is not finite
        self._total: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def add(self, sums: PyTree, step: int) -> None:
        """Keeps the device arrays of a call that ended at `step` of the stage; nothing is fetched."""
        self._pending.append((step, sums))

    def fetch(self) -> dict[str, float]:
        """Fetches what is pending and returns the totals so far; `UserError` for a loss that is not finite."""
        self._collect(len(self._pending))
        if self._broken is not None:
            step, means = self._broken
            advice = _RATE if step > 1 else _NO_RATE
            raise _refusal(f"{_name(means)} is", self._where, step, self._last_good(), advice, means)
        return self._total

    def finished_loss(self) -> float:
        """Mean loss of all steps but those of the newest call, which may still be running; NaN before there are any."""
        self._collect(len(self._pending) - 1)
        return self._total.get("loss", np.nan) / max(self._total.get("count", 0.0), 1.0)

    def _collect(self, calls: int) -> None:
        for step, sums in self._pending[:calls]:
            values = {name: float(value) for name, value in parallel.to_host(sums).items()}
            if self._broken is None and not np.isfinite(values["loss"]):
                self._broken = step, {k: v / values["count"] for k, v in values.items() if k not in _COUNTS}
            for name, value in values.items():
                self._total[name] = self._total.get(name, 0.0) + value
        self._pending = self._pending[calls:]

    def recent(self) -> dict[str, float]:
        """Means since the last call."""
        total = dict(self.fetch())
        part = {name: value - self._reported.get(name, 0.0) for name, value in total.items()}
        self._reported = total
        return _means(part)

    def means(self) -> dict[str, float]:
        """Means over everything."""
        return _means(self.fetch())


def _name(means: dict[str, float]) -> str:
    """What to call a loss that is not finite: its terms that are not while others are, else the loss as a whole."""
    bad = [name for name, value in means.items() if not np.isfinite(value) and name != "loss"]
    return "the loss" if len(bad) in (0, len(means) - 1) else f"the loss {' and '.join(bad)}"


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Means per example; `correct` becomes `train_top1` in percent."""
    count = max(sums.get("count", 0.0), 1.0)
    means = {name: value / count for name, value in sums.items() if name not in _COUNTS}
    return {**means, "train_top1": 100 * sums.get("correct", 0.0) / count}


def _refusal(
    what: str, where: str, step: int, last_good: str | None, advice: str, values: Mapping[str, float] | None = None
) -> UserError:
    """The error that ends a stage: `what` is not finite, found in `where` (stage and epoch) by `step` of the stage."""
    shown = f" ({', '.join(f'{name} {value:.4g}' for name, value in values.items())})" if values else ""
    good = f"last good checkpoint: {last_good or 'none'}"
    return UserError(f"{what} not finite in {where}, by step {step}{shown}; {good}; {advice}")


def check_variables(variables: PyTree, where: str, step: int, last_good: Callable[[], str | None]) -> None:
    """Raises `UserError` for variables {`params`, `batch_stats`} that are not finite: the first array of each kind.

    All processes hold the same, on the host or replicated, and call this; `last_good` names the newest checkpoint.
    """
    found = []
    for kind, title in _KINDS.items():
        flat = flatten_dict(variables.get(kind, {}), sep="/")
        bad = [path for path, leaf in flat.items() if not np.isfinite(parallel.to_host(leaf)).all()]
        if bad:
            found.append(f"{title} ({bad[0]}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''})")
    if found:
        # Statistics alone come from the forward pass of a step: the first one saw weights that nothing had updated.
        by_itself = _NO_RATE if step == 1 else f"look at the images, data.mean and data.std, or {_RATE}"
        advice = _RATE if _KINDS["params"] in found[0] else by_itself
        raise _refusal(f"{' and '.join(found)} are", where, step, last_good(), advice)


def check_logits(not_finite: int, images: int, where: str, step: int, last_good: Callable[[], str | None]) -> None:
    """Raises `UserError` for an evaluation with logits that are not finite, although the weights are."""
    if not_finite:
        raise _refusal(f"the logits of {not_finite} of {images} images are", where, step, last_good(), _RATE)
