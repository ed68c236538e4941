"""The safetensors format, read and written: 8 bytes of header length, a JSON header, the raw values.

Written out here rather than imported: the format is this page, and a package would be one more dependency of every
installation for a command that most runs never call.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeGuard

import ml_dtypes
import numpy as np

from shike_jax.errors import UserError

_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_DTYPES = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise UserError("a name occurs twice in the header")
    return entries


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _entry(name: str, entry: object) -> tuple[np.dtype, list[int], int, int]:
    """The checked dtype, shape, first and last byte of one tensor."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = _DTYPES.get(str(fields.get("dtype"))), fields.get("shape"), fields.get("data_offsets")
    if dtype is None or not _is_sizes(shape) or not _is_sizes(span) or len(span) != 2:
        raise UserError(f"the header's entry of {name} is not understood: {json.dumps(entry)[:100]}")
    if span[1] - span[0] != math.prod(shape) * dtype.itemsize:
        raise UserError(f"the header gives {name} {span[1] - span[0]} bytes, not those of shape {shape} in {dtype}")
    return dtype, shape, span[0], span[1]


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file. `UserError` when it is truncated or its header is inconsistent."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else _MAX_HEADER
    if length > min(_MAX_HEADER, len(data) - 8):
        raise UserError(f"truncated: {len(data)} bytes are too few for the header")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise UserError("the header is not a JSON object")
    header.pop("__metadata__", None)
    values, arrays, end = memoryview(data)[8 + length :], {}, 0
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != end:
            raise UserError(f"the values of {name} begin at byte {start}, {end} expected")
        if stop > len(values):
            raise UserError(f"truncated: {name} ends at byte {stop} of {len(values)}")
        arrays[name] = np.frombuffer(values[start:stop], dtype).reshape(shape).copy()
        end = stop
    if end != len(values):
        raise UserError(f"{len(values) - end} bytes follow the last tensor")
    return {name: arrays[name] for name in entries}


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays`, widest elements first so that each tensor is aligned. `UserError` for a dtype without a code."""
    header, end = {}, 0
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    for name, array in ordered:
        code = _CODES.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise UserError(f"{name} has dtype {array.dtype}, which safetensors cannot hold")
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, array in ordered:
        file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
