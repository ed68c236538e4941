"""Arrays as one safetensors file, by the library of that name, which is imported when it is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from shike_jax.errors import UserError

# The format's name of each element type that PyTorch's networks have; the library's own reader knows only NumPy's.
_DTYPES = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    "C64": np.dtype("<c8"),
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def from_bytes(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file's content, which may be changed, and its remarks; UserError for a damaged file."""
    import safetensors

    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"not a whole safetensors file ({error})") from error
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise UserError(f"{name} has element type {tensor['dtype']}; expected one of {', '.join(_DTYPES)}")
        arrays[name] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, header.get("__metadata__", {})


def to_bytes(arrays: Mapping[str, np.ndarray], remarks: Mapping[str, str] | None = None) -> bytes:
    """The content of a file with these remarks; UserError for an element type that the format does not have."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    try:
        return save({name: np.asarray(array, order="C") for name, array in arrays.items()}, dict(remarks or {}) or None)
    except SafetensorError as error:
        raise UserError(f"safetensors cannot hold these arrays ({error})") from error
