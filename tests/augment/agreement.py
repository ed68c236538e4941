"""Runs every operation at every level here and in Pillow, and writes the measured agreement into docs/augmentation.md.

Run: python -m tests.augment.agreement   (needs the shared data; rewrites the table in place)
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image

from shike_jax.augment import policies
from shike_jax.augment.host import autoaugment_operation, randaugment_operation

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILL = (124, 116, 104)
GEOMETRIC = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
GEOMETRIC |= {name for name, kind, _ in policies.RANDAUGMENT if kind == "interpolated"}


def documented_levels(name: str) -> list[float]:
    """The ten magnitudes of an AutoAugment operation, from the PyTorch port of the policy; enhancements for others."""
    ends = {"translate_x": (0, 150 / 331), "translate_y": (0, 150 / 331), "rotate": (0, 30), "solarize": (256, 0)}
    ends |= {"shear_x": (0, 0.3), "shear_y": (0, 0.3)}
    if name == "posterize":
        return [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    low, high = ends.get(name, (0, 0 if name in ("autocontrast", "equalize", "invert") else 0.9))
    return [low + (high - low) * level / 9 for level in range(10)]


def documented_argument(name: str, level: float, sign: int) -> float:
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


def synthetic_images(height: int = 24, width: int = 40) -> np.ndarray:
    """Edge cases uint8 [12, H, W, 3]: constant, two colours, gradients, narrow and wide noise."""
    random = np.random.RandomState(0)
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3))
    checks = np.where(np.indices((height, width)).sum(0)[..., None] % 2, (10, 200, 90), (250, 3, 91))
    flat = [np.broadcast_to(colour, (height, width, 3)) for colour in ((0, 0, 0), (255, 255, 255), (1, 128, 254))]
    images = [*flat, checks, ramp, ramp[:, ::-1] * (0.3, 0.6, 1.0)]
    for low, high in ((0, 256), (100, 103), (17, 36), (3, 246), (200, 256), (0, 50)):
        images.append(random.randint(low, high, (height, width, 3)))
    return np.stack(images).astype(np.uint8)


def photographs(shared: pathlib.Path, size: int = 32) -> np.ndarray:
    """One photograph of every second class of the Caltech folder, resized: uint8 [50, size, size, 3]."""
    folders = sorted(path for path in (shared / "data/caltech101_lt/train").iterdir() if path.is_dir())[::2]
    files = [sorted(folder.glob("*.jpg"))[0] for folder in folders]
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files])


def pieces_of_photographs(size: int = 32) -> np.ndarray:
    """The two photographs that scikit-learn carries, cut into 25 pieces each and resized: uint8 [50, size, size, 3]."""
    from sklearn.datasets import load_sample_images

    pieces = []
    for photograph in load_sample_images().images:
        for band in np.array_split(photograph, 5, axis=0):
            pieces += np.array_split(band, 5, axis=1)
    return np.stack([np.asarray(Image.fromarray(piece).resize((size, size))) for piece in pieces])


@jax.jit
def _apply(images: np.ndarray, kind: int, choice: policies.Choice, fill: np.ndarray) -> jax.Array:
    branches = list(policies.KINDS.values())
    return jax.lax.map(lambda image: jax.lax.switch(kind, branches, image, choice, fill), images)


def autoaugment_pairs(images: np.ndarray, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ours, Pillow's) for the ten levels, which are checked first, and both signs."""
    np.testing.assert_allclose(policies.AUTOAUGMENT_LEVELS[name], documented_levels(name), rtol=1e-12)
    for level in range(10):
        for sign in (-1, 1):
            kind, choice = policies.autoaugment_choice(name, level, sign, *images.shape[1:3])
            ours = _apply(images, list(policies.KINDS).index(kind), choice, np.full(3, 128, np.uint8))
            theirs = [autoaugment_operation(Image.fromarray(image), name, level, sign) for image in images]
            yield np.asarray(ours), np.stack([np.asarray(image) for image in theirs])


def randaugment_pairs(images: np.ndarray, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ours, Pillow's) for the levels 0 .. 10; geometric ones with both signs and both filters.

    Pillow gets the argument rounded to float32, after a check that it is the documented one to rounding.
    """
    operation = [entry[0] for entry in policies.RANDAUGMENT].index(name)
    fill = np.asarray(FILL, np.uint8)
    choose = jax.jit(policies.randaugment_choice, static_argnums=(4, 5))
    for level in range(11):
        for sign in (-1, 1) if name in GEOMETRIC else (1,):
            for cubic in (False, True) if name in GEOMETRIC else (True,):
                choice = choose(operation, np.float32(level), np.float32(sign), cubic, *images.shape[1:3])
                argument = float(choice.value)
                np.testing.assert_allclose(argument, documented_argument(name, level, sign), rtol=3e-7)
                kind = policies.RANDAUGMENT_KINDS[int(choice.kind)]
                ours = _apply(images, list(policies.KINDS).index(kind), choice, fill)
                theirs = [
                    randaugment_operation(Image.fromarray(image), name, argument, cubic, FILL) for image in images
                ]
                yield np.asarray(ours), np.stack([np.asarray(image) for image in theirs])


def compare(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, int]:
    """(share of equal values, share within one grey level, largest difference)."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    return float(np.mean(difference == 0)), float(np.mean(difference <= 1)), int(difference.max())


def table(images: np.ndarray) -> str:
    """The measured agreement as Markdown: one line per operation, the worst of its settings."""
    lines = [
        "| policy | operation | settings | identical, worst | within 1 level, worst | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    runs = [("AutoAugment", name, autoaugment_pairs) for name in policies.AUTOAUGMENT_LEVELS]
    runs += [("RandAugment", name, randaugment_pairs) for name, _, _ in policies.RANDAUGMENT]
    for policy, name, pairs in runs:
        results = [compare(*pair) for pair in pairs(images, name)]
        equal, near, largest = zip(*results, strict=True)
        shares = f"{100 * min(equal):.2f} % | {100 * min(near):.3f} %"
        lines.append(f"| {policy} | {name} | {len(results)} | {shares} | {max(largest)} |")
    return "\n".join(lines)


def main() -> None:
    page = ROOT / "docs/augmentation.md"
    shared = pathlib.Path(os.environ.get("SHIKE_SHARED", ROOT.parent / "shared"))
    before, rest = page.read_text().split("<!-- table -->\n")
    after = rest.split("<!-- end of table -->\n")[1]
    marked = f"<!-- table -->\n{table(photographs(shared))}\n<!-- end of table -->\n"
    page.write_text(before + marked + after)


if __name__ == "__main__":
    main()
