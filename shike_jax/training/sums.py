"""Sums over the steps of an epoch, fetched from the devices as seldom as possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shike_jax.cluster import parallel
from shike_jax.common.errors import UserError

PyTree = Any


class EpochSums:
    """Adds the sums of many steps without waiting for the devices, and refuses results that are not finite."""

    def __init__(self, where: str, last_good: Callable[[], str | None]) -> None:
        """Args: where: stage and epoch, for messages. last_good: names the newest checkpoint."""
        self._where, self._last_good = where, last_good
        self._pending: list[PyTree] = []
        self._total: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def add(self, sums: PyTree) -> None:
        """Keeps device arrays; nothing is fetched."""
        self._pending.append(sums)

    def fetch(self, step: int) -> dict[str, float]:
        """Fetches what is pending and returns the totals so far.

        Raises:
          UserError: the loss is not finite.
        """
        self._collect(len(self._pending))
        if not np.isfinite(self._total.get("loss", 0.0)):
            terms = ", ".join(f"{k} {v / self._total['count']:.4g}" for k, v in self._total.items() if k != "count")
            raise UserError(
                f"the loss is not finite in {self._where}, by step {step} ({terms}); last good checkpoint: "
                f"{self._last_good() or 'none'}; try a lower learning rate"
            )
        return self._total

    def finished_loss(self) -> float:
        """Mean loss of all steps but those of the newest call, which may still be running; NaN before there are any."""
        self._collect(len(self._pending) - 1)
        return self._total.get("loss", np.nan) / max(self._total.get("count", 0.0), 1.0)

    def _collect(self, calls: int) -> None:
        for sums in self._pending[:calls]:
            for name, value in parallel.to_host(sums).items():
                self._total[name] = self._total.get(name, 0.0) + float(value)
        self._pending = self._pending[calls:]

    def recent(self, step: int) -> dict[str, float]:
        """Means since the last call."""
        total = dict(self.fetch(step))
        part = {name: value - self._reported.get(name, 0.0) for name, value in total.items()}
        self._reported = total
        return _means(part)

    def means(self, step: int) -> dict[str, float]:
        """Means over everything."""
        return _means(self.fetch(step))


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Means per example; `correct` becomes `train_top1` in percent."""
    count = max(sums.get("count", 0.0), 1.0)
    means = {name: value / count for name, value in sums.items() if name not in ("count", "correct")}
    return {**means, "train_top1": 100 * sums.get("correct", 0.0) / count}
