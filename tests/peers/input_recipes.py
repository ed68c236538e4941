"""How others read photographs: torchvision's recipe on Pillow, and tf.data."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from shike_jax.benchmark.host_input import HEIGHT, WIDTH
from shike_jax.common.colours import IMAGENET_MEAN, IMAGENET_STD
from shike_jax.data.images import crop_box
from shike_jax.data.tensorflow_data import import_tensorflow
from shike_jax.errors import UserError
from tests.peers.pillow_transforms import randaugment_transform

MEAN, STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)


def recipes(encoded: list[bytes], size: int) -> dict[str, Callable[[int], None]]:
    """Every recipe by name; tf.data where TensorFlow is installed."""
    sides = {
        "torchvision's recipe on Pillow, with RandAugment": torchvision_recipe(encoded, size, True),
        "torchvision's recipe on Pillow, without RandAugment": torchvision_recipe(encoded, size, False),
    }
    try:
        for kind, antialias in (("antialiased, as here", True), ("bilinear without", False)):
            sides[f"tf.data: fused decode-and-crop, resize ({kind}), flip"] = tf_data(encoded, size, antialias)
    except UserError as error:
        print(error)
    return sides


def torchvision_recipe(encoded: list[bytes], size: int, randaugment: bool) -> Callable[[int], None]:
    """Decode, RandomResizedCrop, flip, maybe RandAugment, to float, normalise; one image after the other."""

    def run(seed: int) -> None:
        random = np.random.RandomState(seed)
        batch = []
        for data in encoded:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            left, top, width, height = crop_box(WIDTH, HEIGHT, (0.08, 1.0), random.uniform(size=40))
            image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
            if random.uniform() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if randaugment:
                batch.append(randaugment_transform(np.asarray(image), random, MEAN, STD))
            else:
                batch.append((np.asarray(image, np.float32) / 255 - MEAN) / STD)
        np.stack(batch)

    return run


def tf_data(encoded: list[bytes], size: int, antialias: bool) -> Callable[[int], None]:
    """tf.data: fused decode-and-crop, resize, flip of uint8, on one thread; boxes are drawn beforehand.

    Without antialiasing the resize is several times cheaper, and the pixels are others than torchvision's and ours.
    """
    tf = import_tensorflow("tf.data does not take part")

    def view(data, box, flip):
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
        image = tf.image.resize(image, (size, size), antialias=antialias)
        image = tf.cast(tf.round(image), tf.uint8)
        return tf.cond(flip, lambda: image[:, ::-1], lambda: image)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1

    def run(seed: int) -> None:
        random = np.random.RandomState(seed)
        drawn = [crop_box(WIDTH, HEIGHT, (0.08, 1.0), random.uniform(size=40)) for _ in encoded]
        boxes = np.array([(top, left, height, width) for left, top, width, height in drawn], np.int32)
        flips = random.uniform(size=len(encoded)) < 0.5
        views = tf.data.Dataset.from_tensor_slices((encoded, boxes, flips)).map(view, num_parallel_calls=1)
        list(views.batch(len(encoded)).with_options(options).as_numpy_iterator())

    return run
