"""PyTorch's pickled checkpoints, read without PyTorch and without obeying the pickle.

A pickle is a program: it names functions and has them called. Here each admitted name stands for an inert object of
this file or a built-in container, every other name is an error, and no stand-in lets the pickle alter it:
`__setstate__` alone decides what may be set.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from shike_jax.common.pickled import Unpickler
from shike_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# How far a file may grow in memory: by this factor, or to this many bytes.
MOST_EXPANSION, SMALL = 20, 64 * 2**20


class _Sealed:
    """What a pickle may hold and hand on, but not change."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise UserError(f"the pickle tries to set the state of a {type(self).__name__.lstrip('_')}")


class _Call(_Sealed):
    """Stands for an admitted function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args):
        return self._function(*args)


class _ElementType(_Sealed):
    """Stands for a storage class or a dtype of PyTorch."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)


class _Storage(_Sealed):
    """`numel` elements in a row; `data` is filled when the bytes are read, which the older format does last."""

    __slots__ = ("data", "dtype", "numel")

    def __init__(self, element: object, numel: object) -> None:
        if not isinstance(element, _ElementType) or not isinstance(numel, int) or numel < 0:
            raise UserError("a storage of the pickle has no known element type or size")
        self.dtype, self.numel, self.data = element.dtype, numel, b""

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Tensor(_Sealed):
    """A strided view of a storage; offset and strides count elements of `dtype`."""

    __slots__ = ("dtype", "offset", "shape", "storage", "stride")

    def __init__(self, storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> None:
        if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype):
            raise UserError("a tensor of the pickle has no storage or no element type")
        sizes = (offset, *shape, *stride)
        if not all(isinstance(size, int) and size >= 0 for size in sizes) or len(shape) != len(stride):
            raise UserError(f"a tensor of the pickle has shape {shape}, strides {stride}, offset {offset}")
        self.storage, self.dtype, self.offset, self.shape, self.stride = storage, dtype, offset, shape, stride

    def array(self) -> np.ndarray:
        """The values as a contiguous array of their own; `UserError` when the view leaves its storage."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        item = self.dtype.itemsize
        if math.prod(self.shape) * item > max(SMALL, MOST_EXPANSION * len(self.storage.data)):
            raise UserError(f"a tensor of shape {self.shape} repeats {len(self.storage.data)} bytes too often")
        if (last + 1) * item > len(self.storage.data):
            raise UserError(f"a tensor of shape {self.shape} reaches outside its storage")
        flat = np.frombuffer(self.storage.data, self.dtype, count=last + 1 - self.offset, offset=self.offset * item)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [step * item for step in self.stride]).copy()


class _Mapping(dict):
    """Stands for OrderedDict and the like; attributes such as `_metadata` of a state dict are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _NumpyType(_Sealed):
    """Stands for `numpy.dtype`: numbers and strings only, never objects."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU][0-9]{1,5}", code):
            raise UserError(f"the pickle holds a numpy array of type {code!r}; only numbers and strings are admitted")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise UserError(f"the pickle holds a numpy array of byte order {state[1]!r}")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class NumpyArray:
    """Stands for `numpy.ndarray`; the pickle sets its content by `__setstate__`."""

    __slots__ = ("_array",)

    def __init__(self) -> None:
        self._array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self._array = np.frombuffer(raw, kind.dtype()).reshape(shape, order="F" if fortran else "C")

    def array(self) -> np.ndarray:
        return self._array.copy()


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    return Tensor(storage, storage.dtype, offset, tuple(size), tuple(stride))


def _rebuild_tensor_v3(storage, offset, size, stride, _grad, _hooks, element: _ElementType, *_: object) -> Tensor:
    """Element types without a storage class of their own (unsigned, float8) come as bytes and a dtype."""
    return Tensor(storage, element.dtype, offset, tuple(size), tuple(stride))


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """Protocol 2 spells bytes as text and its encoding; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"the pickle encodes text as {encoding!r}; only latin1 is admitted")
    return text.encode("latin1")


_STORAGES = {
    **{"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": ml_dtypes.bfloat16},
    **{"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"},
    **{"ComplexFloat": "c8", "ComplexDouble": "c16"},
}
_DTYPES = {
    **{f"float{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{"bool": "?", "complex64": "c8", "complex128": "c16", "bfloat16": ml_dtypes.bfloat16},
    **{"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2},
}

_ADMITTED: dict[str, object] = {
    "collections.OrderedDict": _Mapping,
    "collections.Counter": _Mapping,
    "collections.defaultdict": _Call(lambda *_: _Mapping()),
    "argparse.Namespace": _Mapping,  # the run's options, of no use here
    "_codecs.encode": _Call(_bytes_of_text),
    "torch._utils._rebuild_tensor": _Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": _Call(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": _Call(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _Call(lambda data, *_: data),
    "torch.Size": _Call(tuple),
    "torch.device": _Call(lambda *parts: ":".join(map(str, parts))),
    "torch.storage.UntypedStorage": _ElementType("u1"),
    "torch.storage._UntypedStorage": _ElementType("u1"),
    "numpy.dtype": _NumpyType,
    "numpy.ndarray": NumpyArray,
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, complex, list, dict, tuple, int, float)},
    "builtins.bytes": _Call(lambda: b""),  # protocol 2 calls it for the empty string only
    **{f"torch.{name}Storage": _ElementType(kind) for name, kind in _STORAGES.items()},
    **{f"torch.{name}": _ElementType(kind) for name, kind in _DTYPES.items()},
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[f"{_module}.scalar"] = _Call(lambda kind, raw: np.frombuffer(raw, kind.dtype(), count=1).item())
    _ADMITTED[f"{_module}._reconstruct"] = _Call(lambda *_: NumpyArray())  # type and shape come with the state


class _Unpickler(Unpickler):
    def __init__(self, file: IO[bytes], storage_of: Callable[[str, object, object], _Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._storage_of = storage_of

    def find_class(self, module: str, name: str) -> object:
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in _ADMITTED:
            raise UserError(f"the pickle asks for {full}; only tensors, containers and numbers are admitted")
        return _ADMITTED[full]

    def persistent_load(self, pid: object) -> _Storage:
        if self._storage_of is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise UserError("the pickle refers to something that is not a storage")
        if len(pid) > 5 and pid[5] is not None:
            raise UserError("the pickle holds views of storages, as PyTorch before 0.4 wrote them; save it again")
        return self._storage_of(str(pid[2]), pid[1], pid[4])


def check_archive(archive: zipfile.ZipFile) -> None:
    """Compares the sizes in a zip archive's directory with the file's before anything is unpacked.

    PyTorch and NumPy store arrays uncompressed, and weights hardly compress: an archive that promises more than
    `MOST_EXPANSION` times what it holds, and much, is a decompression bomb (`UserError`). `zipfile` never unpacks more
    of a member than the directory says.
    """
    held = os.fstat(cast(IO[bytes], archive.fp).fileno()).st_size  # None only once the archive is closed
    promised = sum(member.file_size for member in archive.infolist())
    if promised > max(SMALL, MOST_EXPANSION * held):
        raise UserError(f"an archive of {held:,} bytes that unpacks to {promised:,}; taken for a decompression bomb")


def _read_zip(file: IO[bytes]) -> object:
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(file) as archive:
        check_archive(archive)
        names = archive.NameToInfo
        pickled = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise UserError("a zip archive without the data.pkl of a PyTorch file")
        root = pickled[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder").strip() != b"little":
            raise UserError("written on a big-endian machine; only little-endian files are read")

        def storage_of(key: str, element: object, numel: object) -> _Storage:
            if key not in storages:
                storage = _Storage(element, numel)
                record = f"{root}data/{key}"
                if record not in names:
                    raise UserError(f"storage {key} is missing from the archive")
                if (size := names[record].file_size) != storage.nbytes:
                    raise UserError(f"storage {key} has {size} bytes, {storage.nbytes} expected")
                storage.data = archive.read(record)
                storages[key] = storage
            return storages[key]

        with archive.open(pickled[0]) as stream:
            return _Unpickler(stream, storage_of).load()


def _read_legacy(file: IO[bytes]) -> object:
    first = _Unpickler(file).load()
    if isinstance(first, dict):  # a plain pickle of arrays, as detection libraries write them
        return first
    if first != _LEGACY_MAGIC:
        raise UserError("not a PyTorch checkpoint")
    protocol, system = _Unpickler(file).load(), _Unpickler(file).load()
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
        raise UserError(f"protocol {protocol!r} of PyTorch's older format is unknown, or the file is big-endian")
    storages: dict[str, _Storage] = {}

    def storage_of(key: str, element: object, numel: object) -> _Storage:
        return storages.setdefault(key, _Storage(element, numel))

    tree = _Unpickler(file, storage_of).load()
    for key in map(str, _Unpickler(file).load()):
        if key not in storages:
            raise UserError(f"storage {key} belongs to no tensor")
        storage = storages.pop(key)
        (numel,) = struct.unpack("<q", file.read(8))
        storage.data = file.read(min(storage.nbytes, os.fstat(file.fileno()).st_size))
        if numel != storage.numel or len(storage.data) != storage.nbytes:
            raise UserError(f"storage {key} is truncated: {len(storage.data)} of {storage.nbytes} bytes")
    if storages:
        raise UserError(f"storage {next(iter(storages))} is missing")
    return tree


def load(path: Path) -> object:
    """What `torch.save` wrote at `path`, zip or older format: containers, numbers, `Tensor` and `NumpyArray` leaves.

    `UserError` when the file is truncated or damaged, or its pickle names a global that is not admitted.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            return _read_zip(file) if is_zip else _read_legacy(file)
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way at all: in each it is the file's fault
            kind = "zip archive" if is_zip else "pickle"
            raise UserError(f"truncated or damaged {kind} ({type(error).__name__}: {error})") from error
