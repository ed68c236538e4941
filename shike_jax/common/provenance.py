"""What produced a result: the version of this code and of the libraries it rests on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint

from shike_jax.common.version import __version__


@functools.cache
def code_version() -> str:
    """The package's version and a digest of its source files."""
    package, total = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


def commit() -> str:
    """The commit of this code, with `-dirty` where files differ from it; `unknown` outside a repository."""
    root = Path(__file__).resolve().parents[2]

    def said(*words: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    if said("rev-parse", "--show-toplevel") != str(root):  # installed, perhaps inside somebody else's repository
        return "unknown"
    return said("describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on."""
    libraries = {"jax": jax, "flax": flax, "optax": optax, "orbax": orbax.checkpoint, "numpy": np}
    found = {
        "shike_jax": __version__,
        "python": platform.python_version(),
        **{name: library.__version__ for name, library in libraries.items()},
    }
    for name in ("pillow", "cykooz-resizer"):  # decoding and resizing decide the pixels that are trained on
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
