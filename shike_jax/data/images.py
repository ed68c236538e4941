"""One encoded image to uint8 RGB pixels: robust decoding, and the crops of training and evaluation.

Conventions: EXIF rotation is applied; grey and CMYK become RGB; 16 bit become 8; transparent pixels are laid on white;
of an animation the first frame counts. Resizing is Pillow's antialiased bilinear, as in torchvision.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 89_478_485  # Pillow's own warning limit: 256 MiB of RGB; more is taken for a decompression bomb
GAP = 2  # a JPEG is decoded at least at twice the size it will have, which keeps the resizing antialiased
EXIF_ORIENTATION = 0x0112


class ImageError(Exception):
    """An image that cannot be decoded; the message is the reason."""


def decode(encoded: bytes) -> np.ndarray:
    """Decodes a whole image: uint8 [H, W, 3].

    Raises:
      ImageError: not an image, truncated, damaged or too large.
    """
    image = _open(encoded)
    return np.asarray(_to_rgb(image))


def random_resized_crop(
    encoded: bytes, size: int, seed: np.ndarray, scale: tuple[float, float] = (0.08, 1.0), flip: bool = True
) -> np.ndarray:
    """Decodes the random part of an image that a training step sees: uint8 [size, size, 3].

    Args:
      seed: [2] uint32; box and flip depend on it and on the image's shape alone.
      scale: range of the box's share of the area; its aspect ratio is log-uniform in 3/4..4/3.
      flip: mirror with probability 1/2.

    Raises:
      ImageError: see `decode`.
    """
    image = _open(encoded)
    width, height = _upright_size(image)
    uniforms = _uniforms(seed, 41)
    left, top, w, h = crop_box(width, height, scale, uniforms[:40])
    rgb = _to_rgb(image, (size / w, size / h))
    across, down = rgb.width / width, rgb.height / height  # below 1 after a reduced decoding
    box = (round(left * across), round(top * down), round((left + w) * across), round((top + h) * down))
    result = rgb.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(result)
    return pixels[:, ::-1] if flip and uniforms[40] < 0.5 else pixels


def center_crop(encoded: bytes, size: int, resize: int) -> np.ndarray:
    """Resizes the short side to `resize` pixels and takes the central square: uint8 [size, size, 3].

    Raises:
      ImageError: see `decode`.
    """
    image = _open(encoded)
    width, height = _upright_size(image)
    short = min(width, height)
    new_width, new_height = int(resize * width / short), int(resize * height / short)
    rgb = _to_rgb(image, (resize / short, resize / short))
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

    Args:
      uniforms: [40] in [0, 1): four for each try (area, ratio, left, top).
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


def _uniforms(seed: np.ndarray, count: int) -> np.ndarray:
    key = int(seed[0]) << 32 | int(seed[1])
    raw = np.random.Philox(key=key).random_raw(count)  # the raw stream never changes between NumPy versions
    return (raw >> np.uint64(11)) * 2.0**-53


def _open(encoded: bytes) -> Image.Image:
    """Reads the header only."""
    try:
        image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's plugins raise whatever a damaged header makes them stumble over
        raise ImageError(_reason(encoded, error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to lose the image
        return 1


def _to_rgb(image: Image.Image, scale: tuple[float, float] = (1.0, 1.0)) -> Image.Image:
    """Loads the pixels, upright, in RGB; a JPEG that `scale` will shrink much is decoded at 1/2, 1/4 or 1/8 size."""
    try:
        orientation = _orientation(image)
        if image.format == "JPEG" and orientation == 1:
            least = (math.ceil(GAP * image.width * scale[0]), math.ceil(GAP * image.height * scale[1]))
            image.draft(None, least)
        image.load()
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode == "RGB":
            return image
        if image.mode.startswith("I"):  # 16 bit grey; Pillow's own conversion would clip instead of scale
            high_bytes = np.asarray(image).astype(np.int64) >> 8
            return Image.fromarray(high_bytes.clip(0, 255).astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # see _open
        raise ImageError(_reason(b"", error)) from None


def _reason(encoded: bytes, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "empty file" if not encoded else "not an image of a known format"
    return " ".join(str(error).split()) or type(error).__name__
