"""The resizing of training views against Pillow's, and against itself on other processors and threads."""

from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from shike_jax.data import resizing

SHAPES = [(1, 1), (1, 300), (300, 1), (2, 3), (64, 64), (63, 65), (37, 500), (1200, 1600)]
SIZES = (1, 7, 64, 224)


def noise(height, width):
    """Every value as likely as any other, the worst case for rounding."""
    pixels = np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


needs_library = pytest.mark.skipif(resizing.cykooz_resizer is None, reason="cykooz-resizer is not installed")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_each_value_is_pillows_or_its_neighbour(shape, size):
    image = noise(*shape)
    expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    found = resizing.resized(image, size)
    assert (found.mode, found.size) == ("RGB", (size, size))
    assert np.abs(np.asarray(found) - expected).max() <= 1


@pytest.mark.parametrize("value", [0, 255])
def test_one_colour_stays(value):
    found = resizing.resized(Image.new("RGB", (301, 199), (value, 128, value)), 64)
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8([value, 128, value]), (64, 64, 3)))


def test_without_the_library_pillow_resizes(monkeypatch):
    monkeypatch.setattr(resizing, "cykooz_resizer", None)
    expected = noise(63, 65).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resizing.resized(noise(63, 65), 32), expected)
    assert resizing.resizer() == f"pillow {metadata.version('pillow')}"


@needs_library
def test_every_processor_gives_the_same_values(monkeypatch):
    monkeypatch.setattr(resizing, "_own", resizing.threading.local())
    found = [np.asarray(resizing.resized(noise(*shape), 64)) for shape in SHAPES]
    plain = resizing.cykooz_resizer.CpuExtensions.none
    if resizing._own.resizer.cpu_extensions == plain:
        pytest.skip("this processor has none of the vector instructions that the library uses")
    resizing._own.resizer.cpu_extensions = plain
    for shape, expected in zip(SHAPES, found, strict=True):
        np.testing.assert_array_equal(resizing.resized(noise(*shape), 64), expected)


@needs_library
def test_threads_do_not_disturb_each_other():
    shapes = SHAPES * 8
    alone = [np.asarray(resizing.resized(noise(*shape), 96)) for shape in shapes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda shape: np.asarray(resizing.resized(noise(*shape), 96)), shapes))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
