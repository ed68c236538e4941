"""The same augmentation with plain Pillow and NumPy, to time against."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from shike_jax.augment import policies
from shike_jax.augment.host import autoaugment_operation, randaugment_operation


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
        name, _, argument_of = policies.RANDAUGMENT[random.randint(len(policies.RANDAUGMENT))]
        if random.random_sample() < 0.5:
            level = min(10, random.normal(10, 0.5))
            argument = argument_of(level, random.choice([-1, 1]))
            picture = randaugment_operation(picture, name, argument, random.random_sample() < 0.5, fill)
    return (np.asarray(picture, np.float32) / 255 - mean) / std
