"""Where compiled programs are kept from run to run: by default a folder of the user's, of one kind of processor each.

JAX does the keeping; without a folder it would compile everything at every start. The user's own choice wins:
JAX_COMPILATION_CACHE_DIR names another folder or a place in a bucket, JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from pathlib import Path

import jax

KEPT_BYTES = 2 << 30
# JAX's own limit of a second would leave out most programs of a small network's start.
SECONDS_WORTH_KEEPING = 0.05


def use_default_folder() -> None:
    """Has JAX keep compiled programs in `default_folder`, unless the user has chosen or it cannot be used."""
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    if folder_in_use() or not jax.config.values["jax_enable_compilation_cache"]:
        return
    try:
        folder = default_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
            return  # compiled programs are run as they are: nobody else may write there
        remove_oldest(folder.parent, KEPT_BYTES)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def folder_in_use() -> str | None:
    """The folder that compiled programs are kept in; None where they are not."""
    settings = jax.config.values
    return (settings["jax_enable_compilation_cache"] and settings["jax_compilation_cache_dir"]) or None


def default_folder() -> Path:
    """$XDG_CACHE_HOME/shike_jax/KIND or ~/.cache/shike_jax/KIND.

    KIND names the version of JAX and the processor's abilities: homes are shared between machines, and a program that
    was compiled for one may not run on another.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "shike_jax" / f"jax-{jax.__version__}-{_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    of_one = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return hashlib.sha256("\n".join([platform.machine(), *sorted(of_one)]).encode()).hexdigest()[:8]


def remove_oldest(folder: Path, kept_bytes: int) -> None:
    """Removes the files that were used longest ago until at most `kept_bytes` are left.

    Another process may do the same at the same time.
    """
    files = []
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(found.st_mode):
            files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= kept_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
