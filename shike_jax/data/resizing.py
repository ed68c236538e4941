"""The resizing of training views: antialiased bilinear, by the processor's vectors where their library is installed.

Resizing takes longer than decoding when Pillow does it. `cykooz_resizer` does the same sums, integers of 8 bits under
a triangle as wide as the scale, in less than a third of the time; each value is Pillow's or its neighbour among the
256, where rounding falls the other way, and all processors give the same ones. It has no wheels for Linux on ARM, where
Pillow resizes. Evaluation views are Pillow's everywhere (`images.center_crop`): they decide published accuracies.
"""

from __future__ import annotations

import threading
from importlib import metadata

from PIL import Image

try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

_own = threading.local()  # a resizer keeps memory from image to image, so that each thread needs one


def resized(image: Image.Image, size: int) -> Image.Image:
    """The whole of an RGB image as [size, size, 3]."""
    if cykooz_resizer is None:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if not hasattr(_own, "resizer"):
        bilinear = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
        _own.resizer = cykooz_resizer.Resizer()
        _own.options = cykooz_resizer.ResizeOptions(resize_alg=bilinear)
    result = Image.new("RGB", (size, size), None)  # not filled: every pixel is written
    _own.resizer.resize_pil(image, result, _own.options)
    return result


def resizer() -> str:
    """What resizes training views here, with its version."""
    name = "pillow" if cykooz_resizer is None else "cykooz-resizer"
    return f"{name} {metadata.version(name)}"
