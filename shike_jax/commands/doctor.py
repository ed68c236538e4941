"""`shike-jax doctor`: what this machine offers (devices, versions, data) and what is wrong with it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from shike_jax.common.parser import Parser
from shike_jax.common.version import __version__

_EPILOG = """\
example:
  python -m shike_jax doctor

Lines that begin with `problem:` say what is wrong and what to do. The exit status is 0 without problems, 1 with some.
Nothing is installed or changed, and no data are read.
"""
NEEDED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml_collections",
    "absl-py",
    "numpy",
    "pillow",
    "rich",
    "flatbuffers",
    "clu",
)
# What each optional package is for; alternatives are tried in order.
OPTIONAL = {
    ("cykooz-resizer",): "faster training views of photographs; no wheels for Linux on ARM",
    ("tensorflow", "tensorflow-cpu"): "tfds data, SavedModel export: extra tfds",
    ("tensorflow-datasets",): "CIFAR and other data sets of tfds: extra tfds",
    ("tensorboardX",): "TensorBoard files: extra tensorboard",
    ("tensorboard",): "showing TensorBoard files: extra tensorboard",
    ("scikit-learn",): "the digits of configs/digits_lt.py: extra digits",
    ("matplotlib",): "reports and the figure of inspect: extra report",
}
ROOM = 2e9  # bytes of free disk below which checkpoints may not fit
PROBLEM = "problem"
Findings = Iterator[tuple[str, object]]  # (name, value) of facts, (PROBLEM, what is wrong and what to do)


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> Findings:
    """This package, Python and libraries."""
    yield "shike_jax", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in NEEDED:
        version = _version((name,))
        yield name, version or "absent"
        if version is None:
            yield PROBLEM, f"{name} is not installed: pip install -r requirements.txt"
    for names, use in OPTIONAL.items():
        yield names[0], _version(names) or f"absent (only for: {use})"


def check_devices() -> Findings:
    """What JAX computes on, tried with one product."""
    try:
        import jax.numpy as jnp

        from shike_jax.cluster import compiled_cache
        from shike_jax.cluster.parallel import find_devices

        devices = find_devices()
        total = float(jnp.ones((64, 64)).dot(jnp.ones((64, 64))).sum())
    except Exception as error:  # a broken installation fails in many ways
        yield PROBLEM, " ".join(str(error).split())[:300]
        return
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    if total != 64**3:
        yield PROBLEM, f"a product of matrices of ones gave {total}, expected {64**3}: the device is faulty"
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        yield PROBLEM, "there is an NVIDIA driver, but JAX uses the CPU: pip install -U 'jax[cuda13]'"
    compiled_cache.use_default_folder()
    cache = compiled_cache.folder_in_use()
    yield "compilation cache", cache or "off (set JAX_COMPILATION_CACHE_DIR to keep compiled programs)"
    if cache and "://" not in cache and Path(cache).exists() and not os.access(cache, os.W_OK):
        yield PROBLEM, f"JAX_COMPILATION_CACHE_DIR={cache} is not writable: choose another folder"


def check_machine() -> Findings:
    """Cores, memory and room on the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", cores
    try:
        yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        yield "memory", "unknown"
    free = shutil.disk_usage(".").free
    yield "free disk here", f"{free / 1e9:.0f} GB"
    if free < ROOM:
        yield PROBLEM, f"only {free / 1e9:.1f} GB are free here: put --workdir on another disk"


def check_data() -> Findings:
    """Data sets that tensorflow-datasets has prepared."""
    named = os.environ.get("TFDS_DATA_DIR")
    folder = Path(named or "~/tensorflow_datasets").expanduser()
    yield "tfds folder", f"{folder} (from {'$TFDS_DATA_DIR' if named else 'the default'})"
    if named and not folder.is_dir():
        yield PROBLEM, f"TFDS_DATA_DIR={named}: no such folder; set it to where data sets were prepared"
    prepared = sorted({path.parent.relative_to(folder) for path in folder.glob("*/**/dataset_info.json")})
    yield "prepared data sets", ", ".join(map(str, prepared)) or "none (digits and folders need none)"
    if prepared and _version(("tensorflow-datasets",)) is None:
        yield PROBLEM, "data sets are prepared, but tensorflow-datasets is not installed to read them"


def main(argv: Sequence[str]) -> int:
    """Prints the findings; returns 1 when there are problems."""
    Parser("python -m shike_jax doctor", "Says what this machine offers and what is wrong.", _EPILOG).parse_args(argv)
    found = [item for check in (check_versions, check_devices, check_machine, check_data) for item in check()]
    problems = [f"problem: {text}" for name, text in found if name == PROBLEM]
    print("\n".join(f"{name:<22} {value}" for name, value in found if name != PROBLEM))
    print("\n".join(problems) or "no problems found")
    return 1 if problems else 0
