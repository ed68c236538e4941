"""How batches reach the devices: by index into a split that lives there, or as images decoded on the host.

Both feeds have `data` (what every call gets, replicated), `calls(...)` (inputs for each compiled call) and `fetch`
(traced inside the compiled step: one step's inputs to a batch), so training and evaluation do not know which it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel
from shike_jax.data.host_pipeline import HostPipeline, ahead
from shike_jax.data.sampling import Plan
from shike_jax.data.types import Source

Batch = dict[str, Any]


class DeviceFeed:
    """Small images: a whole part {`image` uint8 [N,H,W,3], `label`} lies on every device; inputs are positions."""

    steps_together = True  # whether a call may hold several steps

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.data = parallel.replicate({"image": images, "label": labels.astype(np.int32)})

    def calls(
        self, plan: Plan, first: int, together: int, seed: int | None, views: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """Yields (steps in the call, inputs [local devices, steps, b, ...]) from step `first` of the plan on.

        At most `together` steps make a call. `seed` and `views` are for `HostFeed`: here the device augments by step.
        """
        steps = len(plan["mask"])
        for start in range(first, steps, together):
            part = {name: values[start : start + together] for name, values in plan.items()}
            shares = parallel.split_batch({name: values.swapaxes(0, 1) for name, values in part.items()})
            yield len(part["mask"]), {name: values.swapaxes(1, 2) for name, values in shares.items()}

    @staticmethod
    def fetch(data: Any, item: Any) -> Batch:
        """The batch at `index` (and its `partner`): whole images, one gather of rows."""
        batch = {**jax.tree.map(lambda rows: rows[item["index"]], data), "mask": item["mask"]}
        if "partner" in item:
            batch["partner"] = jax.tree.map(lambda rows: rows[item["partner"]], data)
        return batch


class HostFeed:
    """Large images: decoded, cropped and flipped on the host; inputs are the batches themselves, one step a call."""

    steps_together = False

    def __init__(self, pipeline: HostPipeline) -> None:
        self.data = parallel.replicate({"none": np.zeros(1, np.float32)})
        self._pipeline = pipeline

    def calls(
        self, plan: Plan, first: int, together: int, seed: int | None, views: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """As `DeviceFeed.calls`, but one step a call, and the batch of the next on its way to the devices.

        `seed` is that of the epoch's training views; None asks for evaluation views. `views` asks for so many more
        views of each image, as `views` of the batch where they differ before the device augments them.
        """
        plan = {**plan, "position": np.broadcast_to(np.arange(plan["mask"].shape[1]), plan["mask"].shape)}
        shares = parallel.split_batch({name: values.swapaxes(0, 1) for name, values in plan.items()})
        local = {name: share.reshape(-1, share.shape[-1]).swapaxes(0, 1) for name, share in shares.items()}
        batches = self._pipeline.batches(local, first, seed, views)
        parted = (parallel.split_batch(batch, per_process=True) for batch in batches)
        sent = (parallel.send(jax.tree.map(lambda x: x[:, None], batch)) for batch in parted)
        yield from ((1, batch) for batch in ahead(sent, 1))

    def fetch(self, data: Any, item: Any) -> Batch:
        return item


Feed = DeviceFeed | HostFeed


def make_feeds(source: Source, config: ConfigDict) -> dict[str, Feed]:
    """One feed per part of the source: from the device for small images, through the host for large ones."""
    if source.images is not None:
        return {name: DeviceFeed(source.images[name], part.labels) for name, part in source.split.parts.items()}
    return {name: HostFeed(HostPipeline(source, name, config)) for name in source.split.parts}
