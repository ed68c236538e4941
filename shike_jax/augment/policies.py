"""AutoAugment (CIFAR-10) and RandAugment: one table of operations and ranges each, and how choices are made.

A policy draws, from one example's key, the operation and its argument for each of its layers (`Choice`), and applies
them to one image: either the chosen operation alone, or all of them with a selection after.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.augment import affine, ops
from shike_jax.methods.tables import POLICIES

Array = jax.Array


class Choice(NamedTuple):
    """One operation for one image, or arrays of them with leading axes: JAX arrays, in the policies' tables NumPy's."""

    kind: Any = np.int32(0)  # index into the kinds of the layer
    value: Any = np.float32(0)  # factor, threshold, bits or addend
    fixed: Any = np.zeros(6, np.int32)  # 16.16 matrix of a nearest-neighbour map
    matrix: Any = np.zeros(6, np.float32)  # matrix of an interpolated map
    cubic: Any = np.bool_(True)  # bicubic rather than bilinear


KINDS: dict[str, Callable[[Array, Choice, Array], Array]] = {
    "identity": lambda image, choice, fill: image,
    "nearest": lambda image, choice, fill: affine.affine_nearest(image, choice.fixed, fill),
    "interpolated": lambda image, choice, fill: affine.affine_interpolated(image, choice.matrix, choice.cubic, fill),
    "autocontrast": lambda image, choice, fill: ops.autocontrast(image),
    "equalize": lambda image, choice, fill: ops.equalize(image),
    "invert": lambda image, choice, fill: ops.invert(image),
    "posterize": lambda image, choice, fill: ops.posterize(image, choice.value),
    "solarize": lambda image, choice, fill: ops.solarize(image, choice.value),
    "solarize_add": lambda image, choice, fill: ops.solarize_add(image, choice.value),
    "color": lambda image, choice, fill: ops.color(image, choice.value),
    "contrast": lambda image, choice, fill: ops.contrast(image, choice.value),
    "brightness": lambda image, choice, fill: ops.brightness(image, choice.value),
    "sharpness": lambda image, choice, fill: ops.sharpness(image, choice.value),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """What to draw and how to apply it, for images of one size."""

    draw: Callable[[Array], Choice]  # of a key; the choice has a leading axis of layers
    kinds: tuple[tuple[str, ...], ...]  # for each layer, the names in `KINDS` that its choices index
    fill: np.ndarray  # uint8 [3], the colour of what lies outside the image

    def apply(self, image: Array, choice: Choice, branch: Callable[..., Array]) -> Array:
        """One image uint8 [H, W, 3] through all layers of its choice.

        `branch` is `jax.lax.switch`, which runs the chosen operation alone, or `compute_all`, which suits `vmap`. Both
        give the same pixels.
        """
        for layer, kinds in enumerate(self.kinds):
            one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], choice)
            image = branch(one.kind, [KINDS[kind] for kind in kinds], image, one, jnp.asarray(self.fill))
        return image


def compute_all(index: Array, branches: Sequence[Callable[..., Array]], *operands: Any) -> Array:
    """`jax.lax.switch` by computing every branch (it would do so under `vmap` too, but with a copy of each constant
    table for every example)."""
    return jax.lax.select_n(index, *(branch(*operands) for branch in branches))


# Ten levels of each operation. Shears are factors, translations fractions of the side, rotations degrees, the four
# enhancements distances from the neutral factor 1.
AUTOAUGMENT_LEVELS: dict[str, np.ndarray] = {
    **dict.fromkeys(("shear_x", "shear_y"), np.linspace(0, 0.3, 10)),
    **dict.fromkeys(("translate_x", "translate_y"), np.linspace(0, 150 / 331, 10)),
    "rotate": np.linspace(0, 30, 10),
    **dict.fromkeys(("color", "contrast", "sharpness", "brightness"), np.linspace(0, 0.9, 10)),
    "posterize": np.round(np.linspace(8, 4, 10)),
    "solarize": np.linspace(256, 0, 10),
    **dict.fromkeys(("autocontrast", "equalize", "invert"), np.zeros(10)),
}

# The 25 sub-policies: (probability, operation, level) of the first and of the second operation.
AUTOAUGMENT_CIFAR: tuple[tuple[tuple[float, str, int], tuple[float, str, int]], ...] = (
    ((0.1, "invert", 7), (0.2, "contrast", 6)),
    ((0.7, "rotate", 2), (0.3, "translate_x", 9)),
    ((0.8, "sharpness", 1), (0.9, "sharpness", 3)),
    ((0.5, "shear_y", 8), (0.7, "translate_y", 9)),
    ((0.5, "autocontrast", 8), (0.9, "equalize", 2)),
    ((0.2, "shear_y", 7), (0.3, "posterize", 7)),
    ((0.4, "color", 3), (0.6, "brightness", 7)),
    ((0.3, "sharpness", 9), (0.7, "brightness", 9)),
    ((0.6, "equalize", 5), (0.5, "equalize", 1)),
    ((0.6, "contrast", 7), (0.6, "sharpness", 5)),
    ((0.7, "color", 7), (0.5, "translate_x", 8)),
    ((0.3, "equalize", 7), (0.4, "autocontrast", 8)),
    ((0.4, "translate_y", 3), (0.2, "sharpness", 6)),
    ((0.9, "brightness", 6), (0.2, "color", 8)),
    ((0.5, "solarize", 2), (0.0, "invert", 3)),
    ((0.2, "equalize", 0), (0.6, "autocontrast", 0)),
    ((0.2, "equalize", 8), (0.6, "equalize", 4)),
    ((0.9, "color", 9), (0.6, "equalize", 6)),
    ((0.8, "autocontrast", 4), (0.2, "solarize", 8)),
    ((0.1, "brightness", 3), (0.7, "color", 0)),
    ((0.4, "solarize", 5), (0.9, "autocontrast", 3)),
    ((0.9, "translate_y", 9), (0.7, "translate_y", 9)),
    ((0.9, "autocontrast", 2), (0.8, "solarize", 3)),
    ((0.8, "equalize", 8), (0.1, "invert", 3)),
    ((0.7, "translate_y", 9), (0.9, "autocontrast", 1)),
)


def autoaugment_choice(name: str, level: int, sign: int, height: int, width: int) -> tuple[str, Choice]:
    """The kind, and the argument as NumPy arrays (its `kind` still 0), of one operation at level 0 .. 9.

    The magnitudes are those of the PyTorch port of the policy that long-tailed recognition uses: shears are bicubic,
    translations and rotations take the nearest pixel; rotation is always counter-clockwise, the other signed operations
    draw their `sign` (1 or -1).
    """
    magnitude = float(AUTOAUGMENT_LEVELS[name][level])
    choice = Choice(value=np.float32(magnitude))
    if name == "shear_x":
        return "interpolated", choice._replace(matrix=np.array([1, sign * magnitude, 0, 0, 1, 0], np.float32))
    if name == "shear_y":
        return "interpolated", choice._replace(matrix=np.array([1, 0, 0, sign * magnitude, 1, 0], np.float32))
    if name == "translate_x":
        return "nearest", choice._replace(fixed=affine.fixed_translation(sign * magnitude * width, 0))
    if name == "translate_y":
        return "nearest", choice._replace(fixed=affine.fixed_translation(0, sign * magnitude * height))
    if name == "rotate":
        return "nearest", choice._replace(fixed=affine.fixed_rotation(magnitude, height, width))
    if name in ("color", "contrast", "sharpness", "brightness"):
        return name, choice._replace(value=np.float32(1 + sign * magnitude))
    return name, choice


@POLICIES.register("autoaugment_cifar", layered=True)
def autoaugment_cifar(height: int, width: int, mean: Sequence[float] = ()) -> Policy:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019): one of 25 sub-policies, filled with (128, 128, 128).

    Each of its two operations has its own probability.
    """
    tables, kinds, probabilities = [], [], []
    for layer in range(2):
        steps = [subpolicy[layer] for subpolicy in AUTOAUGMENT_CIFAR]
        choices = [
            [autoaugment_choice(name, level, sign, height, width) for sign in (-1, 1)] for _, name, level in steps
        ]
        names = ("identity", *sorted({kind for pair in choices for kind, _ in pair}))
        rows = [[choice._replace(kind=np.int32(names.index(kind))) for kind, choice in pair] for pair in choices]
        kinds.append(names)
        probabilities.append([probability for probability, _, _ in steps])
        tables.append([_stack(pair) for pair in rows])
    table = _stack([_stack(layer) for layer in tables])  # leading axes [2 layers, 25 sub-policies, 2 signs]
    chances = np.asarray(probabilities, np.float32)

    def draw(key: Array) -> Choice:
        which, signs, gates = jax.random.split(key, 3)
        subpolicy = jax.random.randint(which, (), 0, len(AUTOAUGMENT_CIFAR))
        sign = jax.random.bernoulli(signs, shape=(2,)).astype(jnp.int32)
        choice = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.arange(2), subpolicy, sign], table)
        applied = jax.random.uniform(gates, (2,)) < jnp.asarray(chances)[:, subpolicy]
        return choice._replace(kind=jnp.where(applied, choice.kind, 0))

    return Policy(draw, tuple(kinds), np.full(3, 128, np.uint8))


def _stack(choices: list[Choice]) -> Choice:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *choices)


MAX_LEVEL = 10.0


def _signed(scale: float) -> Callable[[Any, Any], Any]:
    return lambda level, sign: sign * level / MAX_LEVEL * scale


def _truncated(scale: float) -> Callable[[Any, Any], Any]:
    return lambda level, sign: level / MAX_LEVEL * scale // 1


def _enhancement(level: Any, sign: Any) -> Any:
    return level / MAX_LEVEL * 1.8 + 0.1


# name, kind, and the argument as a function of (level 0 .. 10, sign): degrees, bits, threshold, addend, factor or
# fraction of the side; of arrays on the device, of Python's numbers on the host. The non-increasing variants: a higher
# level keeps more bits, solarizes less.
RANDAUGMENT: tuple[tuple[str, str, Callable[[Any, Any], Any]], ...] = (
    ("AutoContrast", "autocontrast", _signed(0)),
    ("Equalize", "equalize", _signed(0)),
    ("Invert", "invert", _signed(0)),
    ("Rotate", "interpolated", _signed(30)),
    ("Posterize", "posterize", _truncated(4)),
    ("Solarize", "solarize", _truncated(256)),
    ("SolarizeAdd", "solarize_add", _truncated(110)),
    ("Color", "color", _enhancement),
    ("Contrast", "contrast", _enhancement),
    ("Brightness", "brightness", _enhancement),
    ("Sharpness", "sharpness", _enhancement),
    ("ShearX", "interpolated", _signed(0.3)),
    ("ShearY", "interpolated", _signed(0.3)),
    ("TranslateXRel", "interpolated", _signed(0.45)),
    ("TranslateYRel", "interpolated", _signed(0.45)),
)


def randaugment_choice(operation: Array, level: Array, sign: Array, cubic: Array, height: int, width: int) -> Choice:
    """The choice for entry `operation` (int32 []) of `RANDAUGMENT`, its kind an index into `RANDAUGMENT_KINDS`."""
    kinds = np.asarray([RANDAUGMENT_KINDS.index(kind) for _, kind, _ in RANDAUGMENT], np.int32)
    arguments = {name: argument(level, sign) for name, _, argument in RANDAUGMENT}
    rows = {
        "ShearX": [1, arguments["ShearX"], 0, 0, 1, 0],
        "ShearY": [1, 0, 0, arguments["ShearY"], 1, 0],
        "TranslateXRel": [1, 0, arguments["TranslateXRel"] * width, 0, 1, 0],
        "TranslateYRel": [1, 0, 0, 0, 1, arguments["TranslateYRel"] * height],
    }
    matrices = {name: jnp.asarray(row, jnp.float32) for name, row in rows.items()}
    matrices["Rotate"] = affine.rotation_matrix(arguments["Rotate"], height, width)
    unused = jnp.zeros(6)
    return Choice(
        kind=jnp.asarray(kinds)[operation],
        value=jnp.stack(list(arguments.values()))[operation],
        fixed=jnp.zeros(6, jnp.int32),
        matrix=jnp.stack([matrices.get(name, unused) for name in arguments])[operation],
        cubic=cubic,
    )


RANDAUGMENT_KINDS = ("identity", *sorted({kind for _, kind, _ in RANDAUGMENT}))


@POLICIES.register("randaugment", layered=True)
def randaugment(
    height: int,
    width: int,
    mean: Sequence[float] = (),
    *,
    layers: int = 2,
    magnitude: float = 10.0,
    magnitude_std: float = 0.5,
    prob: float = 0.5,
) -> Policy:
    """RandAugment (Cubuk et al. 2020) with noisy magnitudes, as the public recipe string `rand-n2-m10-mstd0.5` has it.

    Each of `layers` times: one of the 15 operations uniformly (with replacement); with probability `prob` it is applied
    at a level drawn from a normal distribution around `magnitude`, clipped to 0 .. 10; signs and bilinear or bicubic
    interpolation are drawn evenly. What lies outside has the data's mean colour, given on 0 .. 1.
    """

    def draw(key: Array) -> Choice:
        which, noise, signs, filters, gates = jax.random.split(key, 5)
        operation = jax.random.randint(which, (layers,), 0, len(RANDAUGMENT))
        level = jnp.clip(magnitude + magnitude_std * jax.random.normal(noise, (layers,)), 0, MAX_LEVEL)
        sign = jnp.where(jax.random.bernoulli(signs, shape=(layers,)), 1.0, -1.0)
        cubic = jax.random.bernoulli(filters, shape=(layers,))
        choice = jax.vmap(functools.partial(randaugment_choice, height=height, width=width))(
            operation, level, sign, cubic
        )
        return choice._replace(kind=jnp.where(jax.random.uniform(gates, (layers,)) < prob, choice.kind, 0))

    return Policy(draw, (RANDAUGMENT_KINDS,) * layers, np.round(255 * np.asarray(mean)).astype(np.uint8))
