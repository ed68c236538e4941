"""Loads an exported classifier: needs jax and numpy (and Pillow for picture files), nothing else.

    python load.py photo.jpg other.png       the best classes of pictures
    python load.py images.npy output.npz     uint8 [N,S,S,3] to probabilities [N,C] and logits [M,N,C]

`shike_jax.export` puts this file, as load.py, beside the function that it loads; change it as you like.
"""

import json
import math
import pathlib
import sys

import jax
import numpy as np
from jax import export


class Exported:
    """The classifier in a folder written by `python -m shike_jax.export`."""

    def __init__(self, folder):
        """Reads model.json (class names, preprocessing), weights.npz and the serialised function."""
        folder = pathlib.Path(folder)
        self.meta = json.loads((folder / "model.json").read_text())
        function = export.deserialize(bytearray((folder / "function.jax").read_bytes()))
        with np.load(folder / "weights.npz") as arrays:
            self._weights = jax.device_put(dict(arrays))
        self._call = jax.jit(function.call)

    def __call__(self, images):
        """Pixels uint8 [N,S,S,3], any N, to `probabilities` [N,C] and `logits` [M,N,C] of the M experts."""
        return jax.device_get(self._call(self._weights, images))

    def picture(self, path):
        """A picture file as the network wants it: short side to `resize`, central square; uint8 [S,S,3]."""
        from PIL import Image, ImageOps

        size, resize = self.meta["image_size"], self.meta["resize"]
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) != 1
            width, height = image.size
            if image.format == "JPEG" and not turned:  # may be decoded at 1/2, 1/4 or 1/8, twice the need at least
                scale = 2 * resize / min(width, height)
                image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
            if turned:
                image = ImageOps.exif_transpose(image)
                width, height = image.size
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("RGB")
        new_width, new_height = int(resize * width / min(width, height)), int(resize * height / min(width, height))
        across, down = image.width / new_width, image.height / new_height
        left, top = round((new_width - size) / 2), round((new_height - size) / 2)
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def main(arguments):
    """Runs the two examples above."""
    classifier = Exported(pathlib.Path(__file__).parent)
    if arguments and arguments[0].endswith(".npy"):
        np.savez(arguments[1], **classifier(np.load(arguments[0])))
    elif arguments:
        shares = classifier(np.stack([classifier.picture(path) for path in arguments]))["probabilities"]
        for path, share in zip(arguments, shares, strict=True):
            best = np.argsort(-share, kind="stable")[:5]
            print(path, *(f"{classifier.meta['class_names'][c]} {100 * share[c]:.1f} %" for c in best), sep="  ")
    else:
        print(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
