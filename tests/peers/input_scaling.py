"""`python -m tests.peers.input_scaling`: threads against worker processes, and how long Python's lock is held.

The worker processes are the best that the standard library offers here: started once, fed with the encoded bytes
through pipes, writing their views into memory that the processes share.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from shike_jax.benchmark import measure
from shike_jax.benchmark.host_input import SIZE, encode, pipeline
from shike_jax.common.command import run_main
from shike_jax.common.parser import Parser
from shike_jax.data.host_pipeline import CHUNK, view_seeds
from shike_jax.data.images import random_resized_crop

SCALE = (0.08, 1.0)
NAP = 0.001  # seconds that the probe sleeps between two looks
LATE = 0.0002  # seconds beyond which it was kept from going on by Python's lock


class Workers:
    """Worker processes that decode chunks of a batch into shared memory."""

    def __init__(self, encoded: list[bytes], size: int, processes: int) -> None:
        """Starts the processes; `spawn`, because a process with JAX's threads must not be forked."""
        self._encoded, self._size = encoded, size
        self.memory = SharedMemory(create=True, size=len(encoded) * size * size * 3)
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))

    def __call__(self, seed: int) -> None:
        """Decodes one batch of all images."""
        [seeds] = view_seeds(seed, np.arange(len(self._encoded), dtype=np.int32)[None])
        starts = range(0, len(self._encoded), CHUNK)
        tasks = [
            self._pool.submit(_fill, self.memory.name, self._size, start, self._encoded[start : start + CHUNK], seeds)
            for start in starts
        ]
        for task in tasks:
            task.result()

    def close(self) -> None:
        """Ends the processes and gives the memory back."""
        self._pool.shutdown()
        self.memory.close()
        self.memory.unlink()


_attached: dict[str, SharedMemory] = {}  # of a worker process


def _fill(name: str, size: int, start: int, encoded: list[bytes], seeds: np.ndarray) -> None:
    if name not in _attached:
        _attached[name] = SharedMemory(name)
    views = np.ndarray((start + len(encoded), size, size, 3), np.uint8, _attached[name].buf)
    for i, one in enumerate(encoded, start):
        views[i] = random_resized_crop(one, size, seeds[i], SCALE)


def locked_share(work: Callable[[], Any]) -> float:
    """Share of the time that Python's lock is held while `work` runs, by looking at random moments.

    A second thread sleeps and sees whether it may go on at once. The share is what `work` adds to its late returns.
    """

    def late(during: Callable[[], Any]) -> float:
        stop, delays = threading.Event(), []

        def probe() -> None:
            while not stop.is_set():
                before = time.perf_counter()
                time.sleep(NAP)
                delays.append(time.perf_counter() - before - NAP)

        watcher = threading.Thread(target=probe)
        watcher.start()
        during()
        stop.set()
        watcher.join()
        return sum(delay > LATE for delay in delays) / max(len(delays), 1)

    idle = late(lambda: time.sleep(1.0))
    return max(0.0, (late(work) - idle) / max(1 - idle, 1e-9))


def measured(encoded: list[bytes], size: int, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Images per second by the clock, of each number of threads and processes in turns; and the share of the lock."""
    workers = {count: Workers(encoded, size, count) for count in counts}
    sides: dict[str, Callable[[int], Any]] = {f"{count} threads": pipeline(encoded, size, count) for count in counts}
    sides |= {f"{count} worker processes": one for count, one in workers.items()}
    try:
        seconds = measure.in_turns(sides, rounds)
    finally:
        for one in workers.values():
            one.close()
    alone = pipeline(encoded, size, 1)
    share = statistics.median(locked_share(functools.partial(alone, number)) for number in range(rounds))
    return {
        "images_per_second": {
            name: round(len(encoded) / statistics.median(samples), 1) for name, samples in seconds.items()
        },
        "share_under_pythons_lock": round(share, 3),
        "samples_s": {name: [round(sample, 4) for sample in samples] for name, samples in seconds.items()},
    }


def main(argv: Sequence[str]) -> None:
    """Runs the command; rates are by the clock, so leave the machine alone."""
    parser = Parser("python -m tests.peers.input_scaling", "Times threads and worker processes.", "")
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to make the test images from; default: noise")
    parser.add_argument("--count", type=measure.positive, default=96, help="images per round")
    parser.add_argument("--rounds", type=measure.positive, default=9, help="rounds that count")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    found = measured(encode(args.images, args.count), SIZE, (1, 2), args.rounds)
    for name, rate in found["images_per_second"].items():
        print(f"{rate:8.1f} img/s  {name}")
    print(f"{found['share_under_pythons_lock']:8.1%} of the time under Python's lock, with 1 thread")
    measure.write({**found, **measure.origin("python -m tests.peers.input_scaling", argv)}, args.json)


if __name__ == "__main__":
    run_main(main)
