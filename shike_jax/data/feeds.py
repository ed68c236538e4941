"""How batches reach the devices: by index into a split that lives there, or as images decoded on the host.

Both feeds have `data` (what every call gets, replicated), `calls(...)` (inputs for each compiled call) and `fetch`
(traced inside the compiled step: one step's inputs to a batch), so training and evaluation do not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel
from shike_jax.data.host_pipeline import make_pipeline
from shike_jax.data.sampling import Plan
from shike_jax.data.types import Source

Batch = dict[str, Any]


class Feed(Protocol):
    """Batches of one part of a split."""

    data: Any
    steps_together: bool  # whether a call may hold several steps

    def calls(
        self, plan: Plan, first: int, together: int, seed: int | None, views: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """Yields (steps in the call, inputs [local devices, steps, b, ...]) from step `first` of the plan on.

        `seed` is that of the epoch's training views; None asks for evaluation views. `views` asks for so many more
        views of each image, as `views` of the batch where they differ before the device augments them.
        """

    def fetch(self, data: Any, item: Any) -> Batch:
        """Turns one step's inputs on one device into a batch."""


class DeviceFeed:
    """Small images: the whole uint8 part lies on every device; inputs are positions in it.

    Attributes:
      data: {`image` uint8 [N,H,W,3], `label` int32 [N]}, replicated.
    """

    steps_together = True

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Sends images uint8 [N,H,W,3] and labels int32 [N] to all devices."""
        self.data = parallel.replicate({"image": images, "label": labels.astype(np.int32)})

    def calls(
        self, plan: Plan, first: int, together: int, seed: int | None, views: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """See `Feed`; `seed` and `views` are not needed, the device augments by step."""
        steps = len(plan["mask"])
        for start in range(first, steps, together):
            part = {name: values[start : start + together] for name, values in plan.items()}
            shares = parallel.split_batch({name: values.swapaxes(0, 1) for name, values in part.items()})
            yield len(part["mask"]), {name: values.swapaxes(1, 2) for name, values in shares.items()}

    def fetch(self, data: Any, item: Any) -> Batch:
        """Gathers images and labels."""
        return fetch_rows(data, item)


def fetch_rows(data: Any, item: Any) -> Batch:
    """The batch at `index` (and its `partner`) of a part that lies on the device: whole images, one gather of rows."""

    def rows(index: Any) -> Batch:
        return {"image": data["image"][index], "label": data["label"][index]}

    batch = {**rows(item["index"]), "mask": item["mask"]}
    return {**batch, "partner": rows(item["partner"])} if "partner" in item else batch


class HostFeed:
    """Large images: decoded, cropped and flipped on the host; inputs are the batches themselves, one step a call."""

    steps_together = False

    def __init__(self, make_pipeline: Callable[[Plan, int, int | None, int], Iterator[Batch]]) -> None:
        """Args: make_pipeline: (a process's share of the plan, first step, seed, views) to batches."""
        self.data = parallel.replicate({"none": np.zeros(1, np.float32)})
        self._make_pipeline = make_pipeline

    def calls(
        self, plan: Plan, first: int, together: int, seed: int | None, views: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """See `Feed`; one step a call, and the batch of the next on its way to the devices."""
        plan = {**plan, "position": np.broadcast_to(np.arange(plan["mask"].shape[1]), plan["mask"].shape)}
        local = {name: np.stack([_share(row) for row in values]) for name, values in plan.items()}
        sent: Any = None
        for batch in self._make_pipeline(local, first, seed, views):
            shares = parallel.split_batch(batch, per_process=True)
            before, sent = sent, parallel.send(jax.tree.map(lambda x: x[:, None], shares))
            if before is not None:
                yield 1, before
        if sent is not None:
            yield 1, sent

    def fetch(self, data: Any, item: Any) -> Batch:
        """The inputs are the batch."""
        return item


def _share(row: np.ndarray) -> np.ndarray:
    """This process's columns of one step of a plan: those its devices would get."""
    return parallel.split_batch({"x": row})["x"].reshape(-1, *row.shape[1:])


def make_feeds(source: Source, config: ConfigDict) -> dict[str, Feed]:
    """One feed per part of the source: from the device for small images, through the host for large ones."""
    if source.images is not None:
        return {name: DeviceFeed(source.images[name], part.labels) for name, part in source.split.parts.items()}
    return {name: HostFeed(make_pipeline(source, config, name)) for name in source.split.parts}
