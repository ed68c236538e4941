"""`benchmark input`: reading large images on the host, next to torchvision's recipe on Pillow and tf.data."""

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
from shike_jax.benchmark import measure
from shike_jax.common.parser import Parser
from shike_jax.data.host_pipeline import HostPipeline
from shike_jax.data.resizing import resizer
from shike_jax.data.splits import Part, Split
from shike_jax.data.types import Source
from shike_jax.errors import UserError

SIZE, WIDTH, HEIGHT = 224, 500, 375
OURS = "this package: crop, flip (the rest runs on the device)"
_EPILOG = """\
All sides read the same JPEGs (500 x 375) from memory and give 224 x 224 random resized crops, half of them mirrored.
torchvision's recipe ends in RandAugment and normalised floats; here those run on the device. Rates are per second of
processor time, so other programs on the machine do not count; run it on one core. --against needs a clone.

examples:
  taskset -c 0 python -m shike_jax benchmark input --images=photographs --against --json=input.json
  python -m shike_jax benchmark input --count=4 --rounds=1      a quick try, with made-up images
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax benchmark input", "Times the input of photographs on one core.", _EPILOG)
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to make the test images from; default: noise")
    parser.add_argument("--count", type=measure.positive, default=96, help="images per round")
    parser.add_argument("--rounds", type=measure.positive, default=9, help="rounds that count")
    parser.add_argument("--against", action="store_true", help="in turns with torchvision's recipe and tf.data")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    measure.check_writable(args.json)
    encoded = encode(args.images, args.count)
    about = f"{len(encoded)} JPEGs of {WIDTH}x{HEIGHT}, {np.mean([len(e) for e in encoded]) / 1e3:.1f} KB each"
    sides = {OURS: pipeline(encoded, SIZE, threads=1)}
    if args.against:
        sides |= measure.peer("input_recipes", "--against").recipes(encoded, SIZE)
    seconds = measure.in_turns(sides, args.rounds, time.process_time)
    rates = {name: round(len(encoded) / statistics.median(samples), 1) for name, samples in seconds.items()}
    ours = next(iter(rates.values()))
    result: dict[str, Any] = {
        "images": about,
        "images_per_second_per_core": rates,
        "this_package_over": {name: round(ours / rate, 2) for name, rate in list(rates.items())[1:]},
        "resizing": resizer(),
        "samples_s": {name: [round(s, 4) for s in samples] for name, samples in seconds.items()},
        **measure.origin("python -m shike_jax benchmark input", argv),
    }
    for name, rate in rates.items():
        print(f"{rate:8.1f} img/s a core  {name}")
    measure.write(result, args.json)


def encode(folder: Path | None, count: int) -> list[bytes]:
    """500x375 JPEGs, about 37 KB each, of photographs in a folder (`UserError` if it has none), or of coloured clouds.

    A little noise stands for the detail that enlarging cannot make.
    """
    random = np.random.default_rng(0)
    encoded = []
    for picture in _pictures(folder, count, random):
        pixels = np.asarray(picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.integers(-5, 6, pixels.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
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


def pipeline(encoded: list[bytes], size: int, threads: int) -> Callable[[int], None]:
    """This package's pipeline over one batch of all images."""
    config = schema.base()
    config.data.image_size = size
    config.augment.crop, config.augment.scale = "random_resized", (0.08, 1.0)
    index = np.arange(len(encoded), dtype=np.int32)[None]
    part = Part(index[0], np.zeros(len(encoded), np.int32))
    source = Source(Split("bench", "", 0, ("only",), {"train": part}), read=lambda _, i: [encoded[k] for k in i])
    decoding = HostPipeline(source, "train", config, threads=threads)

    def run(seed: int) -> None:
        [batch] = decoding.batches({"index": index, "mask": np.ones(index.shape, np.float32)}, seed=seed)
        assert batch["mask"].all()

    return run
