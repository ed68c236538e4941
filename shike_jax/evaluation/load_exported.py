"""Loads an exported classifier: needs jax, numpy and flatbuffers (and Pillow for picture files).

    python load.py photo.jpg other.png       the best classes of pictures
    python load.py images.npy output.npz     uint8 [N,S,S,3] to probabilities [N,C] and logits [M,N,C]

`shike_jax.commands.export` puts this file, as load.py, next to the function that it loads, with the two functions of
`shike_jax.data.images` in place of their import; change it as you like.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

import jax
import numpy as np
from jax import export

from shike_jax.data.images import orientation, to_rgb

try:
    from PIL import Image

    _TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
    UPRIGHT = dict(enumerate((Image.Transpose[turn] for turn in _TURNS.split()), 2))  # by EXIF orientation, 2 to 8
except ImportError:  # arrays of pixels need no Pillow
    Image = None  # type: ignore[assignment]

MAX_PIXELS = 89_478_485  # of a picture; more is taken for a decompression bomb


class Exported:
    """The classifier in a folder written by `python -m shike_jax export`."""

    def __init__(self, folder):
        """Reads model.json (class names, preprocessing), weights.npz and the serialised function."""
        folder = pathlib.Path(folder)
        self.meta = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        try:
            function = export.deserialize(bytearray((folder / "function.jax").read_bytes()))
        except Exception as error:
            written = self.meta.get("versions", {}).get("jax", "an unknown version")
            raise RuntimeError(
                f"{folder / 'function.jax'} was written by jax {written} and cannot be read by jax {jax.__version__}: "
                f"install an older jax, or make it again: python -m shike_jax export --again={folder}"
            ) from error
        with np.load(folder / "weights.npz") as arrays:
            self._weights = jax.device_put(dict(arrays))
        self._call = jax.jit(function.call)

    def __call__(self, images):
        """Pixels uint8 [N,S,S,3], any N, to `probabilities` [N,C] and `logits` [M,N,C] of the M experts."""
        count = len(images)
        if not count:  # the function takes at least one
            images = np.zeros((1, *np.shape(images)[1:]), np.asarray(images).dtype)
        found = jax.device_get(self._call(self._weights, images))
        return {name: values[..., :count, :] for name, values in found.items()}

    def picture(self, path):
        """A picture file as the network wants it: short side to `resize`, central square; uint8 [S,S,3].

        Raises:
          ValueError: it cannot be read, or is too large; the message names it and says why.
        """
        try:
            return self._view(path)
        except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
            raise ValueError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error

    def _view(self, path):
        size, resize = self.meta["image_size"], self.meta["resize"]
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels, more than {MAX_PIXELS}")
            turned = orientation(opened)
            width, height = opened.size[::-1] if turned >= 5 else opened.size
            if opened.format == "JPEG" and turned == 1:  # may be decoded at 1/2, 1/4 or 1/8, twice the need at least
                scale = 2 * resize / min(width, height)
                opened.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
            image = to_rgb(opened)
        new_width, new_height = int(resize * width / min(width, height)), int(resize * height / min(width, height))
        across, down = image.width / new_width, image.height / new_height
        left, top = round((new_width - size) / 2), round((new_height - size) / 2)
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def printable(text):
    """The text; with escapes that can be read if it holds characters that would control the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def main(arguments):
    """Runs the two examples above."""
    classifier = Exported(pathlib.Path(__file__).parent)
    if arguments and arguments[0].endswith(".npy"):
        np.savez(arguments[1], **classifier(np.load(arguments[0])))
    elif arguments:
        pictures = {}
        for path in arguments:
            try:
                pictures[path] = classifier.picture(path)
            except ValueError as error:
                print(printable(f"skipped {error}"), file=sys.stderr)
        if not pictures:
            sys.exit(1)
        shares = classifier(np.stack(list(pictures.values())))["probabilities"]
        for path, share in zip(pictures, shares, strict=True):
            best = np.argsort(-share, kind="stable")[:5]
            names = (classifier.meta["class_names"][c] for c in best)
            found = (f"{name} {100 * share[c]:.1f} %" for name, c in zip(names, best, strict=True))
            print(*(printable(text) for text in (path, *found)), sep="  ")
    else:
        print(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
