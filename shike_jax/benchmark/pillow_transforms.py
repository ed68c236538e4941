"""The same augmentation with plain Pillow and NumPy, to check and to time against."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from shike_jax.augment import policies

GREY = (128, 128, 128)


def autoaugment_operation(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """One AutoAugment operation at level 0 .. 9, as the PyTorch port of the CIFAR-10 policy has it."""
    width, height = image.size
    levels: dict[str, Any] = {
        "shear_x": np.linspace(0, 0.3, 10),
        "shear_y": np.linspace(0, 0.3, 10),
        "translate_x": np.linspace(0, 150 / 331, 10),
        "translate_y": np.linspace(0, 150 / 331, 10),
        "rotate": np.linspace(0, 30, 10),
        "posterize": [8, 8, 7, 7, 6, 6, 5, 5, 4, 4],
        "solarize": np.linspace(256, 0, 10),
    }
    magnitude = float(levels.get(name, np.linspace(0, 0.9, 10))[level])
    if name == "shear_x":
        matrix = (1.0, sign * magnitude, 0.0, 0.0, 1.0, 0.0)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)
    if name == "shear_y":
        matrix = (1.0, 0.0, 0.0, sign * magnitude, 1.0, 0.0)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)
    if name == "translate_x":
        return image.transform(
            image.size, Image.Transform.AFFINE, (1, 0, sign * magnitude * width, 0, 1, 0), fillcolor=GREY
        )
    if name == "translate_y":
        return image.transform(
            image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, sign * magnitude * height), fillcolor=GREY
        )
    if name == "rotate":
        turned = image.convert("RGBA").rotate(magnitude)
        return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert("RGB")
    if name == "posterize":
        return ImageOps.posterize(image, int(magnitude))
    if name == "solarize":
        return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]  # fractions are compared too
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(ImageOps, name)(image)
    return getattr(ImageEnhance, name.capitalize())(image).enhance(1 + sign * magnitude)


def randaugment_argument(name: str, level: float, sign: int) -> float:
    """Argument of a RandAugment operation at level 0 .. 10, in the non-increasing variants of the public recipe."""
    part = level / 10
    return {
        "Rotate": sign * part * 30,
        "ShearX": sign * part * 0.3,
        "ShearY": sign * part * 0.3,
        "TranslateXRel": sign * part * 0.45,
        "TranslateYRel": sign * part * 0.45,
        "Posterize": int(part * 4),
        "Solarize": int(part * 256),
        "SolarizeAdd": int(part * 110),
        "AutoContrast": 0,
        "Equalize": 0,
        "Invert": 0,
    }.get(name, part * 1.8 + 0.1)


def randaugment_operation(image: Image.Image, name: str, argument: float, cubic: bool, fill: tuple) -> Image.Image:
    """One RandAugment operation."""
    width, height = image.size
    filter_ = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR

    def transform(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, filter_, fillcolor=fill)

    if name == "Rotate":
        return image.rotate(argument, filter_, fillcolor=fill)
    if name == "ShearX":
        return transform(1, argument, 0, 0, 1, 0)
    if name == "ShearY":
        return transform(1, 0, 0, argument, 1, 0)
    if name == "TranslateXRel":
        return transform(1, 0, argument * width, 0, 1, 0)
    if name == "TranslateYRel":
        return transform(1, 0, 0, 0, 1, argument * height)
    if name == "Posterize":
        # Recent Pillow refuses 0 bits; older versions, which the recipe was written for, give black.
        return ImageOps.posterize(image, int(argument)) if argument else Image.new("RGB", image.size)
    if name == "Solarize":
        return ImageOps.solarize(image, int(argument))
    if name == "SolarizeAdd":
        table = [min(255, value + int(argument)) if value < 128 else value for value in range(256)]
        return image.point(table * 3)
    if name in ("AutoContrast", "Equalize", "Invert"):
        return getattr(ImageOps, name.lower())(image)
    return getattr(ImageEnhance, name)(image).enhance(argument)


def cifar_transform(
    image: np.ndarray, random: np.random.RandomState, mean: np.ndarray, std: np.ndarray, pad: int = 4, cutout: int = 16
) -> np.ndarray:
    """Crop, flip, AutoAugment, Cutout and normalisation of one uint8 [H, W, 3] image, the way torchvision does it."""
    height, width, _ = image.shape
    wide = ImageOps.expand(Image.fromarray(image), pad)
    top, left = random.randint(0, 2 * pad + 1, size=2)
    picture = wide.crop((left, top, left + width, top + height))
    if random.random_sample() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for chance, name, level in policies.AUTOAUGMENT_CIFAR[random.randint(len(policies.AUTOAUGMENT_CIFAR))]:
        if random.random_sample() < chance:
            picture = autoaugment_operation(picture, name, level, random.choice([-1, 1]))
    out = np.asarray(picture, np.float32) / 255
    y, x = random.randint(height), random.randint(width)
    half = cutout // 2
    out[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return (out - mean) / std


def randaugment_transform(image: np.ndarray, random: np.random.RandomState, mean: np.ndarray, std: np.ndarray):
    """RandAugment (2 operations, magnitude 10, std 0.5, probability 0.5) and normalisation of one uint8 [H, W, 3]."""
    picture = Image.fromarray(image)
    fill = tuple(round(255 * float(value)) for value in mean)
    for _ in range(2):
        name = policies.RANDAUGMENT[random.randint(len(policies.RANDAUGMENT))][0]
        if random.random_sample() < 0.5:
            level = min(10, random.normal(10, 0.5))
            argument = randaugment_argument(name, level, random.choice([-1, 1]))
            picture = randaugment_operation(picture, name, argument, random.random_sample() < 0.5, fill)
    return (np.asarray(picture, np.float32) / 255 - mean) / std
