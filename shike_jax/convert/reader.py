"""PyTorch state dicts as plain arrays: `.npz`, `.safetensors` and what `torch.save` writes, without PyTorch."""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from shike_jax.common import atomic
from shike_jax.common.buckets import downloaded, place
from shike_jax.common.text import say
from shike_jax.convert import pickles
from shike_jax.errors import UserError
from shike_jax.storage import tensor_file

_PICKLED = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".pkl", ".pyth")
SUFFIXES = (".npz", ".safetensors", *_PICKLED)  # in upper case too
# Keys that trainers store a network under: as it was trained, and averaged over its steps (what they evaluate).
_RAW = ("state_dict", "model", "model_state", "model_state_dict", "net", "network", "student")
_AVERAGED = ("model_ema", "state_dict_ema", "ema", "ema_state_dict", "teacher")
KINDS = ("averaged", "raw")
_SPLIT_PREFIX = "state_dict_"  # decoupled trainers store `state_dict_model` next to `state_dict_classifier`
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of parallel and of compiled networks, on any name
# Parts of a larger module that are the network itself; what lies next to them (heads, momentum encoders) is left out.
_ENCODERS = ("backbone.", "encoder_q.", "base_encoder.", "model.", "network.")
_FIRST = "conv1.weight"  # that every network here begins with
Tell = Callable[[str], None]


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


def _choose(tree: dict, kind: str, tell: Tell) -> str | None:
    """The key of `tree` that holds the network; None where it holds the tensors itself, perhaps split over keys."""
    keys = {"raw": _RAW, "averaged": _AVERAGED}
    found = {name: next((key for key in keys[name] if isinstance(tree.get(key), dict)), None) for name in KINDS}
    chosen = kind or next((name for name in KINDS if found[name]), "raw")
    other = found[KINDS[1 - KINDS.index(chosen)]]
    if found[chosen] is None and (other or kind == "averaged"):
        raise UserError(f"no {chosen} weights inside{f', only {other}' if other else ''}; expected another --weights")
    if found[chosen] and other and not kind:
        tell(
            f"of the weights inside, the averaged ones ({found[chosen]}) are taken; the raw ones ({other}): "
            "python -m shike_jax convert --weights=raw"
        )
    return found[chosen]


def _state_dicts(tree: object, kind: str, tell: Tell) -> Iterator[Mapping]:
    """The dicts that hold the network's tensors together: under a usual key, split over several, or all of `tree`."""
    if not isinstance(tree, dict):
        return
    key = _choose(tree, kind, tell)
    if key is not None:
        yield from _state_dicts(tree[key], "", tell)
        return
    split = [value for key, value in tree.items() if str(key).startswith(_SPLIT_PREFIX) and isinstance(value, dict)]
    yield from split or [tree]


def _read_pickled(path: Path, kind: str, tell: Tell) -> Iterator[tuple[str, np.ndarray]]:
    states = _state_dicts(pickles.load(path), kind, tell)
    for name, leaf in itertools.chain.from_iterable(state.items() for state in states):
        if isinstance(leaf, (pickles.Tensor, pickles.NumpyArray)):
            try:
                yield str(name), leaf.array()
            except (ValueError, MemoryError) as error:
                raise UserError(f"{name} cannot be read ({error})") from error


def _clean(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The network's tensors under its own names: without wrappers' prefixes and BN's step counters."""
    clean: dict[str, np.ndarray] = {}
    for name, array in arrays:
        name = _WRAPPERS.sub("", name)
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        if name in clean and len({(one.dtype, one.shape, one.tobytes()) for one in (array, clean[name])}) > 1:
            raise UserError(f"two different tensors are called {name}")
        clean[name] = array
    if not clean:
        raise UserError("no tensors inside")
    encoder = next((prefix for prefix in _ENCODERS if any(name.startswith(prefix) for name in clean)), None)
    if encoder is None or _FIRST in clean:
        return clean
    return _clean((name.removeprefix(encoder), array) for name, array in clean.items() if name.startswith(encoder))


def read_state_dict(path: str | os.PathLike, kind: str = "", tell: Tell = say) -> dict[str, np.ndarray]:
    """Name -> array of a PyTorch state dict, in the file's dtypes (bfloat16 by `ml_dtypes`) and PyTorch's layouts.

    Reads `.npz`, `.safetensors`, and `.pth`, `.pth.tar`, `.pt`, `.bin`, `.ckpt`, `.pkl`, `.pyth` in PyTorch's zip and
    older format, whatever the suffix's case; nothing that a pickle asks for is executed. The state dict may lie under a
    usual key (`state_dict`, `model`, `net`, `model_ema`, `teacher`, ...), be split over keys `state_dict_...`, or be
    the whole file. Prefixes of wrappers (`module.`, `_orig_mod.`) and `num_batches_tracked` are removed; of a larger
    module the network's own part is read (`backbone.`, `encoder_q.`, `model.`, ...).

    `kind` says whether the `averaged` or the `raw` weights of a file with both are read; empty: the averaged ones, and
    `tell` says so. `UserError`, which names the file, for a missing one, an unknown suffix, damaged content, a pickle
    that asks for more than tensors, containers and numbers, two different tensors of one name, no tensors at all, or
    none of the kind asked for.
    """
    with downloaded(place(path)) as local:
        name = local.name.lower()
        try:
            if not local.is_file():
                raise UserError("no such file")
            if name.endswith((".npz", ".safetensors")):
                if kind == "averaged":
                    raise UserError("no averaged weights inside; expected another --weights")
                arrays = _read_npz(local) if name.endswith(".npz") else tensor_file.from_bytes(local.read_bytes())[0]
                return _clean(arrays.items())
            if name.endswith(_PICKLED):
                return _clean(_read_pickled(local, kind, lambda line: tell(f"{local}: {line}")))
            raise UserError(f"unknown suffix; expected {', '.join(SUFFIXES)}")
        except (UserError, OSError) as error:
            raise UserError(f"{local}: {error}") from error


def read_remark(path: str | os.PathLike, name: str) -> str:
    """A remark that `write_state_dict` put into a `.safetensors`; empty where there is none, and for other files."""
    file = place(path)
    if not file.name.lower().endswith(".safetensors") or not file.is_file():
        return ""
    try:
        return tensor_file.from_bytes(file.read_bytes())[1].get(name, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_state_dict(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], remarks: Mapping[str, str] | None = None
) -> None:
    """Writes name -> array to a new `.npz` or `.safetensors`, wholly or not at all; only the latter keeps remarks.

    `UserError` when the file exists, its folder does not, the suffix is unknown, or a dtype does not fit the format.
    """
    target = place(path)
    try:
        if target.exists():
            raise UserError("exists already; give a new name")
        if target.suffix not in (".npz", ".safetensors"):
            raise UserError("unknown suffix; expected .npz or .safetensors")
        with atomic.replacing(target) as partial, partial.open("wb") as file:
            if target.suffix == ".safetensors":
                file.write(tensor_file.to_bytes(arrays, remarks))
                return
            for name, array in arrays.items():
                if array.dtype.kind not in "biufc":
                    raise UserError(f"{name} has dtype {array.dtype}, which .npz cannot hold; write .safetensors")
            np.savez(file, **cast(Any, arrays))
    except (UserError, OSError) as error:
        raise UserError(f"{path}: {error}") from error
