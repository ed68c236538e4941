"""`python -m tests.peers.augmentation`: augmentation in JAX and with plain Pillow, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shike_jax import config as schema
from shike_jax.augment import make_train_augment
from shike_jax.benchmark import measure
from shike_jax.common.command import run_main
from shike_jax.common.parser import Parser
from tests.peers.pillow_transforms import cifar_transform, randaugment_transform

CIFAR = dict(crop="pad", pad=4, flip=True, policy="autoaugment_cifar", policy_args={}, cutout=16)
CIFAR |= dict(mean=schema.CIFAR_MEAN, std=schema.CIFAR_STD, dtype=np.float32)
LARGE = dict(crop="none", pad=0, flip=False, policy="randaugment", policy_args={}, cutout=0)
LARGE |= dict(mean=schema.IMAGENET_MEAN, std=schema.IMAGENET_STD, dtype=np.float32)
_EPILOG = """\
Two kinds of work: 32 x 32 images with crop, flip, AutoAugment, Cutout and normalisation (CIFAR), and RandAugment with
normalisation of 224 x 224 images. JAX augments on its device, Pillow on the CPU, one image after the other: with
`taskset -c 0` in front both have one core. The first round compiles and does not count.

examples:
  taskset -c 0 python -m tests.peers.augmentation --json=augment.json
  python -m tests.peers.augmentation --batch=8 --large_batch=2 --repeats=1      a quick try
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m tests.peers.augmentation", "Times the augmentation beside Pillow's.", _EPILOG)
    parser.add_argument("--batch", type=measure.positive, default=128, help="of 32 x 32 images")
    parser.add_argument("--large_batch", type=measure.positive, default=32, help="of 224 x 224 images")
    parser.add_argument("--repeats", type=measure.positive, default=31, help="rounds; a third of them for 224 x 224")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    measure.check_writable(args.json)
    measurements = [
        compare(
            f"crop 4, flip, AutoAugment (CIFAR-10), Cutout 16, normalise; batch {args.batch} of 32x32",
            synthetic(args.batch, 32),
            CIFAR,
            cifar_transform,
            args.repeats,
        ),
        compare(
            "RandAugment (2 operations, magnitude 10, std 0.5, probability 0.5), normalise; "
            f"batch {args.large_batch} of 224x224",
            synthetic(args.large_batch, 224),
            LARGE,
            randaugment_transform,
            max(1, args.repeats // 3),
        ),
    ]
    result = {
        "device": measure.device(),
        "measurements": measurements,
        **measure.origin("python -m tests.peers.augmentation", argv),
    }
    for one in measurements:
        rates = ", ".join(f"{name} {rate:,} img/s" for name, rate in one["images_per_s"].items())
        print(f"{one['what']}: {rates} ({one['jax_over_pillow']} x)")
    measure.write(result, args.json)


def synthetic(count: int, size: int) -> np.ndarray:
    """Blocks of colour under noise, so not flat: uint8 [count, size, size, 3]."""
    random = np.random.RandomState(0)
    blocks = random.randint(0, 256, (count, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2)
    return np.clip(blocks + random.normal(0, 10, blocks.shape), 0, 255).astype(np.uint8)


def compare(what: str, images: np.ndarray, settings: dict, pillow: Callable, repeats: int) -> dict[str, Any]:
    """Medians of both sides in ms per batch."""
    random = np.random.RandomState(0)
    mean, std = np.float32(settings["mean"]), np.float32(settings["std"])
    augment = jax.jit(make_train_augment(**settings))

    def ours(seed: int) -> None:
        augment(images, jax.random.split(jax.random.key(seed), len(images))).block_until_ready()

    def theirs(_: int) -> None:
        np.stack([pillow(image, random, mean, std) for image in images])

    seconds = measure.in_turns({"jax": ours, "pillow": theirs}, repeats)
    timed = {name: measure.describe(samples, len(images)) for name, samples in seconds.items()}
    return {
        "what": what,
        "repeats": repeats,
        "median_ms_per_batch": {name: side["median_ms"] for name, side in timed.items()},
        "images_per_s": {name: round(side["images_per_second"]) for name, side in timed.items()},
        "jax_over_pillow": round(timed["pillow"]["median_ms"] / timed["jax"]["median_ms"], 2),
        "samples_ms": {name: side["samples_ms"] for name, side in timed.items()},
    }


if __name__ == "__main__":
    run_main(main)
