"""PyTorch state dicts as plain arrays: `.npz`, `.safetensors` and what `torch.save` writes, without PyTorch."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from shike_jax.common.errors import UserError
from shike_jax.convert import pickles, safetensors

_PICKLED = (".pth", ".pth.tar", ".pt", ".bin")
SUFFIXES = (".npz", ".safetensors", *_PICKLED)
_STATE_KEYS = ("state_dict", "model", "model_state", "model_state_dict", "net")
_SPLIT_PREFIX = "state_dict_"  # decoupled trainers store `state_dict_model` beside `state_dict_classifier`


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            pickles.check_archive(cast(zipfile.ZipFile, file.zip))
            arrays = {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as error:  # a damaged archive can fail in any way at all: in each it is the file's fault
        raise UserError(f"not a readable .npz of plain arrays ({error})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise UserError(f"{name} is not an array of numbers")
    return arrays


def _state_dicts(tree: object) -> Iterator[Mapping]:
    """The dicts that hold the network's tensors together: under a usual key, split over several, or all of `tree`."""
    if not isinstance(tree, dict):
        return
    for key in _STATE_KEYS:
        if isinstance(tree.get(key), dict):
            yield from _state_dicts(tree[key])
            return
    split = [value for key, value in tree.items() if str(key).startswith(_SPLIT_PREFIX) and isinstance(value, dict)]
    yield from split or [tree]


def _read_pickled(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    for state in _state_dicts(pickles.load(path)):
        for name, leaf in state.items():
            if isinstance(leaf, (pickles.Tensor, pickles.NumpyArray)):
                try:
                    yield str(name), leaf.array()
                except (ValueError, MemoryError) as error:
                    raise UserError(f"{name} cannot be read ({error})") from error


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def _clean(arrays: Iterator[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Without `module.` prefixes (they come from parallel wrappers) and without BN's step counters."""
    clean: dict[str, np.ndarray] = {}
    for name, array in arrays:
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        if name in clean and not _same(clean[name], array):
            raise UserError(f"two different tensors are called {name}")
        clean[name] = array
    if not clean:
        raise UserError("no tensors inside")
    return clean


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> array of a PyTorch state dict, in the file's dtypes (bfloat16 by `ml_dtypes`) and PyTorch's layouts.

    Reads `.npz`, `.safetensors`, and `.pth`, `.pth.tar`, `.pt`, `.bin` in PyTorch's zip and older format; nothing that
    a pickle asks for is executed. The state dict may lie under `state_dict`, `model`, `model_state`,
    `model_state_dict`, `net`, be split over keys `state_dict_...`, or be the whole file. `module.` prefixes and
    `num_batches_tracked` are removed.

    Raises:
        UserError: missing file, unknown suffix, damaged content, a pickle that asks for more than tensors, containers
            and numbers, two different tensors of one name, or no tensors at all. One line that names the file.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError("no such file")
        if path.name.endswith(".npz"):
            return _clean(iter(_read_npz(path).items()))
        if path.name.endswith(".safetensors"):
            return _clean(iter(safetensors.read(path).items()))
        if path.name.endswith(_PICKLED):
            return _clean(_read_pickled(path))
        raise UserError(f"unknown suffix; expected {', '.join(SUFFIXES)}")
    except (UserError, OSError) as error:
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def write_state_dict(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes name -> array to a new `.npz` or `.safetensors`, wholly or not at all.

    Raises:
        UserError: the file exists, its folder does not, the suffix is unknown, or a dtype does not fit the format.
    """
    path = Path(path)
    try:
        if path.exists():
            raise UserError("exists already; give a new name")
        if path.suffix not in (".npz", ".safetensors"):
            raise UserError("unknown suffix; expected .npz or .safetensors")
        with _new_file(path) as file:
            if path.suffix == ".safetensors":
                safetensors.write(file, arrays)
                return
            for name, array in arrays.items():
                if array.dtype.kind not in "biufc":
                    raise UserError(f"{name} has dtype {array.dtype}, which .npz cannot hold; write .safetensors")
            np.savez(file, **cast(Any, arrays))
    except (UserError, OSError) as error:
        raise UserError(f"{path}: {error}") from error
