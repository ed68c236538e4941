"""Image files that decoders stumble over, each with the pixels that it should give, worked out here by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32
WHITE = np.uint8(255)


def png(samples, depth, colour_type, transparent=()):
    """A PNG of [H,W,channels] samples by hand (PNG specification, sections 5 and 11.3.2): any depth, any tRNS."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = []
    for row in np.asarray(samples).reshape(len(samples), -1):
        bits = (row[:, None] >> np.arange(depth)[::-1]) & 1
        rows.append(b"\0" + np.packbits(bits.astype(np.uint8)).tobytes())
    header = struct.pack(">IIBBBBB", len(samples[0]), len(samples), depth, colour_type, 0, 0, 0)
    clear = chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in transparent)) if transparent else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + clear + body + chunk(b"IEND", b"")


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(colours, alpha):
    """Float [H,W,C] and alpha in 0..1, [H,W], composed over white."""
    return colours * alpha[..., None] + 255 * (1 - alpha[..., None])


def odd_images():
    """Name to (file content, expected uint8 or float [H,W,1 or 3], tolerance in grey levels)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    grey16 = (x * 2000 + y * 100).astype(np.uint16)
    grey8, colour16 = (grey16 >> 8).astype(np.uint8), np.stack([grey16, grey16[:, ::-1], grey16 // 2], -1)
    colour8 = (colour16 >> 8).astype(np.uint8)
    alpha = np.where(x < WIDTH // 2, 255, 64).astype(np.uint8)
    clear16, clear8 = int(grey16[3, 5]), int(grey8[3, 5])
    palette = np.array([[255, 0, 0], [0, 128, 255], [10, 20, 30], [250, 250, 0]], np.uint8)
    indices = ((x // 4 + y // 4) % 4).astype(np.uint8)
    paletted = Image.fromarray(indices, "P")
    paletted.putpalette(palette.tobytes())
    inks = np.stack([colour8[..., 0], colour8[..., 1], colour8[..., 2], alpha // 4], -1)
    rgb_of_inks = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    found = {
        "grey8.png": (encoded(Image.fromarray(grey8), "PNG"), grey8[..., None], 0),
        "grey16.png": (encoded(Image.fromarray(grey16), "PNG"), grey8[..., None], 0),
        "grey16.tif": (encoded(Image.fromarray(grey16), "TIFF"), grey8[..., None], 0),
        "grey16_big_endian.tif": (encoded(Image.fromarray(grey16.astype(">u2")), "TIFF"), grey8[..., None], 0),
        "grey16.pgm": (
            b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + grey16.astype(">u2").tobytes(),
            grey8[..., None],
            0,
        ),
        "grey32_of_16.tif": (encoded(Image.fromarray(grey16.astype(np.int32)), "TIFF"), grey8[..., None], 0),
        "grey32.tif": (
            # 62000 + 2300 of 16 bits times 1024 needs 26 bits: the highest 8 are those of the 16-bit values again.
            encoded(Image.fromarray(grey16.astype(np.int32) * 1024), "TIFF"),
            grey8[..., None],
            0,
        ),
        "colour16.png": (png(colour16, 16, 2), colour8, 0),
        "grey_alpha8.png": (
            encoded(Image.merge("LA", [Image.fromarray(grey8), Image.fromarray(alpha)]), "PNG"),
            on_white(grey8[..., None].astype(float), alpha / 255),
            1,
        ),
        "grey_alpha16.png": (
            png(np.stack([grey16, alpha.astype(np.uint16) * 257], -1), 16, 4),
            on_white(grey8[..., None].astype(float), alpha / 255),
            1,
        ),
        "palette.png": (encoded(paletted, "PNG"), palette[indices], 0),
        "palette_clear.png": (
            encoded(paletted, "PNG", transparency=2),
            np.where((indices == 2)[..., None], WHITE, palette[indices]),
            0,
        ),
        "palette.gif": (encoded(paletted, "GIF"), palette[indices], 0),
        "cmyk.tif": (encoded(Image.fromarray(inks, "CMYK"), "TIFF"), rgb_of_inks, 2),
        "cmyk.jpg": (encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100), rgb_of_inks, 12),
        "grey8_clear.png": (
            png(grey8[..., None], 8, 0, (clear8,)),
            np.where(grey8 == clear8, WHITE, grey8)[..., None],
            0,
        ),
        "grey16_clear.png": (
            png(grey16[..., None], 16, 0, (clear16,)),
            np.where(grey16 == clear16, WHITE, grey8)[..., None],
            0,
        ),
        "grey4_clear.png": (
            png((indices * 5)[..., None], 4, 0, (10,)),
            np.where(indices == 2, WHITE, indices * 85)[..., None],
            0,
        ),
        "grey2_clear.png": (
            png(indices[..., None], 2, 0, (1,)),
            np.where(indices == 1, WHITE, indices * 85)[..., None],
            0,
        ),
        "grey1_clear.png": (png((indices % 2)[..., None], 1, 0, (0,)), np.full((HEIGHT, WIDTH, 1), WHITE), 0),
        "colour8_clear.png": (
            png(palette[indices], 8, 2, (0, 128, 255)),
            np.where((indices == 1)[..., None], WHITE, palette[indices]),
            0,
        ),
        "colour16_clear.png": (
            png(palette[indices].astype(np.uint16) * 257, 16, 2, (0, 128 * 257, 65535)),
            np.where((indices == 1)[..., None], WHITE, palette[indices]),
            0,
        ),
    }
    for name, white in (("1", 1.0), ("255", 255.0), ("65535", 65535.0), ("own", 3e6)):
        shares = (grey16 / grey16.max()).astype(np.float32)
        floats = Image.fromarray((shares * white).astype(np.float32))
        found[f"float_{name}.tif"] = (encoded(floats, "TIFF"), 255 * shares[..., None], 1)
    damaged = np.where(x == 0, np.nan, np.where(x == 1, np.inf, np.where(x == 2, -np.inf, x / WIDTH)))
    repaired = np.where(x == 0, 0, np.where(x == 1, 255, np.where(x == 2, 0, 255 * x / WIDTH)))
    found["float_not_finite.tif"] = (
        encoded(Image.fromarray(damaged.astype(np.float32)), "TIFF"),
        repaired[..., None],
        1,
    )
    return found
