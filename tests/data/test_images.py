"""Decoding of awkward images, and the crops against torchvision's recipe written out with Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shike_jax.data import images
from tests.odd_images import odd_images


def photo(width=60, height=40):
    """Smooth colours that survive JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4, y * 6, 128 + x - y], -1).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(content):
    """The whole image as every view gets it before its crop."""
    image = images._open(content)
    images._upright_size(image)  # looks for EXIF, for which Pillow loads a PNG
    return np.asarray(images._load(image, (1.0, 1.0)))


def test_jpeg_and_png_decode_to_their_pixels():
    np.testing.assert_array_equal(decode(encoded(photo(), "PNG")), np.asarray(photo()))
    jpeg = encoded(photo(), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_grey_becomes_three_equal_channels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(photo().convert("L"), kind, **options))
    assert pixels.shape == (40, 60, 3)
    assert np.ptp(pixels, axis=-1).max() == 0
    np.testing.assert_allclose(pixels[..., 0], np.asarray(photo().convert("L")), atol=3)


@pytest.mark.parametrize(("content", "expected", "tolerance"), odd_images().values(), ids=odd_images())
def test_odd_files_give_the_pixels_worked_out_by_hand(content, expected, tolerance):
    pixels = decode(content)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (*expected.shape[:2], 3))
    assert np.abs(pixels - expected.astype(float)).max() <= tolerance


def test_cmyk_jpeg_keeps_its_colours():
    pixels = decode(encoded(photo().convert("CMYK"), "JPEG", quality=98))
    assert np.abs(pixels.astype(int) - np.asarray(photo())).mean() < 3


def test_sixteen_bit_png_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(4, 256)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels[..., 1], values >> 8)


def png_of_16_bit(values, colour_type):
    """Pillow writes 16 bits for grey only: a PNG of uint16 [H,W,channels] by hand (PNG specification, section 5)."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colours_and_transparency():
    values = np.linspace(0, 65535, 4 * 6 * 3).astype(np.uint16).reshape(4, 6, 3)
    np.testing.assert_array_equal(decode(png_of_16_bit(values, 2)), values >> 8)
    opaque = np.repeat(np.array([0, 65535, 65535, 65535], np.uint16), 6).reshape(4, 6, 1)
    for colours, colour_type in ((values, 6), (values[..., :1], 4)):
        pixels = decode(png_of_16_bit(np.concatenate([colours, opaque], -1), colour_type))
        assert (pixels[0] == 255).all()
        np.testing.assert_array_equal(pixels[1:], np.broadcast_to(colours[1:] >> 8, (3, 6, 3)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_on_white(mode):
    opaque = photo().convert("RGBA")
    opaque.putalpha(Image.fromarray(np.where(np.arange(60) < 30, 255, 0)[None].repeat(40, 0).astype(np.uint8)))
    if mode == "P":
        image = Image.new("P", (60, 40), 1)
        image.putpalette([255, 0, 0, 0, 200, 0])
        image.paste(0, (30, 0, 60, 40))
        content = encoded(image, "PNG", transparency=0)
    else:
        content = encoded(opaque.convert(mode), "PNG")
    pixels = decode(content)
    assert (pixels[:, 30:] == 255).all()
    assert not (pixels[:, :30] == 255).all(-1).any()


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixels = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(pixels, np.broadcast_to([255, 0, 0], (8, 8, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    # What a viewer must do for each value (EXIF 2.3, table of orientations): row and column of the stored picture.
    turn = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: lambda p: np.rot90(p, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(content), turn(np.asarray(photo())))
    size = (40, 60) if orientation < 5 else (60, 40)
    assert images.center_crop(content, min(size), min(size)).shape == (40, 40, 3)
    view = images.random_resized_crop(content, 16, np.array([1, 2], np.uint32))
    upright = encoded(Image.fromarray(turn(np.asarray(photo()))), "PNG")
    np.testing.assert_array_equal(view, images.random_resized_crop(upright, 16, np.array([1, 2], np.uint32)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (encoded(photo(), "JPEG")[:400], "Truncated"),
        (encoded(photo(), "PNG")[:100], "truncated"),
        (encoded(photo(), "JPEG")[:-40], "truncated"),
        (encoded(Image.new("1", (12_000, 12_000)), "PNG"), "12000 x 12000 pixels, more than"),
        (encoded(Image.new("1", (20_000, 12_000)), "PNG"), "more than 89478485 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_images_give_their_reason(content, reason):
    for view in (
        lambda data: images.center_crop(data, 8, 8),
        lambda data: images.random_resized_crop(data, 8, np.zeros(2, np.uint32)),
    ):
        with pytest.raises(images.ImageError, match=reason):
            view(content)


@pytest.mark.parametrize("size", [(60, 40), (40, 61), (33, 33)])
def test_center_crop_is_resize_then_crop(size):
    """torchvision: the long side is int(resize * long / short); the crop's corner is rounded."""
    image, resize, crop = photo(*size), 32, 28
    short = min(size)
    resized = image.resize(tuple(int(resize * side / short) for side in size), Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + crop, top + crop)))
    np.testing.assert_array_equal(images.center_crop(encoded(image, "PNG"), crop, resize), expected)


def test_random_resized_crop_is_crop_then_resize_then_flip():
    seen = set()
    for number in range(20):
        seed = np.array([3, number], np.uint32)
        left, top, width, height = images.crop_box(60, 40, (0.08, 1.0), images.uniforms_of(seed, 41)[:40])
        plain = photo().crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BILINEAR)
        expected = np.asarray(plain).astype(int)
        unflipped = images.random_resized_crop(encoded(photo(), "PNG"), 24, seed, flip=False)
        assert np.abs(unflipped - expected).max() <= 1
        view = images.random_resized_crop(encoded(photo(), "PNG"), 24, seed)
        flipped = not np.array_equal(view, unflipped)
        np.testing.assert_array_equal(view, unflipped[:, ::-1] if flipped else unflipped)
        seen.add(flipped)
    assert seen == {True, False}


def test_crop_boxes_are_distributed_as_in_torchvision():
    """Area uniform in the range, log-ratio uniform, position uniform; on a large square nothing is rejected."""
    side, boxes = 10_000, []
    for number in range(2000):
        boxes.append(images.crop_box(side, side, (0.1, 0.5), images.uniforms_of(np.array([9, number]), 41)[:40]))
    left, top, width, height = np.array(boxes, float).T
    samples = [
        (width * height / side**2 - 0.1) / 0.4,
        np.log(width / height) / np.log(4 / 3) / 2 + 0.5,
        left / (side - width),
        top / (side - height),
    ]
    expected = (np.arange(2000) + 0.5) / 2000
    for sample in samples:
        assert np.abs(np.sort(sample) - expected).max() < 1.63 / np.sqrt(2000)  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize(("size", "box"), [((400, 30), (180, 0, 40, 30)), ((30, 400), (0, 180, 30, 40))])
def test_extreme_shapes_fall_back_to_the_centre(size, box):
    uniforms = np.full(40, 0.99)  # nearly the whole area: never fits
    assert images.crop_box(*size, (0.08, 1.0), uniforms) == box


def test_reduced_decoding_of_large_jpegs_stays_close():
    content = encoded(photo(64, 48).resize((1280, 960), Image.Resampling.BICUBIC), "JPEG", quality=92)
    full = Image.open(io.BytesIO(content))
    resized = full.resize((106, 80), Image.Resampling.BILINEAR).crop((21, 8, 85, 72))
    view = images.center_crop(content, 64, 80)
    assert np.abs(view.astype(int) - np.asarray(resized)).max() <= 4


def with_orientation(kind, count, value, size=(60, 40)):
    """A JPEG whose EXIF (TIFF 6.0, section 2) holds the orientation as a field of any type."""
    entry = struct.pack("<HHI4s", 0x0112, kind, count, value)
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    return encoded(photo(*size), "JPEG", quality=98, exif=b"Exif\0\0" + tiff)


ODD_ORIENTATIONS = {
    "text": with_orientation(2, 2, b"6\0\0\0"),
    "bytes": with_orientation(7, 4, b"\6\0\0\0"),
    "0": with_orientation(3, 1, struct.pack("<HH", 0, 0)),
    "9": with_orientation(3, 1, struct.pack("<HH", 9, 0)),
    "a pointer to nowhere": with_orientation(5, 1, struct.pack("<I", 4_000_000)),
}


@pytest.mark.parametrize("content", ODD_ORIENTATIONS.values(), ids=ODD_ORIENTATIONS)
def test_an_orientation_that_is_no_number_from_1_to_8_is_1(content):
    """The same pixels as a file without EXIF, in every view."""
    plain, seed = encoded(photo(), "JPEG", quality=98), np.array([1, 2], np.uint32)
    np.testing.assert_array_equal(decode(content), decode(plain))
    np.testing.assert_array_equal(images.center_crop(content, 16, 20), images.center_crop(plain, 16, 20))
    views = [images.random_resized_crop(one, 16, seed) for one in (content, plain)]
    np.testing.assert_array_equal(*views)


@pytest.mark.parametrize("place", ["_upright_size", "to_rgb", "uniforms_of"])
def test_whatever_an_image_raises_is_its_reason(place, monkeypatch):
    def stumble(*_):
        raise TypeError("unsupported operand")

    monkeypatch.setattr(images, place, stumble)
    with pytest.raises(images.ImageError, match="unsupported operand"):
        images.random_resized_crop(encoded(photo(), "PNG"), 16, np.array([1, 2], np.uint32))
