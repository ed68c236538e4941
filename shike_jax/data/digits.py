"""scikit-learn's handwritten digits (1,797 real 8x8 images inside the package), long-tailed, balanced test set."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.extras import optional
from shike_jax.data.splits import Part, longtailed_split
from shike_jax.data.types import Source
from shike_jax.errors import UserError

SIDE, LEVELS = 8, 16  # pixels; grey values run from 0 to 16


def load(data: ConfigDict) -> Source:
    """Loads the digits: the last `test_per_class` of each class in file order test, the rest train, long-tailed."""
    load_digits = optional("sklearn.datasets", "config.data.source='digits'").load_digits
    if data.image_size % SIDE:
        raise UserError(f"config.data.image_size={data.image_size}: the digits need a multiple of {SIDE}, such as 16")
    grey, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int32)
    smallest = int(np.bincount(labels).min())
    if not 1 <= data.test_per_class < smallest:
        raise UserError(f"config.data.test_per_class={data.test_per_class}: expected 1 to {smallest - 1}")
    num_classes = int(labels.max()) + 1
    test = np.sort(np.concatenate([np.flatnonzero(labels == c)[-data.test_per_class :] for c in range(num_classes)]))
    rest = np.setdiff1d(np.arange(len(labels)), test)
    rule = f"digits, last {data.test_per_class} of each class test"
    small = np.round(grey.reshape(-1, SIDE, SIDE) * (255 / LEVELS)).astype(np.uint8)
    times = data.image_size // SIDE
    images = np.repeat(small.repeat(times, 1).repeat(times, 2)[..., None], 3, axis=-1)
    parts = {part: Part(index, labels[index]) for part, index in (("train", rest), ("test", test))}
    name, class_names = f"digits_lt_if{data.imbalance_factor:g}", tuple(map(str, range(num_classes)))
    split, _ = longtailed_split(name, rule, class_names, parts, data, ranked=False)
    return Source(split, {part: images[one.members] for part, one in split.parts.items()})
