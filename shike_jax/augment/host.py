"""The policies' operations with Pillow, one image at a time, for the pipeline on the host: the device's counterpart.

A policy runs here where a device fetches single pixels slowly: large images on a TPU (`config.augment.place`). What is
drawn for an image depends on its own seed alone, as its crop does; the draws are not those of the device, their
probabilities are.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from shike_jax.augment import policies

GREY = (128, 128, 128)


def autoaugment_operation(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """One AutoAugment operation at level 0 .. 9, as the PyTorch port of the CIFAR-10 policy has it."""
    magnitude = float(policies.AUTOAUGMENT_LEVELS[name][level])
    signed = sign * magnitude
    if name.startswith("shear"):
        matrix = (1.0, signed, 0.0, 0.0, 1.0, 0.0) if name == "shear_x" else (1.0, 0.0, 0.0, signed, 1.0, 0.0)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)
    if name.startswith("translate"):
        x, y = (signed * image.width, 0) if name == "translate_x" else (0, signed * image.height)
        return image.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y), fillcolor=GREY)
    if name == "rotate":
        turned = image.convert("RGBA").rotate(magnitude)
        return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert("RGB")
    if name == "posterize":
        return ImageOps.posterize(image, int(magnitude))
    if name == "solarize":
        return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]  # fractions are compared too
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(ImageOps, name)(image)
    return getattr(ImageEnhance, name.capitalize())(image).enhance(1 + signed)


def randaugment_operation(image: Image.Image, name: str, argument: float, cubic: bool, fill: tuple) -> Image.Image:
    """One RandAugment operation; its argument is that of the table `policies.RANDAUGMENT`."""
    filter_ = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    matrices = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateXRel": (1, 0, argument * image.width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, argument * image.height),
    }
    if name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[name], filter_, fillcolor=fill)
    if name == "Rotate":
        return image.rotate(argument, filter_, fillcolor=fill)
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


HostPolicy = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_host_policy(policy: str, policy_args: Mapping[str, Any], mean: Sequence[float]) -> tuple[HostPolicy, int]:
    """The policy as a function of (image uint8 [H, W, 3], uniforms [n] in 0 .. 1) -> uint8 [H, W, 3], and n.

    It is one of the package's, with the parameters and the mean that the device's form has.
    """
    if policy == "autoaugment_cifar":
        return _autoaugment, 5
    fill = tuple(int(value) for value in np.round(255 * np.asarray(mean)))

    def randaugment(image: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        for which, noise, sign, cubic, gate in uniforms.reshape(-1, 5):
            if gate < policy_args["prob"]:
                name, _, argument_of = policies.RANDAUGMENT[int(which * len(policies.RANDAUGMENT))]
                normal = statistics.NormalDist().inv_cdf(max(noise, 2.0**-54))
                level = policy_args["magnitude"] + policy_args["magnitude_std"] * normal
                level = min(max(level, 0), policies.MAX_LEVEL)
                argument = argument_of(level, 1 if sign < 0.5 else -1)
                picture = randaugment_operation(picture, name, argument, cubic < 0.5, fill)
        return np.asarray(picture)

    return randaugment, 5 * int(policy_args["layers"])


def _autoaugment(image: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One of the 25 sub-policies and each of its two operations with its own probability."""
    picture = Image.fromarray(image)
    which, layers = uniforms[0], uniforms[1:].reshape(2, 2)
    subpolicy = policies.AUTOAUGMENT_CIFAR[int(which * len(policies.AUTOAUGMENT_CIFAR))]
    for (chance, name, level), (sign, gate) in zip(subpolicy, layers, strict=True):
        if gate < chance:
            picture = autoaugment_operation(picture, name, level, 1 if sign < 0.5 else -1)
    return np.asarray(picture)
