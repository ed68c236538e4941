"""One encoded image to uint8 RGB pixels: robust decoding, and the crops of training and evaluation.

Conventions: EXIF rotation is applied; grey and CMYK become RGB; 16 and 32 bits and floats become 8 bits; transparent
pixels are laid on white; of an animation the first frame counts. Resizing is antialiased bilinear, as in torchvision:
Pillow's in evaluation, that of `resizing` in training.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from shike_jax.data.resizing import resized
from shike_jax.errors import reason

MAX_PIXELS = 89_478_485  # Pillow's own warning limit: 256 MiB of RGB; more is taken for a decompression bomb
GAP = 2  # a JPEG is decoded at least at twice the size it will have, which keeps the resizing antialiased


_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
UPRIGHT = dict(enumerate((Image.Transpose[turn] for turn in _TURNS.split()), 2))  # by EXIF orientation, 2 to 8


class ImageError(Exception):
    """Bytes that are no image, or one that is truncated, damaged or too large; the message is the reason."""


def _told(view: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Whatever a function of encoded bytes stumbles over becomes the reason of that image."""

    @functools.wraps(view)
    def told(encoded: bytes, *arguments: Any, **settings: Any) -> np.ndarray:
        try:
            return view(encoded, *arguments, **settings)
        except ImageError:
            raise
        except Image.DecompressionBombError:
            raise ImageError(f"more than {MAX_PIXELS} pixels") from None
        except Image.UnidentifiedImageError:
            raise ImageError("not an image of a known format" if encoded else "empty file") from None
        except Exception as error:  # Pillow's plugins raise whatever a damaged file makes them stumble over
            raise ImageError(reason(error)) from None

    return told


CROP_DRAWS = 41  # of an image's stream: ten tries of four, and the flip


@_told
def random_resized_crop(
    encoded: bytes, size: int, seed: np.ndarray, scale: tuple[float, float] = (0.08, 1.0), flip: bool = True
) -> np.ndarray:
    """Decodes the random part of an image that a training step sees: uint8 [size, size, 3].

    Box and flip (mirrored with probability 1/2) depend on the seed, uint32 [2], and on the image's shape alone. The box
    has a share of the area within `scale`; its aspect ratio is log-uniform in 3/4..4/3.
    """
    image = _open(encoded)
    width, height = _upright_size(image)
    uniforms = uniforms_of(seed, CROP_DRAWS)
    left, top, w, h = crop_box(width, height, scale, uniforms[:40])
    rgb = _load(image, (size / w, size / h))
    across, down = rgb.width / width, rgb.height / height  # below 1 after a reduced decoding
    box = (round(left * across), round(top * down), round((left + w) * across), round((top + h) * down))
    result = resized(rgb.crop(box), size)
    if flip and uniforms[40] < 0.5:  # by Pillow: NumPy copies a mirrored view pixel by pixel, five times as slowly
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(result)


@_told
def center_crop(encoded: bytes, size: int, resize: int) -> np.ndarray:
    """Resizes the short side to `resize` pixels and takes the central square: uint8 [size, size, 3]."""
    image = _open(encoded)
    width, height = _upright_size(image)
    short = min(width, height)
    new_width, new_height = int(resize * width / short), int(resize * height / short)
    rgb = _load(image, (resize / short, resize / short))
    across, down = rgb.width / new_width, rgb.height / new_height
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box))


def center_crop_pixels(pixels: np.ndarray, size: int, resize: int) -> np.ndarray:
    """The same view of an image that is decoded already: uint8 [H, W, 3] to uint8 [size, size, 3]."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "BMP")
    return center_crop(stored.getvalue(), size, resize)


def crop_box(width: int, height: int, scale: tuple[float, float], uniforms: np.ndarray) -> tuple[int, int, int, int]:
    """Returns (left, top, width, height) of torchvision's RandomResizedCrop: ten tries, then the largest central box.

    The uniforms [40] in [0, 1) are four for each try: area, ratio, left, top.
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for area_draw, ratio_draw, left_draw, top_draw in uniforms.reshape(10, 4).tolist():
        area = width * height * (scale[0] + (scale[1] - scale[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1)), w, h
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


def uniforms_of(seed: np.ndarray, count: int) -> np.ndarray:
    """The first `count` numbers in 0 .. 1 of the stream of an image's seed, uint32 [2]."""
    key = int(seed[0]) << 32 | int(seed[1])
    raw = np.random.Philox(key=key).random_raw(count)  # the raw stream never changes between NumPy versions
    return (raw >> np.uint64(11)) * 2.0**-53


def _open(encoded: bytes) -> Image.Image:
    """Reads the header only."""
    image = Image.open(io.BytesIO(encoded))
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if orientation(image) >= 5 else image.size


def _load(image: Image.Image, scale: tuple[float, float]) -> Image.Image:
    """`to_rgb`, but a JPEG that `scale` will shrink much is decoded at 1/2, 1/4 or 1/8 of its size."""
    if image.format == "JPEG" and orientation(image) == 1:
        least = (math.ceil(GAP * image.width * scale[0]), math.ceil(GAP * image.height * scale[1]))
        image.draft(None, least)
    return to_rgb(image)


# `export` writes these two functions into a file that runs without this package: Pillow, NumPy and UPRIGHT are there.
def orientation(image: Image.Image) -> int:
    """The number by which EXIF tells how the image was held: 1 is upright, from 5 on it lies on its side."""
    if tiles := getattr(image, "tile", None):
        image.info["stored"] = tiles[0][3]  # for `to_rgb`: to find EXIF Pillow loads a PNG, which forgets this
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF is no reason to lose the image
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Loads an image opened by Pillow: upright, RGB of 8 bits, transparent pixels laid on white.

    Integers of more than 8 bits keep the highest 8 of their 16 bits, or of as many bits as the largest value of a
    32-bit image needs. Floats do not say which value is white: it is the first of 1, 255 and 65535 that no pixel
    exceeds, else the largest value of the image. Pillow keeps 8 bits of the colours of a 16-bit PNG, so that a colour
    declared transparent (its tRNS chunk) is compared by these; that of a grey image is compared by all 16.
    """
    tiles = getattr(image, "tile", None)  # only images opened from a file have them, and only until they are loaded
    stored = tiles[0][3] if tiles else image.info.get("stored", "")  # how the file stores a pixel
    image.load()
    if (turned := orientation(image)) != 1:
        image = image.transpose(UPRIGHT[turned])
    clear = image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F":
            largest = float(np.where(np.isfinite(values), values, 0).max())
            white = next((limit for limit in (1.0, 255.0, 65535.0) if largest <= limit), largest)
            grey = np.rint(np.nan_to_num(values, nan=0.0).clip(0, white) * (255 / white)).astype(np.uint8)
        else:
            bits = max(16, int(values.max()).bit_length())
            grey = (values.clip(0) >> (bits - 8)).astype(np.uint8)
        if clear is not None:
            grey = np.where(values == clear, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if clear is not None and stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif clear is not None and stored in ("L;2", "L;4"):  # Pillow spreads the grey values over 0..255, but not this one
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[stored]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
