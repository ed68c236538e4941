"""A data set as a library's user sees it: parts with images, labels and batches, and the counts of its classes."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax.augment import make_eval_transform
from shike_jax.config import validate
from shike_jax.config.loading import load_config
from shike_jax.data import sampling, sources
from shike_jax.data.host_pipeline import HostPipeline
from shike_jax.data.types import Source
from shike_jax.data.views import device_augment
from shike_jax.errors import UserError


class DatasetPart:
    """One part of a data set: `len`, `images`, `labels` and `batches`."""

    def __init__(self, source: Source, config: ConfigDict, name: str, class_counts: np.ndarray) -> None:
        self._source, self._config = source, config
        self.name, self.labels = name, source.split.parts[name].labels
        self.class_names, self.divisions = source.split.class_names, source.split.divisions
        self.class_counts = class_counts
        self._transforms: dict[bool, Any] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<part {self.name!r}: {len(self):,} images of {len(self.class_names)} classes>"

    @property
    def images(self) -> np.ndarray | LazyImages:
        """The images as the network sees them without augmentation, uint8 [N,S,S,3]; those of files are decoded when
        they are taken out (`part.images[3]`, `part.images[:8]`).
        """
        if self._source.images is not None:
            return self._source.images[self.name]
        return LazyImages(self)

    def batches(
        self, batch_size: int, *, seed: int | None = None, augment: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields normalised images float32 [B,S,S,3] and labels int32 [B], each image of the part once.

        Args:
          batch_size: B; the last batch may be smaller.
          seed: shuffles, and gives the augmentation its random numbers: another seed for each epoch. None: in order.
          augment: as the configuration augments its training images (crop, flip, policy; mixing is a stage's); needs a
            seed.

        Raises:
          UserError: `augment` without a seed, a batch size below 1, images that cannot be read.

        >>> images, labels = next(load_data("digits_lt").train.batches(32, seed=0))
        >>> images.shape, images.dtype, labels.shape, labels.dtype
        ((32, 16, 16, 3), dtype('float32'), (32,), dtype('int32'))
        """
        if augment and seed is None:
            raise UserError("batches(augment=True): expected a seed, such as the number of the epoch")
        _check_whole("batch_size", batch_size, 1, 2**31 - 1)
        if seed is not None:
            _check_whole("seed", seed, 0, 2**32 - 1)
        size = min(batch_size, len(self))
        if seed is None:
            plan = sampling.in_order(len(self), size)
        else:
            plan = sampling.epoch_plan("shuffle", jax.random.key(seed), 0, self.labels, size, keep_last=True)
        return self._batches(plan, seed, augment)

    def _batches(self, plan: sampling.Plan, seed: int | None, augment: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        key = jax.random.key(seed or 0)
        for step, (pixels, labels) in enumerate(self._pixels(plan, seed if augment else None)):
            if len(labels):
                keys = jax.random.split(jax.random.fold_in(key, step), len(labels))
                yield np.asarray(self._transform(augment)(pixels, keys)), labels

    def _pixels(self, plan: sampling.Plan, view_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """uint8 images and labels of each step of a plan, without padding and what cannot be read."""
        if self._source.images is not None:
            for index, mask in zip(plan["index"], plan["mask"], strict=True):
                chosen = index[mask > 0]
                yield self._source.images[self.name][chosen], self.labels[chosen]
            return
        for batch in HostPipeline(self._source, self.name, self._config).batches(plan, 0, view_seed):
            real = batch["mask"] > 0
            yield batch["image"][real], batch["label"][real]

    def _transform(self, augment: bool) -> Any:
        if augment not in self._transforms:
            data = self._config.data
            plain = make_eval_transform(mean=data.mean, std=data.std, dtype=jnp.float32)
            augmented = device_augment(self._config, jnp.float32) if augment else lambda images, keys: plain(images)
            self._transforms[augment] = jax.jit(augmented)
        return self._transforms[augment]


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise UserError(f"batches: {name}={value!r}, expected a whole number from {low} to {high}")


class LazyImages(Sequence[np.ndarray]):
    """The images of files in their evaluation view, uint8 [S,S,3], decoded when they are taken out."""

    dtype = np.dtype(np.uint8)

    def __init__(self, part: DatasetPart) -> None:
        self._part = part
        side = part._config.data.image_size
        self.shape = (len(part), side, side, 3)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: Any) -> Any:
        """One image for an integer; an array [n,S,S,3] for a slice or a list. UserError for a bad image."""
        if not isinstance(index, slice) and np.ndim(index) == 0:
            return self[[range(len(self))[operator.index(index)]]][0]
        chosen = np.arange(len(self))[index].astype(np.int32)
        plan = {"index": chosen[None], "mask": np.ones((1, len(chosen)), np.float32)}
        found = [pixels for pixels, _ in self._part._pixels(plan, None)] if len(chosen) else []
        images = np.concatenate(found) if found else np.zeros((0, *self.shape[1:]), self.dtype)
        if len(images) < len(chosen):
            raise UserError(self._part._source.report.closing_line() or "an image cannot be read")
        return images


@dataclasses.dataclass(frozen=True, repr=False)
class Dataset:
    """What `load_data` returns.

    Attributes:
      train, test, val: the parts; None where the data have none of that name.
      num_classes: C.
      class_counts: training images of each class, int64 [C].
      class_names: C names.
      divisions: class indices of `many`, `medium` and `few`.
      split_hash: equal exactly when the split is the same.
    """

    name: str
    train: DatasetPart
    test: DatasetPart | None
    val: DatasetPart | None
    num_classes: int
    class_counts: np.ndarray
    class_names: tuple[str, ...]
    divisions: dict[str, np.ndarray]
    split_hash: str

    def __repr__(self) -> str:
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        sizes = ", ".join(f"{part.name} {len(part):,}" for part in parts)
        counts = f"{self.class_counts.max():,} to {self.class_counts.min():,} training images"
        return f"<{self.name}: {sizes}; {self.num_classes} classes of {counts}>"


def load_data(config: ConfigDict | str | os.PathLike[str], **arguments: Any) -> Dataset:
    """The data that a configuration names.

    Args:
      config: a configuration (`data` and `augment` are used), or a name as for `load_config`.
      arguments: of `load_config`, with a name.

    Raises:
      UserError: no such configuration, missing folders, broken lists, an impossible imbalance factor.

    >>> load_data("digits_lt", imbalance_factor=20)
    <digits_lt_if20: train 489, test 300; 10 classes of 144 to 7 training images>
    >>> data = load_data("digits_lt")
    >>> data.class_counts.tolist()
    [144, 103, 74, 53, 38, 27, 19, 14, 10, 7]
    >>> data.test.images.shape, data.test.images.dtype
    ((300, 16, 16, 3), dtype('uint8'))
    """
    if not isinstance(config, ConfigDict):
        config = load_config(config, **arguments)
    elif arguments:
        raise UserError(f"load_data: {', '.join(arguments)} given with a configuration; expected the name of one")
    validate(config, stages=False)
    source = sources.load(config.data)
    split = source.split
    parts = {name: DatasetPart(source, config, name, split.class_counts) for name in split.parts}
    return Dataset(
        name=split.name,
        train=parts["train"],
        test=parts.get("test"),
        val=parts.get("val"),
        num_classes=split.num_classes,
        class_counts=split.class_counts,
        class_names=split.class_names,
        divisions=split.divisions,
        split_hash=split.hash,
    )
