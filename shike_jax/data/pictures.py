"""Pictures to predict: files, folders and lists of them, decoded ahead by threads, broken ones left out and noted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from shike_jax.common.paths import EXTENSIONS, files_below, is_image
from shike_jax.common.text import lines_of
from shike_jax.data.host_pipeline import ahead
from shike_jax.data.images import center_crop, center_crop_pixels
from shike_jax.errors import UserError, naming, reason


def find(paths: Sequence[str]) -> list[str]:
    """Returns the image files that paths name, in order: a folder gives all below it by name, a .txt its lines.

    Lines of a list are paths relative to the list's folder, else to the current one; empty lines and `#` lines are
    passed over. Listed files may be missing: reading them will say so. UserError for another path that does not exist,
    a folder without images, an empty list.
    """
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            with naming(f"--images={path}"):
                found = [os.path.join(path, name) for name in files_below(path) if is_image(os.path.basename(name))]
            expected = f"expected files ending in {', '.join(EXTENSIONS)}"
        elif not os.path.exists(path):
            raise UserError(f"--images={path}: no such file or folder")
        elif path.lower().endswith(".txt"):
            found = _listed(Path(path))
            expected = "expected one path per line"
        else:
            found, expected = [path], ""
        if not found:
            raise UserError(f"--images={path}: holds no image; {expected}")
        files += found
    return files


def _listed(path: Path) -> list[str]:
    with naming(f"--images={path}", "a list of paths in UTF-8"):
        lines = [line.strip() for line in lines_of(path.read_text(encoding="utf-8-sig"))]
    found = {line: path.parent / line for line in lines if line and not line.startswith("#")}
    # `os.path.exists` answers False to what can be no path (too long, a NUL); reading such a line says why.
    return [str(file) if os.path.exists(file) else line for line, file in found.items()]


def read_array(path: str, one: jax.ShapeDtypeStruct | None = None) -> np.ndarray:
    """Opens a .npy of images: uint8 [N,H,W,3], or float [N,H,W,3] already normalised; one image gets an axis.

    Where the examples are no images, `one` has shape and dtype of an example: arrays are [N, *shape] then. UserError
    for an array of another shape or type.
    """
    with naming(f"--images={path}", "a readable .npy file"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):  # an archive of arrays under the wrong name
            raise ValueError("it holds several arrays")
    if one is not None:
        if array.shape[1:] != one.shape or array.dtype.kind != np.dtype(one.dtype).kind or not array.size:
            expected = f"{one.dtype} {['N', *one.shape]}"
            raise UserError(f"--images={path}: an array {array.dtype} {array.shape}; expected {expected}")
        return array.astype(one.dtype)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise UserError(f"--images={path}: an array of shape {array.shape}; expected [N, height, width, 3]")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"--images={path}: an array of {array.dtype}; expected uint8, or float32 already normalised")
    return array


def batches(
    files: Sequence[str], size: int, resize: int, batch_size: int, skipped: dict[str, str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields (names, uint8 [b,S,S,3]) of pictures in the evaluation view: short side `resize`, then the central square.

    b <= batch size; one batch is decoded ahead. `skipped` gets each file that cannot be read, and why.
    """

    def view_of(file: str) -> np.ndarray | str:
        try:
            with open(file, "rb") as opened:
                return center_crop(opened.read(), size, resize)
        except Exception as error:  # an ImageError, an OSError, a ValueError (a NUL in the name), ...
            return reason(error)

    chunks = (files[i : i + batch_size] for i in range(0, len(files), batch_size))
    with ThreadPoolExecutor(thread_name_prefix="pictures") as pool:
        for tasks in ahead(([(file, pool.submit(view_of, file)) for file in chunk] for chunk in chunks), 1):
            found = [(file, task.result()) for file, task in tasks]
            skipped |= {file: view for file, view in found if isinstance(view, str)}
            if good := [(file, view) for file, view in found if not isinstance(view, str)]:
                yield [file for file, _ in good], np.stack([view for _, view in good])


def array_batches(array: np.ndarray, name: str, size: int, resize: int, batch_size: int) -> Iterator:
    """Yields (names, images) of an array from `read_array`: floats as they are, uint8 brought to the evaluation view.

    uint8 images of just the right size are taken as they are, as in the training of small images.
    """
    for start in range(0, len(array), batch_size):
        images = np.asarray(array[start : start + batch_size])
        are_pictures = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3
        if images.dtype.kind == "f":
            images = images.astype(np.float32)
        elif are_pictures and images.shape[1:3] != (size, size):
            images = np.stack([center_crop_pixels(one, size, resize) for one in images])
        yield [f"{name}[{i}]" for i in range(start, start + len(images))], images
