"""Times the input of large images on one core, in one run: this package, torchvision's recipe on Pillow, and tf.data.

Run: taskset -c 0 python -m tests.data.bench_input [--json=docs/results/cpu_input.json] [--images=DIR]

All sides read the same JPEGs (500x375, about 37 KB) from memory and give 224x224 random resized crops, half mirrored.
torchvision's recipe ends in RandAugment and normalised floats; here those run on the device (see bench_augment).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from shike_jax import config as schema
from shike_jax.data.host_pipeline import HostPipeline, view_seeds
from shike_jax.data.images import crop_box
from shike_jax.data.splits import Part, Split
from shike_jax.data.types import Source
from tests.augment.pillow_reference import randaugment_transform
from tests.conftest import ROOT

SIZE, WIDTH, HEIGHT = 224, 500, 375
MEAN, STD = np.float32(schema.IMAGENET_MEAN), np.float32(schema.IMAGENET_STD)


def photographs(folder: Path, count: int, quality: int = 88) -> list[bytes]:
    """Photographs of a folder as 500x375 JPEGs; a little noise stands for the detail that enlarging cannot make."""
    random = np.random.default_rng(0)
    paths = sorted(folder.rglob("*.jpg"))
    encoded = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.integers(-5, 6, pixels.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    return encoded


def this_package(encoded: list[bytes]) -> Callable[[int], None]:
    """The host pipeline on one thread."""
    config = schema.base()
    config.data.image_size = SIZE
    config.augment.crop = "random_resized"
    index = np.arange(len(encoded), dtype=np.int32)[None]
    part = Part(index[0], np.zeros(len(encoded), np.int32))
    source = Source(Split("bench", "", 0, ("only",), {"train": part}), read=lambda _, i: [encoded[k] for k in i])
    pipeline = HostPipeline(source, "train", config, threads=1)

    def run(seed: int) -> None:
        plan = {"index": index, "mask": np.ones(index.shape, np.float32), "seed": view_seeds(seed, index)}
        [batch] = pipeline.batches(plan)
        assert batch["mask"].all()

    return run


def torchvision_recipe(encoded: list[bytes], randaugment: bool) -> Callable[[int], None]:
    """Decode, RandomResizedCrop, flip, maybe RandAugment, to float, normalise; one image after the other."""

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


def tf_data(encoded: list[bytes]) -> Callable[[int], None]:
    """tf.data: fused decode-and-crop, antialiased resize, flip, on one thread; boxes are drawn beforehand."""
    from shike_jax.data.tensorflow_data import import_tensorflow

    tf = import_tensorflow()

    def view(data, box, flip):
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=True)
        return tf.cast(tf.round(tf.where(flip, image[:, ::-1], image)), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1

    def run(seed: int) -> None:
        random = np.random.RandomState(seed)
        boxes = [crop_box(WIDTH, HEIGHT, (0.08, 1.0), random.uniform(size=40)) for _ in encoded]
        boxes = np.array([(top, left, height, width) for left, top, width, height in boxes], np.int32)
        flips = random.uniform(size=len(encoded)) < 0.5
        views = tf.data.Dataset.from_tensor_slices((encoded, boxes, flips)).map(view, num_parallel_calls=1)
        list(views.batch(len(encoded)).with_options(options).as_numpy_iterator())

    return run


def measure(encoded: list[bytes], rounds: int) -> dict[str, float]:
    """Images per second of processor time of each side, so that other programs on the machine do not count.

    Medians over rounds in which the sides take turns; the first round does not count.
    """
    sides = {
        "this package: crop, flip (the rest runs on the device)": this_package(encoded),
        "torchvision's recipe on Pillow, with RandAugment": torchvision_recipe(encoded, True),
        "torchvision's recipe on Pillow, without RandAugment": torchvision_recipe(encoded, False),
        "tf.data: fused decode-and-crop, antialiased resize, flip": tf_data(encoded),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for seed, (name, run) in itertools.product(range(-1, rounds), sides.items()):
        began = time.process_time()
        run(seed + 1)
        if seed >= 0:
            seconds[name].append(time.process_time() - began)
    return {name: round(len(encoded) / statistics.median(times), 1) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=Path, help="folder of JPEGs to make the test images from")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    shared = Path(os.environ.get("SHIKE_SHARED", ROOT.parent / "shared"))
    encoded = photographs(args.images or shared / "data" / "caltech101_lt" / "test", args.count)
    rates = measure(encoded, args.rounds)
    ours, torchvision, *_ = rates.values()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": " ".join(["taskset -c 0 python -m tests.data.bench_input", *sys.argv[1:]]),
        "commit": head.stdout.strip(),
        "device": f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} core",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__},
        "images": f"{len(encoded)} JPEGs of {WIDTH}x{HEIGHT}, {np.mean([len(e) for e in encoded]) / 1e3:.1f} KB each",
        "images_per_second_per_core": rates,
        "this_package_over_torchvision_with_randaugment": round(ours / torchvision, 2),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
