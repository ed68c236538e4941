"""Every operation at every level against Pillow: photometric ones identical, geometric ones within one grey level."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from shike_jax.augment import ops, policies
from tests.augment.agreement import (
    GEOMETRIC,
    autoaugment_pairs,
    compare,
    photographs,
    pieces_of_photographs,
    randaugment_pairs,
    synthetic_images,
)
from tests.conftest import SHARED

OPERATIONS = [(autoaugment_pairs, name) for name in policies.AUTOAUGMENT_LEVELS]
OPERATIONS += [(randaugment_pairs, name) for name, _, _ in policies.RANDAUGMENT]


@pytest.fixture(scope="module")
def real_images() -> np.ndarray:
    """Photographs of the shared folder; where it is absent, pieces of the two that scikit-learn carries."""
    return photographs(SHARED) if SHARED.is_dir() else pieces_of_photographs()


def check(pairs, images, name):
    for ours, theirs in pairs(images, name):
        equal, near, largest = compare(ours, theirs)
        if name in GEOMETRIC:
            assert near >= 0.99
        else:
            assert equal == 1, f"largest difference {largest}"


@pytest.mark.parametrize(("pairs", "name"), OPERATIONS)
def test_operation_on_synthetic_images(pairs, name):
    check(pairs, synthetic_images(), name)


@pytest.mark.parametrize(("pairs", "name"), OPERATIONS)
def test_operation_on_photographs(pairs, name, real_images):
    check(pairs, real_images, name)


def test_nearest_maps_are_exact(real_images):
    for name in ("translate_x", "translate_y", "rotate"):
        assert all(np.array_equal(*pair) for pair in autoaugment_pairs(real_images, name))


def test_autocontrast_of_every_range():
    """Each pair of darkest and brightest value: Pillow's double arithmetic truncates below integers in some."""
    values = np.arange(256)
    pairs = [(low, high) for low in range(0, 256, 3) for high in range(low, 256)]
    images = np.stack([np.clip(values, low, high) for low, high in pairs]).astype(np.uint8)
    images = images.reshape(-1, 8, 32, 1).repeat(3, axis=3)
    ours = np.asarray(jax.jit(lambda x: jax.lax.map(ops.autocontrast, x))(images))
    theirs = np.stack([np.asarray(ImageOps.autocontrast(Image.fromarray(image))) for image in images])
    np.testing.assert_array_equal(ours, theirs)
