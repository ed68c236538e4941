"""Times the CIFAR augmentation (crop, flip, AutoAugment, Cutout, normalise) in JAX and in plain Pillow on one core.

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

if "jax" not in sys.modules:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax
import numpy as np
import PIL

from shike_jax.augment import make_train_augment
from tests.augment.pillow_reference import train_transform

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
BATCH = 128


def measure(repeats: int) -> dict:
    """Medians of both sides in seconds per batch of 128, measured alternately."""
    random = np.random.RandomState(0)
    coarse = random.randint(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8)
    images = coarse.repeat(4, 1).repeat(4, 2)  # blocks and noise: not flat, like a photograph
    images = np.clip(images + random.normal(0, 10, images.shape), 0, 255).astype(np.uint8)
    augment = jax.jit(
        make_train_augment(
            crop="pad", pad=4, flip=True, policy="autoaugment_cifar", policy_args={}, cutout=16,
            mean=MEAN, std=STD, dtype=np.float32,
        )
    )  # fmt: skip
    mean, std = np.float32(MEAN), np.float32(STD)

    def ours(seed: int) -> None:
        augment(images, jax.random.split(jax.random.key(seed), BATCH)).block_until_ready()

    def theirs(seed: int) -> None:
        np.stack([train_transform(image, random, mean, std) for image in images])

    start = time.perf_counter()
    ours(0)
    compile_s = time.perf_counter() - start
    times: dict[str, list[float]] = {"jax": [], "pillow": []}
    for repeat in range(repeats):
        for name, side in (("jax", ours), ("pillow", theirs)):
            start = time.perf_counter()
            side(repeat)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "what": "crop 4, flip, AutoAugment (CIFAR-10), Cutout 16, normalise; batch 128 of 32x32; one core",
        "device": f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} core(s), {jax.default_backend()}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "pillow": PIL.__version__},
        "repeats": repeats,
        "first_call_s": compile_s,
        "median_ms_per_batch": {name: 1e3 * median for name, median in medians.items()},
        "images_per_s": {name: BATCH / median for name, median in medians.items()},
        "jax_over_pillow": medians["pillow"] / medians["jax"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--repeats", type=int, default=51)
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": "taskset -c 0 python -m tests.augment.bench_augment " + " ".join(sys.argv[1:]),
        "commit": head.stdout.strip(),
    }
    result |= measure(args.repeats)
    print(json.dumps(result, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
