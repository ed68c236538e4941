"""The pipeline of large images: planned batches, read, decoded and cropped by threads, ahead of the training step.

Some threads read and others decode: a store that answers slowly keeps no core waiting.

Threads and Pillow rather than tf.data: reading and decoding release Python's lock, errors keep their type, and a
machine that trains needs no TensorFlow. `benchmark input` compares the speed of both.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from shike_jax.cluster.cpu import usable_cores
from shike_jax.data.images import center_crop, random_resized_crop
from shike_jax.data.types import Source, allowed_faults
from shike_jax.data.views import host_augment
from shike_jax.errors import UserError, reason

Batch = dict[str, Any]
Item = TypeVar("Item")
AHEAD = 4  # batches prepared before they are asked for
BLOCKS_OF_A_THREAD = 4
READERS = 32  # threads that read files: they wait for a disk or an object store, and hold no core
CHUNK = 8  # images of one task: keeps the threads' bookkeeping small compared with the decoding


class HostPipeline:
    """Turns plans (which index, with which seed) into batches of one part of a source.

    An image that cannot be read takes the place of padding (mask 0) and is noted in `source.report.unreadable`.
    """

    def __init__(self, source: Source, part: str, config: ConfigDict, threads: int = 0):
        """Reads nothing yet, but raises `UserError` for a source without image files.

        `threads` decode; 0: `config.data.threads`, else one for each core that this process may use.
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
        self._threads = threads or config.data.threads or usable_cores()
        # Pillow keeps the memory of closed images for the next ones (its PILLOW_BLOCKS_MAX), so that the system need
        # not hand it out and clear it for every image: decoding, crop and result of each thread.
        Image.core.set_blocks_max(max(Image.core.get_blocks_max(), BLOCKS_OF_A_THREAD * self._threads))

    def batches(
        self, plan: Mapping[str, np.ndarray], first: int = 0, seed: int | None = None, views: int = 0
    ) -> Iterator[Batch]:
        """Yields the batches of an epoch's plan, from step `first` on.

        The plan has this process's columns of `index` int32 into the part, `mask` float32, perhaps `partner` (sampling
        of pairs), and their `position` in the global batch (without it they are the whole batch), each [steps, b]. A
        `seed` asks for training views, which are functions of (seed, step, position), and None for evaluation views;
        `views` for so many further training views of each image.

        A batch has `image` uint8 [b, S, S, 3], `label` int32 [b], `mask` float32 [b] (0: padding or unreadable), with a
        partner `partner` {`image`, `label`}, and with further views `views`, a tuple of images. UserError for an
        unreadable image under policy `stop`, more of them than the limit allows, or a class of the part `train` none of
        whose images can be read.
        """
        position = plan.get("position", np.broadcast_to(np.arange(plan["index"].shape[1]), plan["index"].shape))
        asked = [(plan["index"], position)]
        if "partner" in plan:
            asked.append((plan["partner"], ~position))
        # Positions are far below: a batch has at most 2**20 images.
        asked += [(plan["index"], position + (number << 24)) for number in range(1, views + 1)]
        views_of = [
            (index, [None] * len(index) if seed is None else view_seeds(seed, places)) for index, places in asked
        ]
        pools = ThreadPoolExecutor(READERS, "files"), ThreadPoolExecutor(self._threads, "images")
        begun = (
            self._begin(*pools, plan["mask"][step], [(index[step], seeds[step]) for index, seeds in views_of])
            for step in range(first, len(plan["index"]))
        )
        try:
            for (batch, *rest), tasks in ahead(begun, AHEAD):
                for task in tasks:
                    task.result()
                if "partner" in plan:
                    batch["partner"] = rest[0]
                if views:
                    batch["views"] = tuple(view["image"] for view in rest[-views:])
                yield batch
        finally:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self,
        readers: ThreadPoolExecutor,
        pool: ThreadPoolExecutor,
        mask: np.ndarray,
        views: list[tuple[np.ndarray, np.ndarray | None]],
    ) -> tuple[list[Batch], list[Future[None]]]:
        """Begins the views (positions and seeds) of one batch; their arrays are complete when the tasks are."""
        mask, found, tasks = mask.astype(np.float32), [], []
        for index, seeds in views:
            images = np.zeros((len(index), self._size, self._size, 3), np.uint8)
            found.append({"image": images, "label": self._labels[index].astype(np.int32)})
            for start in range(0, len(index), CHUNK):
                chunk = range(start, min(start + CHUNK, len(index)))
                encoded = readers.submit(self._encoded, mask, index, chunk)
                tasks.append(pool.submit(self._fill, images, mask, index, seeds, chunk, encoded))
        found[0]["mask"] = mask
        return found, tasks

    def _encoded(self, mask: np.ndarray, index: np.ndarray, chunk: range) -> list[bytes | Exception]:
        """The bytes of a chunk's images, or what reading one of them raised; empty for padding."""
        found: list[bytes | Exception] = []
        for i in chunk:
            try:
                found.append(self._read(self._part, [int(index[i])])[0] if mask[i] else b"")
            except Exception as error:
                found.append(error)
        return found

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
        why = reason(error)
        new = index not in self._bad
        self._bad.add(index)
        if self._stop:
            raise UserError(f"image {name}: {why} (to go on without such images: --config.data.bad_image=skip)")
        self._report.note_unreadable(self._part, name, why)
        if len(self._bad) > allowed_faults(self._limit, len(self._labels)):
            raise UserError(
                f"{len(self._bad)} of {len(self._labels)} images of part {self._part} cannot be read, more than "
                f"config.data.bad_image_limit={self._limit:g} allows; the last: {name}: {why}"
            )
        label = self._labels[index]
        if self._part != "train" or not new or not set(np.flatnonzero(self._labels == label)) <= self._bad:
            return
        # A class without an image must not count as one that was trained.
        raise UserError(
            f"class {self._class_names[label]}: none of its {np.sum(self._labels == label)} training images can be "
            f"read, the last: {name}: {why}; expected at least one, or data without this class"
        )


def short_side(data: ConfigDict) -> int:
    """Pixels to which the evaluation view brings an image's short side before the central crop."""
    return data.resize or data.image_size * 8 // 7


def view_seeds(seed: int, position: np.ndarray) -> np.ndarray:
    """Returns a seed for each example's view, uint32 [steps, b, 2]: from (seed, step), and `position` [steps, b]."""
    steps = [np.random.SeedSequence([seed, step]).generate_state(1)[0] for step in range(len(position))]
    by_step = np.broadcast_to(np.array(steps, np.uint32)[:, None], position.shape)
    return np.stack([by_step, position.astype(np.uint32)], axis=-1)


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items, each of them handed on when so many after it have been begun."""
    begun: collections.deque[Item] = collections.deque()
    for item in items:
        begun.append(item)
        if len(begun) > count:
            yield begun.popleft()
    while begun:
        yield begun.popleft()
