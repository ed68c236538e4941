"""Times the augmentation in JAX and in plain Pillow on one core, both in one run.

Run: taskset -c 0 python -m tests.augment.bench_augment [--json=docs/results/cpu_augment.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import PIL

from shike_jax.augment import make_train_augment
from tests.augment.pillow_reference import cifar_transform, randaugment_transform

CIFAR = dict(crop="pad", pad=4, flip=True, policy="autoaugment_cifar", policy_args={}, cutout=16)
CIFAR |= dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), dtype=np.float32)
LARGE = dict(crop="none", pad=0, flip=False, policy="randaugment", policy_args={}, cutout=0)
LARGE |= dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), dtype=np.float32)


def synthetic(count: int, size: int) -> np.ndarray:
    """Blocks of colour under noise, so not flat: uint8 [count, size, size, 3]."""
    random = np.random.RandomState(0)
    blocks = random.randint(0, 256, (count, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2)
    return np.clip(blocks + random.normal(0, 10, blocks.shape), 0, 255).astype(np.uint8)


def measure(what: str, images: np.ndarray, settings: dict, pillow: Callable, repeats: int) -> dict:
    """Medians of both sides in ms per batch, measured alternately."""
    random = np.random.RandomState(0)
    mean, std = np.float32(settings["mean"]), np.float32(settings["std"])
    augment = jax.jit(make_train_augment(**settings))

    def ours(seed: int) -> None:
        augment(images, jax.random.split(jax.random.key(seed), len(images))).block_until_ready()

    def theirs(seed: int) -> None:
        np.stack([pillow(image, random, mean, std) for image in images])

    times: dict[str, list[float]] = {"jax": [], "pillow": []}
    for repeat in range(-1, repeats):  # the first round compiles and does not count
        for name, side in (("jax", ours), ("pillow", theirs)):
            start = time.perf_counter()
            side(repeat + 1)
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "what": what,
        "repeats": repeats,
        "median_ms_per_batch": {name: round(1e3 * median, 3) for name, median in medians.items()},
        "images_per_s": {name: round(len(images) / median) for name, median in medians.items()},
        "jax_over_pillow": round(medians["pillow"] / medians["jax"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--repeats", type=int, default=31)
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": " ".join(["taskset -c 0 python -m tests.augment.bench_augment", *sys.argv[1:]]),
        "commit": head.stdout.strip(),
        "device": f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} core, jax {jax.default_backend()}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "pillow": PIL.__version__},
        "measurements": [
            measure(
                "crop 4, flip, AutoAugment (CIFAR-10), Cutout 16, normalise; batch 128 of 32x32",
                synthetic(128, 32), CIFAR, cifar_transform, args.repeats,
            ),
            measure(
                "RandAugment (2 operations, magnitude 10, std 0.5, probability 0.5), normalise; batch 32 of 224x224",
                synthetic(32, 224), LARGE, randaugment_transform, max(1, args.repeats // 3),
            ),
        ],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
