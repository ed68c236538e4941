"""`benchmark input`: reading large images on the host: this package, torchvision's recipe on Pillow, and tf.data."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shike_jax import config as schema
from shike_jax.benchmark import measure, scaling
from shike_jax.benchmark.peers import peer
from shike_jax.common.parser import Parser
from shike_jax.data.images import crop_box
from shike_jax.errors import UserError

SIZE, WIDTH, HEIGHT = 224, 500, 375
MEAN, STD = np.array(schema.IMAGENET_MEAN, np.float32), np.array(schema.IMAGENET_STD, np.float32)
_EPILOG = """\
All sides read the same JPEGs (500 x 375) from memory and give 224 x 224 random resized crops, half of them mirrored.
torchvision's recipe ends in RandAugment and normalised floats; here those run on the device.
Rates are per second of processor time, so other programs on the machine do not count; run it on one core.
tf.data takes part where TensorFlow is installed. With --scaling rates are by the clock: leave the machine alone.

examples:
  taskset -c 0 python -m shike_jax benchmark input --images=photographs --json=input.json
  python -m shike_jax benchmark input --scaling --json=scaling.json
  python -m shike_jax benchmark input --count=4 --rounds=1      a quick try, with made-up images
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax benchmark input", "Times the input of photographs on one core.", _EPILOG)
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to make the test images from; default: noise")
    parser.add_argument("--count", type=measure.positive, default=96, help="images per round")
    parser.add_argument("--rounds", type=measure.positive, default=9, help="rounds that count")
    parser.add_argument("--scaling", action="store_true", help="instead: 1 and 2 threads, 1 and 2 worker processes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    measure.check_writable(args.json)
    encoded = encode(args.images, args.count)
    about = f"{len(encoded)} JPEGs of {WIDTH}x{HEIGHT}, {np.mean([len(e) for e in encoded]) / 1e3:.1f} KB each"
    if args.scaling:
        found = scaling.measured(encoded, SIZE, (1, 2), args.rounds)
        for name, rate in found["images_per_second"].items():
            print(f"{rate:8.1f} img/s  {name}")
        print(f"{found['share_under_pythons_lock']:8.1%} of the time under Python's lock, with 1 thread")
        measure.write(
            {"images": about, **found, **measure.origin("python -m shike_jax benchmark input", argv)}, args.json
        )
        return
    sides = {
        "this package: crop, flip (the rest runs on the device)": scaling.pipeline(encoded, SIZE, threads=1),
        "torchvision's recipe on Pillow, with RandAugment": torchvision_recipe(encoded, True),
        "torchvision's recipe on Pillow, without RandAugment": torchvision_recipe(encoded, False),
    }
    try:
        for kind, antialias in (("antialiased, as here", True), ("bilinear without", False)):
            sides[f"tf.data: fused decode-and-crop, resize ({kind}), flip"] = tf_data(encoded, antialias)
    except UserError as error:
        print(error)
    seconds = measure.in_turns(sides, args.rounds, time.process_time)
    rates = {name: round(len(encoded) / statistics.median(samples), 1) for name, samples in seconds.items()}
    ours = next(iter(rates.values()))
    result: dict[str, Any] = {
        "images": about,
        "images_per_second_per_core": rates,
        "this_package_over": {name: round(ours / rate, 2) for name, rate in list(rates.items())[1:]},
        "samples_s": {name: [round(s, 4) for s in samples] for name, samples in seconds.items()},
        **measure.origin("python -m shike_jax benchmark input", argv),
    }
    for name, rate in rates.items():
        print(f"{rate:8.1f} img/s a core  {name}")
    measure.write(result, args.json)


def encode(folder: Path | None, count: int, quality: int = 88) -> list[bytes]:
    """500x375 JPEGs, about 37 KB each, of photographs in a folder, or of coloured clouds.

    A little noise stands for the detail that enlarging cannot make.

    Raises:
      UserError: a folder without JPEGs.
    """
    random = np.random.default_rng(0)
    encoded = []
    for picture in _pictures(folder, count, random):
        pixels = np.asarray(picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.integers(-5, 6, pixels.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    return encoded


def _pictures(folder: Path | None, count: int, random: np.random.Generator) -> list[Image.Image]:
    if folder is None:
        return [Image.fromarray(random.integers(0, 256, (19, 25, 3), np.uint8)) for _ in range(count)]
    paths = sorted(folder.rglob("*.jpg"))
    if not paths:
        raise UserError(f"--images={folder}: expected a folder with .jpg files")
    pictures = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with Image.open(path) as image:
            pictures.append(image.convert("RGB"))
    return pictures


def torchvision_recipe(encoded: list[bytes], randaugment: bool) -> Callable[[int], None]:
    """Decode, RandomResizedCrop, flip, maybe RandAugment, to float, normalise; one image after the other."""

    randaugment_transform = peer("pillow_transforms", "benchmark input").randaugment_transform

    def run(seed: int) -> None:
        random = np.random.RandomState(seed)
        batch = []
        for data in encoded:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            left, top, width, height = crop_box(WIDTH, HEIGHT, (0.08, 1.0), random.uniform(size=40))
            image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if random.uniform() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if randaugment:
                batch.append(randaugment_transform(np.asarray(image), random, MEAN, STD))
            else:
                batch.append((np.asarray(image, np.float32) / 255 - MEAN) / STD)
        np.stack(batch)

    return run


def tf_data(encoded: list[bytes], antialias: bool) -> Callable[[int], None]:
    """tf.data: fused decode-and-crop, resize, flip of uint8, on one thread; boxes are drawn beforehand.

    Without antialiasing the resize is several times cheaper, and the pixels are others than torchvision's and ours.
    """
    from shike_jax.data.tensorflow_data import import_tensorflow

    tf = import_tensorflow("tf.data does not take part")

    def view(data, box, flip):
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=antialias)
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
