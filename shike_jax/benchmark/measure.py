"""Measuring several sides in turns, the other sides themselves, and what every result says about where it was made."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from shike_jax.common.provenance import code_version, commit, versions
from shike_jax.common.text import to_json
from shike_jax.errors import UserError

# Variables that change speed without a trace in the command.
ENVIRONMENT = ("GLIBC_TUNABLES", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "LD_PRELOAD", "NPROC", "XLA_FLAGS")
VECTORS = ("avx2", "avx512f")  # they decide which form of a convolution is faster
OPTIONAL = {"torch": "torch", "tensorflow": "tensorflow"}  # named when a side has imported them


def in_turns(
    sides: Mapping[str, Callable[[int], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each side in each round; in a round every side runs once, so that slow moments hit all of them.

    Sides are functions of the round's number that return when their work is done. A round 0 comes first (compilation,
    caches) and does not count. The clock `time.process_time` leaves other programs out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            began = clock()
            side(number)
            if number:
                seconds[name].append(clock() - began)
    return seconds


def peer(name: str, option: str) -> ModuleType:
    """The module `tests.peers.NAME`, which `option` of the command line asks for; `UserError` outside a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests" / "peers" / f"{name}.py").is_file():
        raise UserError(f"{option}: expected a clone of the project, whose tests/peers holds what is compared with")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"tests.peers.{name}")


def describe(seconds: Sequence[float], images: int) -> dict[str, Any]:
    """Median, spread and samples of one side, in ms for its `images`, and images per second by the median."""
    median = statistics.median(seconds)
    return {
        "median_ms": round(1e3 * median, 3),
        "fastest_ms": round(1e3 * min(seconds), 3),
        "slowest_ms": round(1e3 * max(seconds), 3),
        "images_per_second": round(images / median, 1),
        "samples_ms": [round(1e3 * sample, 3) for sample in seconds],
    }


def origin(program: str, argv: Sequence[str]) -> dict[str, Any]:
    """Command, code, versions and machine; to be called after the measurement, when all libraries are loaded."""
    optional = {label: sys.modules[name].__version__ for name, label in OPTIONAL.items() if name in sys.modules}
    return {
        "command": f"{program} {shlex.join(argv)}".strip(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "commit": commit(),
        "code": code_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {**versions(), **optional},
        "cores": len(os.sched_getaffinity(0)),
        "processor": _of_processor("model name"),
        "vector_instructions": [name for name in VECTORS if name in _of_processor("flags").split()],
        "load_average": round(os.getloadavg()[0], 1),
    }


def device() -> dict[str, Any]:
    """What JAX computes on; wakes the device."""
    import jax

    first = jax.devices()[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}


def write(result: Mapping[str, Any], path: Path | None) -> None:
    """Writes a result as JSON, if a path was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")


def check_writable(path: Path | None) -> None:
    """Raises UserError when `--json=` cannot be written: before minutes of measuring, not after."""
    if path is None:
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--json={path}: expected a file in a folder that can be written to")


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise ValueError
    return int(text)


def positives(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers of at least 1 with commas between them."""
    return tuple(map(positive, text.split(",")))


def _of_processor(field: str) -> str:
    """A field of Linux's description of the first processor; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
