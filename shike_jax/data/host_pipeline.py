"""The pipeline of large images: planned batches, read, decoded and cropped by threads, ahead of the training step.

Some threads read and others decode: a store that answers slowly keeps no core waiting.

Threads and Pillow rather than tf.data: reading and decoding release Python's lock, errors keep their type, and a
machine that trains needs no TensorFlow. `benchmark input` compares the speed of both.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from shike_jax.data.images import center_crop, random_resized_crop
from shike_jax.data.types import Source, allowed_faults
from shike_jax.data.views import host_augment
from shike_jax.errors import UserError

Batch = dict[str, Any]
BLOCKS_OF_A_THREAD = 4
READERS = 32  # threads that read files: they wait for a disk or an object store, and hold no core
CHUNK = 8  # images of one task: keeps the threads' bookkeeping small compared with the decoding


class HostPipeline:
    """Turns plans (which index, with which seed) into batches of one part of a source.

    An image that cannot be read takes the place of padding (mask 0) and is noted in `source.report.unreadable`.
    """

    def __init__(self, source: Source, part: str, config: ConfigDict, threads: int = 0, ahead: int = 4):
        """Prepares the pipeline; nothing is read yet.

        Args:
          config: the whole configuration; `data` and `augment` are used.
          threads: of decoding; 0: `config.data.threads`, else the cores this process may use.
          ahead: batches prepared before they are asked for.

        Raises:
          UserError: the source has no image files.
        """
        if source.read is None:
            raise UserError(f"{source.split.name}: there are no image files to read (is config.data.root empty?)")
        self._read, self._part, self._report = source.read, part, source.report
        self._members, self._labels = source.split.parts[part].members, source.split.parts[part].labels
        self._class_names = source.split.class_names
        self._size = config.data.image_size
        self._resize = short_side(config.data)
        self._random_crop = config.augment.crop == "random_resized"
        self._scale, self._flip = tuple(config.augment.scale), config.augment.flip
        self._augment = host_augment(config)
        self._stop, self._limit = config.data.bad_image == "stop", config.data.bad_image_limit
        self._bad: set[int] = set()
        self._threads = threads or config.data.threads or _usable_cores()
        # Pillow keeps the memory of closed images for the next ones (its PILLOW_BLOCKS_MAX), so that the system need
        # not hand it out and clear it for every image: decoding, crop and result of each thread.
        Image.core.set_blocks_max(max(Image.core.get_blocks_max(), BLOCKS_OF_A_THREAD * self._threads))
        self._ahead = ahead

    def batches(self, plan: Mapping[str, np.ndarray]) -> Iterator[Batch]:
        """Yields the batches of a plan, in order.

        Args:
          plan: `index` int32 [steps, B] into the part and `mask` float32 [steps, B]; with `seed` uint32 [steps, B, 2]
            the training view, a function of that seed alone, else the evaluation view. `partner` and `partner_seed`
            are the same of a second image each (sampling of pairs). `view_seed1`, `view_seed2` ... ask for further
            training views of the first.

        Yields:
          `image` uint8 [B, S, S, 3], `label` int32 [B], `mask` float32 [B] (0: padding or unreadable), with a partner
          `partner` {`image`, `label`}, and with further views `views`, a tuple of images.

        Raises:
          UserError: an unreadable image under policy `stop`, more of them than the limit allows, or a class of the part
            `train` none of whose images can be read.
        """
        pending: collections.deque[tuple[Batch, list[Future[None]]]] = collections.deque()
        pools = ThreadPoolExecutor(READERS, "files"), ThreadPoolExecutor(self._threads, "images")
        try:
            for step in range(len(plan["index"])):
                pending.append(self._submit(*pools, {name: values[step] for name, values in plan.items()}))
                if len(pending) > self._ahead:
                    yield _completed(*pending.popleft())
            while pending:
                yield _completed(*pending.popleft())
        finally:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)

    def _submit(
        self, readers: ThreadPoolExecutor, pool: ThreadPoolExecutor, row: Mapping[str, np.ndarray]
    ) -> tuple[Batch, list[Future[None]]]:
        """Starts one batch; its arrays are complete when its tasks are."""
        size = len(row["index"])
        batch: Batch = {"mask": row["mask"].astype(np.float32)}
        tasks = []
        views = [(batch, row["index"], row.get("seed"))]
        if "partner" in row:
            batch["partner"] = {}
            views.append((batch["partner"], row["partner"], row.get("partner_seed")))
        further: list[Batch] = []
        while f"view_seed{len(further) + 1}" in row:
            further.append({})
            views.append((further[-1], row["index"], row[f"view_seed{len(further)}"]))
        for view, index, seeds in views:
            view["label"] = self._labels[index].astype(np.int32)
            images = view["image"] = np.zeros((size, self._size, self._size, 3), np.uint8)
            for start in range(0, size, CHUNK):
                chunk = range(start, min(start + CHUNK, size))
                encoded = readers.submit(self._encoded, batch["mask"], index, chunk)
                tasks.append(pool.submit(self._fill, images, batch["mask"], index, seeds, chunk, encoded))
        if further:
            batch["views"] = tuple(view["image"] for view in further)
        return batch, tasks

    def _encoded(self, mask: np.ndarray, index: np.ndarray, chunk: range) -> list[bytes | Exception]:
        """The bytes of a chunk's images, or what reading one of them raised; empty for padding."""

        def one(i: int) -> bytes | Exception:
            try:
                return self._read(self._part, [int(index[i])])[0] if mask[i] else b""
            except Exception as error:
                return error

        return [one(i) for i in chunk]

    def _fill(
        self,
        images: np.ndarray,
        mask: np.ndarray,
        index: np.ndarray,
        seeds: np.ndarray | None,
        chunk: range,
        read: Future[list[bytes | Exception]],
    ) -> None:
        for i, encoded in zip(chunk, read.result(), strict=True):
            if mask[i]:
                seed = None if seeds is None else seeds[i]
                try:
                    view = self._view(encoded, seed)
                except Exception as error:  # whatever reading one image raises is its own reason
                    mask[i] = 0
                    self._note_bad(int(index[i]), error)
                else:
                    images[i] = self._augment(view, seed) if self._augment and seed is not None else view

    def _view(self, encoded: bytes | Exception, seed: np.ndarray | None) -> np.ndarray:
        if isinstance(encoded, Exception):
            raise encoded
        if seed is None:
            return center_crop(encoded, self._size, self._resize)
        if self._random_crop:
            return random_resized_crop(encoded, self._size, seed, self._scale, self._flip)
        return center_crop(encoded, self._size, self._size)

    def _note_bad(self, index: int, error: Exception) -> None:
        name = str(self._members[index])
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        new = index not in self._bad
        self._bad.add(index)
        if self._stop:
            raise UserError(f"image {name}: {reason} (to go on without such images: --config.data.bad_image=skip)")
        self._report.note_unreadable(self._part, name, reason)
        if len(self._bad) > allowed_faults(self._limit, len(self._labels)):
            raise UserError(
                f"{len(self._bad)} of {len(self._labels)} images of part {self._part} cannot be read, more than "
                f"config.data.bad_image_limit={self._limit:g} allows; the last: {name}: {reason}"
            )
        if self._part == "train" and new:
            self._check_class(int(self._labels[index]), name, reason)

    def _check_class(self, label: int, name: str, reason: str) -> None:
        """Raises UserError when no training image of a class is left: it must not count as one that was trained."""
        images = int((self._labels == label).sum())
        if images == sum(self._labels[i] == label for i in self._bad.copy()):
            raise UserError(
                f"class {self._class_names[label]}: none of its {images} training images can be read, the last: "
                f"{name}: {reason}; expected at least one, or data without this class"
            )


def short_side(data: ConfigDict) -> int:
    """Pixels to which the evaluation view brings an image's short side before the central crop."""
    return data.resize or data.image_size * 8 // 7


def make_pipeline(source: Source, config: ConfigDict, part: str) -> Callable[..., Iterator[Batch]]:
    """Returns `batches(plan, first, seed, views=0)` over one part, from step `first` of an epoch's plan on.

    The plan holds this process's columns of `index`, `mask` and `position` (in the global batch), each [steps, b]. With
    a seed the training views are a function of (seed, step, position); without one come evaluation views. `views` more
    of each image come as `views`, a tuple of images.
    """
    pipeline = HostPipeline(source, part, config)

    def batches(plan: Mapping[str, np.ndarray], first: int, seed: int | None, views: int = 0) -> Iterator[Batch]:
        if seed is not None:
            seeds = {"seed": plan["position"], "partner_seed": ~plan["position"]}
            # Positions are far below: a batch has at most 2**20 images.
            seeds |= {f"view_seed{number}": plan["position"] + (number << 24) for number in range(1, views + 1)}
            plan = {**plan, **{name: view_seeds(seed, position) for name, position in seeds.items()}}
        return pipeline.batches({name: values[first:] for name, values in plan.items()})

    return batches


def view_seeds(seed: int, position: np.ndarray) -> np.ndarray:
    """Returns a seed for each example's view, uint32 [steps, b, 2]: from (seed, step), and `position` [steps, b]."""
    steps = [np.random.SeedSequence([seed, step]).generate_state(1)[0] for step in range(len(position))]
    by_step = np.broadcast_to(np.array(steps, np.uint32)[:, None], position.shape)
    return np.stack([by_step, position.astype(np.uint32)], axis=-1)


def _completed(batch: Batch, tasks: list[Future[None]]) -> Batch:
    for task in tasks:
        task.result()
    return batch


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
