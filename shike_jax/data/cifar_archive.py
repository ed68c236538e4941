"""CIFAR-10 and CIFAR-100 from the authors' archives, in their Python and their binary form, without TensorFlow.

Images are numbered in the order of the files, as tensorflow-datasets numbers them: the split, and its hash, are those
of the source `tfds`. The digest of the archive says which of the four it is.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from shike_jax.common.pickled import Unpickler
from shike_jax.data.splits import Part, longtailed_split
from shike_jax.data.types import Source
from shike_jax.errors import UserError, naming

SIDE = 32
# SHA-256 of https://www.cs.toronto.edu/~kriz/NAME
OFFICIAL = {
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
}
Images = tuple[np.ndarray, np.ndarray]  # labels int32 [N], images uint8 [N,32,32,3]


def load(data: ConfigDict) -> Source:
    """The archive `config.data.root` of the data set `config.data.name`."""
    check_side(data)
    path = Path(data.root)
    with naming(f"config.data.root={path}", "an archive of CIFAR"):
        if data.verify:
            _check_digest(path)
        class_names, found = _read(path)
    if data.name != (name := f"cifar{len(class_names)}"):
        raise UserError(f"config.data.root={path}: is {name}; expected {data.name} (config.data.name)")
    return longtailed_source(data, class_names, found)


def check_side(data: ConfigDict) -> None:
    """UserError for another `config.data.image_size` than CIFAR's."""
    if data.image_size != SIDE:
        raise UserError(f"config.data.image_size={data.image_size}: {data.name} has {SIDE} px images")


def longtailed_source(
    data: ConfigDict,
    class_names: tuple[str, ...],
    found: dict[str, Images],
    ids: dict[str, np.ndarray] | None = None,
    said: str = "",
) -> Source:
    """CIFAR by the authors' rule: the parts in the order of their ids (None: 0, 1, ...), the training part long-tailed.

    `said` is what the rule of the split says after "by id".
    """
    name = data.name.partition(":")[0]
    parts = {part: Part(ids[part] if ids else np.arange(len(one[0])), one[0]) for part, one in found.items()}
    title, rule = f"{name}_lt_if{data.imbalance_factor:g}", f"{name} by id{said}"
    split, kept = longtailed_split(title, rule, class_names, parts, data, ranked=False)
    images = {part: one[1] for part, one in found.items()}
    return Source(split, images | {"train": images["train"][kept]})


def _check_digest(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in OFFICIAL.values():
        expected = f"one of {', '.join(OFFICIAL)} as published, or config.data.verify=False for an archive of your own"
        raise UserError(f"config.data.root={path}: its SHA-256 is {digest[:12]}...; expected {expected}")


def _read(path: Path) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Names of the classes, and the parts, of an archive in either form."""
    with tarfile.open(path) as archive:
        files = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
        contents = {name: file.read() for name, file in files.items() if file is not None}
    binary = any(name.endswith(".bin") for name in contents)
    wide = "fine_label_names.txt" in contents or "meta" in contents  # CIFAR-100
    names = {"train": ["train"], "test": ["test"]}
    if not wide:
        names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    found = {}
    for part, files_of in names.items():
        read = [_binary(contents[f"{one}.bin"], wide) if binary else _python(contents[one], wide) for one in files_of]
        labels, planes = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
        found[part] = labels, np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    if binary:
        described = contents["fine_label_names.txt" if wide else "batches.meta.txt"].split()
    else:
        described = _unpickled(contents["meta" if wide else "batches.meta"])
        described = described[b"fine_label_names" if wide else b"label_names"]
    return tuple(name.decode() for name in described), found


def _binary(content: bytes, wide: bool) -> Images:
    """Records of a label (of CIFAR-100 a coarse one, then the fine one) and 3,072 bytes, plane by plane."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + wide + 3 * SIDE**2)
    return records[:, int(wide)].astype(np.int32), records[:, 1 + wide :]


def _python(content: bytes, wide: bool) -> Images:
    """A pickled dict with `data` uint8 [N,3072] and lists of labels."""
    batch = _unpickled(content)
    return np.array(batch[b"fine_labels" if wide else b"labels"], np.int32), batch[b"data"]


class _Arrays(Unpickler):
    """Reads dicts, lists and NumPy's arrays; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        of_arrays = module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype")
        if of_arrays or (module, name) == ("_codecs", "encode"):
            return getattr(importlib.import_module(module), name)
        return super().find_class(module, name)


def _unpickled(content: bytes) -> Any:
    return _Arrays(io.BytesIO(content), encoding="bytes").load()
